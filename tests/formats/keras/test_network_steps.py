"""Steps of Keras's layers that can't be added."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from policy_server.engine.building import Attributes, NetworkBuilder
from policy_server.errors import ModelError
from policy_server.formats.keras.model_config import Part
from policy_server.formats.keras.network_steps import Steps


class FullBuilder(NetworkBuilder):
    """A network in a process that has no memory left."""

    def add(self, operation: str, inputs: Sequence[int], attributes: Attributes = ()) -> int:
        raise MemoryError(f"{operation} of {inputs} with {attributes}")


@pytest.mark.parametrize(
    ("layer", "subject"),
    [
        (None, "the Keras model"),
        (
            Part("Softmax", "keras.layers", {"name": "ends"}, []),
            r"the Keras model: the layer 'ends' \(Softmax\)",
        ),
    ],
    ids=["no-layer", "layer"],
)
def test_result_that_no_memory_is_left_for_is_refused(layer: Part | None, subject: str) -> None:
    steps = Steps(2, "float32")
    steps.builder, steps.layer = FullBuilder(2), layer

    with pytest.raises(ModelError, match=f"^{subject}: its result takes more memory than there is"):
        steps.add("Softmax", 0)


def test_steps_that_take_too_long_together_are_refused() -> None:
    steps = Steps(2, "float32")
    number = steps.numbers(1.0)
    for _ in range(100_000):
        steps.add("Neg", number)

    with pytest.raises(ModelError, match="up to it 100,001 steps are computed for one observation"):
        steps.add("Neg", number)


def test_results_of_a_residual_network_for_images_of_210_by_160_pixels_are_taken() -> None:
    width = 100_800
    steps = Steps(width, "float32")

    for rows in (rows for rows in range(1, 5_000) if width % rows == 0):
        for shape in ((rows, width // rows), (rows, 1, width // rows)):
            steps.reshape(0, shape)

    # IMPALA's take 12.9 million.
    assert steps._numbers > 12_900_000  # noqa: SLF001 -- the sum that is bounded
