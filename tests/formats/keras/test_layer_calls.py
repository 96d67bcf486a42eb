"""Models whose description is written by hand: the order of their calls, and how many they make."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from policy_server.errors import ModelError, PolicyServerError
from tests.support.keras_files import CONFIG, load

ACTION = "actions: {go: {values: action}}"
Entry = dict[str, Any]


def called(kind: str, name: str, *inputs: tuple[str, int], **settings: object) -> Entry:
    """Return a layer that is called once with each of the results: a layer's name and its call."""
    return {
        "class_name": kind,
        "module": "keras.layers",
        "config": {"name": name, **settings},
        "inbound_nodes": [
            {
                "args": [
                    {"class_name": "__keras_tensor__", "config": {"keras_history": [*result, 0]}}
                ],
                "kwargs": {},
            }
            for result in inputs
        ],
    }


def functional(name: str, layers: Sequence[Entry], last: tuple[str, int]) -> Entry:
    """Return a model of layers behind an input of six numbers."""
    first = called("InputLayer", "first", batch_shape=[None, 6], dtype="float32")
    return called(
        "Functional",
        name,
        layers=[first, *layers],
        input_layers=[["first", 0, 0]],
        output_layers=[[*last, 0]],
    )


def written(folder: Path, model: Entry) -> Path:
    (folder / CONFIG).write_text(json.dumps(model))
    with h5py.File(folder / "model.weights.h5", "w"):
        return folder


def activations(names: Sequence[str]) -> list[Entry]:
    """Return layers in a chain."""
    pairs = zip(["first", *names], names, strict=False)
    return [called("Activation", name, (before, 0), activation="relu") for before, name in pairs]


def nested(depth: int) -> Entry:
    """Return a model of models, each of which calls the one within it twice, one after another."""
    model = functional("model", activations(["last"]), ("last", 0))
    for _ in range(depth):
        twice = called("Functional", "inner", ("first", 0), ("inner", 0))
        twice["config"] = {**model["config"], "name": "inner"}
        model = functional("model", [twice], ("inner", 1))
    return model


def test_calls_of_models_within_models_are_counted_by_their_product(tmp_path: Path) -> None:
    folder = written(tmp_path, nested(20))

    with pytest.raises(
        ModelError, match="calls of layers or more, counted through the models in it"
    ):
        load(folder, ACTION)


def test_models_that_are_shared_are_computed(tmp_path: Path) -> None:
    policy = load(written(tmp_path, nested(6)), ACTION)

    assert policy.signature.observation_width == 6


@pytest.mark.parametrize("kind", ["Functional", "Sequential"])
def test_too_many_layers_are_refused(kind: str, tmp_path: Path) -> None:
    model = functional("model", activations([f"a{n}" for n in range(5001)]), ("a5000", 0))
    model["class_name"] = kind

    with pytest.raises(ModelError, match="expected at most 5,000"):
        load(written(tmp_path, model), ACTION)


def test_layers_in_any_order_are_called_in_that_of_their_inputs(tmp_path: Path) -> None:
    chain = activations([f"a{n}" for n in range(2000)])[::-1]

    policy = load(written(tmp_path, functional("model", chain, ("a1999", 0))), ACTION)

    assert policy.signature.family == "deterministic(6)"


def test_two_layers_of_one_name_are_refused(tmp_path: Path) -> None:
    layers = [*activations(["a"]), *activations(["a"])]

    with pytest.raises(ModelError, match=r"'a' \(Activation\): is there twice; save the model aga"):
        load(written(tmp_path, functional("model", layers, ("a", 0))), ACTION)


def repeated(times: int, shapes: Sequence[Sequence[int]]) -> Entry:
    """Return a model that repeats its six numbers, and gives all of these other shapes."""
    names = [f"r{number}" for number in range(len(shapes))]
    entries = [
        called("RepeatVector", "more", ("first", 0), n=times),
        *(
            called("Reshape", name, (before, 0), target_shape=shape)
            for name, before, shape in zip(names, ["more", *names], shapes, strict=False)
        ),
    ]
    return functional("model", entries, ([*names, "more"][-1], 0))


