"""Which engine is chosen, and why, in the signature's words."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from numpy.typing import NDArray

from policy_server.errors import ModelError
from policy_server.numpy_network import CompiledPolicy, NumpyNetwork, Step
from policy_server.saved_model import load_policy
from policy_server.saved_model.compiling import NotCompiledError
from policy_server.saved_model.loading import check_is_faster
from policy_server.settings import Engine
from tests.fakes import components_of, signature_of
from tests.saved_model.hand_built import Part, V1Policy

SIGNATURE = replace(signature_of(components_of(("categorical", 3))), observation_width=3)
TWENTY = tuple(Step("Tanh", (register,), register + 1) for register in range(20))


class Rival:
    """TensorFlow's side of the race, with a pace of our choosing."""

    def __init__(self, *, pause_s: float) -> None:
        self.signature = SIGNATURE
        self.pause_s = pause_s

    def answered(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Return all rows."""
        return rows

    def distribution_inputs(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Return the rows after a while."""
        if self.pause_s:
            time.sleep(self.pause_s)
        return rows


def test_network_that_tensorflow_outruns_is_left_to_it() -> None:
    compiled = CompiledPolicy(SIGNATURE, NumpyNetwork({}, TWENTY, result=20, registers=21))

    check_is_faster(compiled, Rival(pause_s=0.05))
    with pytest.raises(NotCompiledError, match=r"takes .* ms for 32 observations, TensorFlow"):
        check_is_faster(compiled, Rival(pause_s=0.0))


@pytest.mark.parametrize(
    ("asked", "engine", "reason"),
    [
        ("auto", "numpy", "equal to TensorFlow on 194 probes (within "),
        ("numpy", "numpy", "equal to TensorFlow on 194 probes (within "),
        ("tensorflow", "tensorflow", "POLICY_SERVER_ENGINE asks for it"),
    ],
)
def test_signature_says_which_engine_serves_and_why(
    tmp_path: Path, asked: Engine, engine: str, reason: str
) -> None:
    folder = V1Policy().save(tmp_path / "m")

    signature = load_policy(folder, engine=asked).signature

    assert signature.engine == engine
    assert reason in signature.engine_reason


def test_policy_of_an_unknown_family_is_served_by_tensorflow_or_not_at_all(tmp_path: Path) -> None:
    folder = V1Policy(parts=(Part("dirichlet", (3,)),)).save(tmp_path / "m")

    assert load_policy(folder).signature.engine_reason == "its family is unknown"
    with pytest.raises(ModelError, match="can't be computed by NumPy: its family is unknown; set"):
        load_policy(folder, engine="numpy")
