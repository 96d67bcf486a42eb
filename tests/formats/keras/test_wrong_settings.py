"""Settings in config.json that Keras never wrote: each is refused in one line that names it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from policy_server.errors import ModelError
from policy_server.formats.keras.call_arguments import Arguments, Result
from policy_server.formats.keras.convolution_layers import CONVOLUTIONS
from policy_server.formats.keras.functions import FUNCTIONS
from policy_server.formats.keras.model_config import Part
from policy_server.formats.keras.network_steps import Steps
from policy_server.formats.keras.normalization_layers import NORMALIZATIONS
from policy_server.formats.keras.plain_layers import LAYERS
from policy_server.formats.keras.recurrent_layers import state_sizes

HUGE = 10**400
STATISTICS = {"axis": [-1], "mean": [0.0] * 6, "variance": [1.0] * 6}
POOLING = {"pool_size": 2, "strides": 2, "padding": "valid", "data_format": "channels_last"}
IMAGE = (4, 4, 2)


def add(
    kind: str,
    settings: dict[str, Any],
    shape: Sequence[int] = (6,),
    arrays: Sequence[NDArray[Any]] = (),
) -> None:
    """Add a layer behind an observation of a shape."""
    steps = Steps(int(np.prod(shape)), "float32")
    inputs = steps.reshape(steps.number(0), tuple(shape))
    layers = {**LAYERS, **CONVOLUTIONS, **NORMALIZATIONS}
    steps.layer = Part(kind, "keras.layers", {"name": "it", **settings}, [])
    layers[kind](steps, steps.layer, [inputs], arrays)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mean": "high"}, "mean is 'high', expected numbers"),
        ({"mean": [[1, 2], [3]]}, r"mean is '\[\[1, 2\], \[3\]\]', expected numbers"),
        ({"mean": {"a": 1}}, r"mean is .*, expected numbers"),
        ({"mean": HUGE}, r"mean is an integer beyond 2\^31, expected numbers"),
        ({"mean": [float("nan")] * 6}, "its settings or weights hold NaN, or give it; save an ear"),
        ({"mean": [0.0] * 5}, "has a mean of 5 and a variance of 6 numbers, expected 6 of each"),
        ({"variance": None}, "variance is 'None', expected numbers"),
        ({"variance": [1.0]}, "has a mean of 6 and a variance of 1 numbers, expected 6 of each"),
        ({"variance": [-1.0] * 6}, "has a variance below 0; save an earlier state of the policy"),
        ({"variance": [float("nan")] * 6}, "its settings or weights hold NaN"),
        ({"axis": ["x"]}, r"axis is .*, expected integers"),
    ],
    ids=[
        *("text", "ragged", "dictionary", "huge", "nan", "few", "no-variance", "one-variance"),
        *("negative", "nan-variance", "axis"),
    ],
)
def test_statistics_that_are_none_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=rf"the layer 'it' \(Normalization\): {words}"):
        add("Normalization", {**STATISTICS, **change})


def test_axis_that_is_not_stated_is_the_last() -> None:
    add("Normalization", {"mean": [0.0] * 6, "variance": [1.0] * 6})


def test_moving_variance_below_zero_is_refused() -> None:
    arrays = [np.ones(6), np.ones(6), np.ones(6), -np.ones(6)]

    with pytest.raises(ModelError, match="has a moving variance below 0; save an earlier state"):
        add("BatchNormalization", {"axis": -1}, arrays=arrays)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        *((f"{kind}Pooling{rank}D", POOLING) for kind in ("Average", "Max") for rank in (1, 2)),
        *(
            (f"Global{kind}Pooling{rank}D", {"data_format": "channels_last"})
            for kind in ("Average", "Max")
            for rank in (1, 2)
        ),
        *((f"ZeroPadding{rank}D", {"padding": 1}) for rank in (1, 2)),
        *((f"Conv{rank}D", {"filters": 2, "kernel_size": 1, "strides": 1}) for rank in (1, 2)),
        ("RepeatVector", {"n": 2}),
    ],
)
def test_inputs_with_other_axes_are_refused(kind: str, settings: dict[str, Any]) -> None:
    rank = int(kind[-2]) + 1 if kind.endswith("D") else 1

    for shape in [(6,), (2, 3), (2, 3, 2), (2, 2, 2, 2)]:
        if len(shape) == rank:
            continue
        with pytest.raises(ModelError, match=r"takes an input of the shape \(.*\), expected a"):
            add(kind, settings, shape)


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        ("Dense", {"units": None}, "units is 'None', expected an integer of 1 or more"),
        ("Dense", {"units": HUGE}, r"units is an integer beyond 2\^31, expected an integer of 1"),
        ("RepeatVector", {}, "n is 'None', expected an integer of 1 or more"),
        ("RepeatVector", {"n": 0}, "n is '0', expected an integer of 1 or more"),
        ("CategoryEncoding", {"output_mode": "one_hot"}, "num_tokens is 'None', expected an int"),
        ("Embedding", {"input_dim": -1}, "input_dim is '-1', expected an integer of 1 or more"),
        ("ReLU", {"max_value": HUGE}, r"max_value is an integer beyond 2\^31, expected a smaller"),
        ("ELU", {"alpha": float("nan")}, "its settings or weights hold NaN"),
        ("Rescaling", {"scale": [HUGE]}, "scale is .*, expected numbers"),
        ("Rescaling", {"offset": float("nan")}, "its settings or weights hold NaN"),
        (
            "Rescaling",
            {"scale": [[1.0]]},
            "scale and offset have to be numbers, or one list of numbers each",
        ),
        ("LayerNormalization", {"axis": -1, "epsilon": HUGE}, "epsilon is .* a smaller number"),
    ],
)
def test_numbers_that_are_none_are_refused(kind: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=rf"the layer 'it' \({kind}\): {words}"):
        add(kind, settings, arrays=[np.ones(6), np.ones(6)])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"strides": HUGE}, r"strides is an integer beyond 2\^31, expected integers"),
        ({"pool_size": 2**31 - 1}, "expected 1 to 128 places"),
    ],
)
def test_windows_beyond_all_sizes_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        add("MaxPooling2D", {**POOLING, **settings}, IMAGE)


@pytest.mark.parametrize(
    ("kind", "settings", "constants", "words"),
    [
        ("Reshape", {"newshape": 7}, [], "does not keep each observation's numbers"),
        ("ExpandDims", {}, [], "axis is 'None', expected integers"),
        ("OneHot", {}, [], "num_classes is 'None', expected an integer of 1 or more"),
        ("Add", {}, [HUGE], "a number of its settings has too many digits"),
        ("Clip", {"x_min": float("nan")}, [], "its settings or weights hold NaN"),
    ],
)
def test_functions_of_wrong_numbers_are_refused(
    kind: str, settings: dict[str, Any], constants: Sequence[float], words: str
) -> None:
    steps = Steps(6, "float32")
    part = steps.layer = Part(kind, "keras.src.ops.numpy", settings, [])

    with pytest.raises(ModelError, match=words):
        FUNCTIONS[kind](Arguments(steps, part, [Result(0), *constants]))


@pytest.mark.parametrize("units", [None, 0, 2**31 - 1, HUGE])
def test_states_of_no_size_are_refused(units: object) -> None:
    with pytest.raises(ModelError, match=r"\(LSTM\): units is .*, expected "):
        state_sizes(Part("LSTM", "keras.layers", {"units": units}, []))