# Each is a result of its own, and none takes memory of its own.
SHAPES = [[n, 600_000 // n] for n in range(1, 4_001) if 600_000 % n == 0]


@pytest.mark.parametrize(
    ("times", "shapes", "words"),
    [
        (10**7, [], r"'more' \(RepeatVector\): its result has 60,000,000 numbers for one observ"),
        (
            100_000,
            SHAPES,
            r"'r48' \(Reshape\): all results up to its own have 30,000,0\d\d numbers",
        ),
    ],
    ids=["one", "all"],
)
def test_results_that_take_too_much_memory_are_refused(
    times: int, shapes: Sequence[Sequence[int]], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=words):
        load(written(tmp_path, repeated(times, shapes)), ACTION)


def image(folder: Path, sizes: Sequence[int], kernel: Sequence[int]) -> Path:
    """Write a model of one convolution, with zeros around its image."""
    convolution = called(
        "Conv2D",
        "windows",
        ("first", 0),
        filters=kernel[3],
        kernel_size=kernel[:2],
        strides=[1, 1],
        padding="same",
        data_format="channels_last",
        groups=1,
        dilation_rate=[1, 1],
    )
    last = called("GlobalMaxPooling2D", "last", ("windows", 0), data_format="channels_last")
    model = functional("model", [convolution, last], ("last", 0))
    model["config"]["layers"][0]["config"]["batch_shape"] = [None, *sizes]
    written(folder, model)
    with h5py.File(folder / "model.weights.h5", "w") as file:
        group = file.create_group("layers/conv2d/vars")
        group["0"], group["1"] = np.zeros(kernel, "f4"), np.zeros(kernel[3], "f4")
    return folder


@pytest.mark.parametrize(
    ("sizes", "kernel", "words"),
    [
        ((200, 200, 1), (200, 200, 1, 1), "its windows have 1,600,000,000 numbers for one"),
        ((10, 1000, 1), (100_000, 1, 1, 1), "its windows have 1,000,000,000 numbers for one"),
        ((100, 100, 8), (20, 20, 8, 320), "up to it 10,240,000,000 numbers are multiplied"),
    ],
    ids=["windows", "tall", "multiplications"],
)
def test_convolutions_that_take_too_long_are_refused(
    sizes: Sequence[int], kernel: Sequence[int], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=rf"'windows' \(Conv2D\): {words}"):
        load(image(tmp_path, sizes, kernel), ACTION)


def test_inputs_that_are_too_wide_together_are_refused(tmp_path: Path) -> None:
    second = called("InputLayer", "second", batch_shape=[None, 600_000], dtype="float32")
    model = functional("model", [second, *activations(["a"])], ("a", 0))
    model["config"]["layers"][0]["config"]["batch_shape"] = [None, 600_000]
    model["config"]["input_layers"] = [["first", 0, 0], ["second", 0, 0]]

    with pytest.raises(ModelError, match="takes 1,200,000 numbers for an observation with its mem"):
        load(written(tmp_path, model), ACTION)


def test_many_outputs_are_looked_at_once(tmp_path: Path) -> None:
    """Each was held against each other: 3,000 took a minute."""
    names = [f"a{number}" for number in range(3000)]
    layers = [called("Activation", name, ("first", 0), activation="tanh") for name in names]
    model = functional("model", layers, ("a0", 0))
    model["config"]["output_layers"] = [[name, 0, 0] for name in names]

    with pytest.raises(PolicyServerError, match="names 1 actions, the policy has 3000; list each"):
        load(written(tmp_path, model), ACTION)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layers": 3}, r"\(Functional\): its layers are no list; save the model again"),
        ({"layers": [{"class_name": "Dense", "module": None}]}, "Dense has no module; save the mo"),
    ],
    ids=["layers", "module"],
)
def test_wrong_layers_are_named_as_what_they_are(
    change: dict[str, Any], words: str, tmp_path: Path
) -> None:
    model = functional("model", activations(["a"]), ("a", 0))
    model["config"].update(change)

    with pytest.raises(ModelError, match=words):
        load(written(tmp_path, model), ACTION)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ([None, True], r"has the open shape \[None, True\]; give the sizes of an observation"),
        ([None], r"'wide' \(Dense\): takes a single number, expected a vector"),
    ],
    ids=["truth", "number"],
)
def test_shapes_that_give_no_vector_are_refused(
    shape: list[object], words: str, tmp_path: Path
) -> None:
    model = functional("model", [called("Dense", "wide", ("first", 0), units=2)], ("wide", 0))
    model["config"]["layers"][0]["config"]["batch_shape"] = shape

    with pytest.raises(ModelError, match=words):
        load(written(tmp_path, model), ACTION)
