"""The written SavedModel against NumPy, in a session as Ray 2.0.1 would run it."""

from __future__ import annotations

import dataclasses
import math
import zipfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from policy_server.distributions.action_distribution import ActionDistribution
from policy_server.errors import ExportError
from policy_server.formats.saved_model.loading import load_policy
from policy_server.formats.saved_model.mlp_policy import (
    Activation,
    Categorical,
    DenseLayer,
    GreedyValues,
    MlpPolicy,
    Normal,
    ObservationScaling,
    SquashedNormal,
)
from policy_server.formats.saved_model.writing import (
    export_policy_zip,
    pack_saved_model,
    write_saved_model,
)
from policy_server.policy import ActionComponent, ComponentKind, Float32Array

WIDTH = 6
ROWS = 500

ACTIVATIONS: dict[Activation, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "linear": lambda x: x,
    "relu": lambda x: np.maximum(x, 0.0),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "elu": lambda x: np.where(x > 0, x, np.exp(np.minimum(x, 0)) - 1),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
    "softplus": lambda x: np.log1p(np.exp(x)),
}


def float32(*values: float) -> Float32Array:
    return np.array(values, np.float32)


def mlp(
    distribution: Categorical | Normal | SquashedNormal | GreedyValues,
    activation: Activation = "tanh",
    scaling: ObservationScaling | None = None,
) -> MlpPolicy:
    generator = np.random.default_rng(3)
    widths = (WIDTH, 8, 8, distribution.inputs)
    layers = tuple(
        DenseLayer(
            generator.normal(scale=before**-0.5, size=(before, after)).astype(np.float32),
            generator.normal(scale=0.3, size=after).astype(np.float32),
            "linear" if after == widths[-1] and number == 2 else activation,
        )
        for number, (before, after) in enumerate(pairwise(widths))
    )
    return MlpPolicy(WIDTH, layers, distribution, scaling)


POLICIES = {
    "discrete": mlp(Categorical((4,))),
    "multi_discrete": mlp(Categorical((4, 2, 3))),
    "multi_discrete_of_equal_sizes": mlp(Categorical((3, 3))),
    "masked": mlp(Categorical((4,), mask_start=2)),
    "masked_multi_discrete": mlp(Categorical((2, 3), mask_start=0)),
    "normal_with_one_log_std": mlp(Normal(2, float32(-1.0, 0.3))),
    "normal_with_log_std_from_the_network": mlp(Normal(2)),
    "squashed_normal": mlp(SquashedNormal(2)),
    "greedy": mlp(GreedyValues(4)),
}
every_policy = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)


def observations_for(policy: MlpPolicy) -> Float32Array:
    generator = np.random.default_rng(7)
    rows = generator.normal(size=(ROWS, WIDTH)).astype(np.float32)
    chosen = policy.distribution
    if isinstance(chosen, Categorical) and chosen.mask_start is not None:
        start = chosen.mask_start
        for size in chosen.sizes:
            rows[:, start : start + size] = generator.integers(0, 2, size=(ROWS, size))
            rows[np.arange(ROWS), start + generator.integers(0, size, size=ROWS)] = 1
            start += size
    return rows


def expected_inputs(policy: MlpPolicy, observations: Float32Array) -> NDArray[np.float64]:
    """Return `action_dist_inputs` by NumPy alone."""
    values = observations.astype(np.float64)
    if policy.scaling is not None:
        limit = policy.scaling.limit
        values = np.clip((values - policy.scaling.mean) / policy.scaling.std, -limit, limit)
    for layer in policy.layers:
        values = ACTIVATIONS[layer.activation](values @ layer.weights + layer.bias)
    chosen = policy.distribution
    if isinstance(chosen, Normal) and chosen.log_std is not None:
        values = np.concatenate([values, np.tile(chosen.log_std, (len(values), 1))], axis=1)
    if isinstance(chosen, Categorical) and chosen.mask_start is not None:
        mask = observations[:, chosen.mask_start : chosen.mask_start + chosen.inputs]
        values = np.where(mask != 0, values, np.finfo(np.float32).min)
    return values


def numpy_distribution(policy: MlpPolicy) -> ActionDistribution:
    chosen = policy.distribution
    if isinstance(chosen, Normal | SquashedNormal):
        kind: ComponentKind = "normal" if isinstance(chosen, Normal) else "squashed_normal"
        return ActionDistribution([ActionComponent(kind, chosen.size, 0, 0)])
    sizes = chosen.sizes if isinstance(chosen, Categorical) else (chosen.size,)
    starts = np.cumsum([0, *sizes[:-1]]).tolist()
    parts = [
        ActionComponent("categorical", size, start, column)
        for column, (size, start) in enumerate(zip(sizes, starts, strict=True))
    ]
    return ActionDistribution(parts, is_greedy=isinstance(chosen, GreedyValues))


def answers(
    policy: MlpPolicy, folder: Path, observations: Float32Array, *, is_exploring: bool
) -> dict[str, NDArray[Any]]:
    if not folder.exists():
        write_saved_model(policy, folder)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        loaded = tf.compat.v1.saved_model.loader.load(session, ["serve"], str(folder))
        signature = loaded.signature_def["serving_default"]
        known: dict[str, NDArray[Any]] = session.run(
            {name: tensor.name for name, tensor in signature.outputs.items()},
            {
                signature.inputs["observations"].name: observations,
                signature.inputs["is_training"].name: False,
                signature.inputs["timestep"].name: 1_000_000,
                "default_policy/is_exploring:0": is_exploring,
            },
        )
    return known


def columns(actions: NDArray[Any]) -> NDArray[np.float64]:
    return actions.reshape(len(actions), -1).astype(np.float64)


@every_policy
def test_distribution_inputs_equal_numpy(policy: MlpPolicy, tmp_path: Path) -> None:
    observations = observations_for(policy)

    got = answers(policy, tmp_path / "model", observations, is_exploring=True)

    expected = expected_inputs(policy, observations)
    np.testing.assert_allclose(got["action_dist_inputs"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_each_activation_equals_numpy(activation: Activation, tmp_path: Path) -> None:
    policy = mlp(Categorical((4,)), activation)
    observations = 2 * observations_for(policy)

    got = answers(policy, tmp_path / "model", observations, is_exploring=True)

    expected = expected_inputs(policy, observations)
    np.testing.assert_allclose(got["action_dist_inputs"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("limit", [0.5, math.inf], ids=["clipped", "not_clipped"])
def test_observations_are_scaled_first(limit: float, tmp_path: Path) -> None:
    scaling = ObservationScaling(float32(*range(6)), float32(1, 2, 3, 4, 5, 6), limit)
    policy = mlp(Categorical((4,)), scaling=scaling)
    observations = 5 * observations_for(policy)

    got = answers(policy, tmp_path / "model", observations, is_exploring=True)

    expected = expected_inputs(policy, observations)
    np.testing.assert_allclose(got["action_dist_inputs"], expected, rtol=1e-5, atol=1e-5)


@every_policy
def test_without_exploration_the_action_is_the_mode_with_log_probability_zero(
    policy: MlpPolicy, tmp_path: Path
) -> None:
    observations = observations_for(policy)

    got = answers(policy, tmp_path / "model", observations, is_exploring=False)

    mode = numpy_distribution(policy).mode(got["action_dist_inputs"])
    np.testing.assert_allclose(columns(got["actions_0"]), mode, atol=1e-6)
    np.testing.assert_array_equal(got["action_logp"], np.zeros(ROWS))
    np.testing.assert_array_equal(got["action_prob"], np.ones(ROWS))


@every_policy
def test_log_probability_is_that_of_the_drawn_action(policy: MlpPolicy, tmp_path: Path) -> None:
    observations = observations_for(policy)

    got = answers(policy, tmp_path / "model", observations, is_exploring=True)

    actions = columns(got["actions_0"])
    expected = numpy_distribution(policy).log_probability(got["action_dist_inputs"], actions)
    # Beyond this float32 no longer tells a squashed action from 1.
    is_exact = np.abs(actions).max(axis=1) < 0.999
    is_exact |= not isinstance(policy.distribution, SquashedNormal)
    assert is_exact.mean() > 0.5
    np.testing.assert_allclose(got["action_logp"][is_exact], expected[is_exact], atol=1e-3)
    np.testing.assert_allclose(got["action_prob"], np.exp(got["action_logp"]), rtol=1e-5)


def test_draws_have_the_frequencies_of_the_distribution(tmp_path: Path) -> None:
    policy = POLICIES["discrete"]
    observations = np.repeat(observations_for(policy)[:1], 20_000, axis=0)

    got = answers(policy, tmp_path / "model", observations, is_exploring=True)

    shares = np.bincount(got["actions_0"], minlength=4) / 20_000
    described = numpy_distribution(policy).describe(got["action_dist_inputs"][:1])[0]
    assert described.probabilities is not None
    # Five standard errors of a share: one run in a million fails.
    assert np.abs(shares - described.probabilities[0]).max() < 5 * 0.5 / math.sqrt(20_000)


@pytest.mark.parametrize("is_exploring", [True, False], ids=["drawn", "mode"])
def test_masked_actions_are_never_taken(is_exploring: bool, tmp_path: Path) -> None:  # noqa: FBT001 -- a parameter
    policy = POLICIES["masked"]
    observations = observations_for(policy)

    got = answers(policy, tmp_path / "model", observations, is_exploring=is_exploring)

    mask = observations[:, 2:6]
    assert (mask[np.arange(ROWS), got["actions_0"]] == 1).all()


@every_policy
def test_signature_is_that_of_rllib(policy: MlpPolicy, tmp_path: Path) -> None:
    got = answers(policy, tmp_path / "model", observations_for(policy), is_exploring=True)

    is_integer = isinstance(policy.distribution, Categorical | GreedyValues)
    names = {"actions_0", "action_prob", "action_logp", "action_dist_inputs"}
    is_greedy = isinstance(policy.distribution, GreedyValues)
    assert set(got) == (names | {"q_values"} if is_greedy else names)
    assert got["actions_0"].dtype == (np.int64 if is_integer else np.float32)
    assert got["action_logp"].shape == (ROWS,)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("discrete", []), ("multi_discrete", [4, 2, 3]), ("multi_discrete_of_equal_sizes", [3, 3])],
)
def test_sizes_of_components_stand_in_a_split_of_the_distribution_inputs(
    name: str, sizes: list[int], tmp_path: Path
) -> None:
    write_saved_model(POLICIES[name], tmp_path / "model")

    with tf.Graph().as_default() as graph, tf.compat.v1.Session() as session:
        loaded = tf.compat.v1.saved_model.loader.load(session, ["serve"], str(tmp_path / "model"))
        consumed = loaded.signature_def["serving_default"].outputs["action_dist_inputs"].name
        splits = [
            operation
            for operation in graph.get_operations()
            if operation.type == "SplitV" and operation.inputs[0].name == consumed
        ]
        found = [session.run(operation.inputs[1]).tolist() for operation in splits]
    assert found == ([sizes] if sizes else [])


@every_policy
def test_loader_proves_what_was_exported(policy: MlpPolicy, tmp_path: Path) -> None:
    write_saved_model(policy, tmp_path / "model")

    signature = load_policy(tmp_path / "model").signature

    expected = numpy_distribution(policy)
    assert signature.is_proved
    assert signature.observation_width == WIDTH
    assert signature.is_value_based == expected.is_greedy
    assert signature.components is not None
    assert [(part.kind, part.size) for part in signature.components] == [
        (part.kind, part.size) for part in expected.components
    ]


@every_policy
def test_same_policy_gives_the_same_bytes(policy: MlpPolicy, tmp_path: Path) -> None:
    archives = []
    for name in ("first", "second"):
        write_saved_model(policy, tmp_path / name)
        pack_saved_model(tmp_path / name, tmp_path / f"{name}.zip")
        archives.append((tmp_path / f"{name}.zip").read_bytes())

    assert archives[0] == archives[1]


def test_zip_has_the_model_at_its_root_and_no_event_files(tmp_path: Path) -> None:
    write_saved_model(POLICIES["discrete"], tmp_path / "model")
    (tmp_path / "model" / "events.out.tfevents.1.host").write_bytes(b"events")

    pack_saved_model(tmp_path / "model", tmp_path / "model.zip")

    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        assert archive.namelist() == [
            "saved_model.pb",
            "variables/variables.data-00000-of-00001",
            "variables/variables.index",
        ]


def test_export_proves_the_zip_before_it_takes_its_place(tmp_path: Path) -> None:
    target, seen = tmp_path / "saved_model.zip", []

    def prove(folder: Path) -> None:
        seen.append((target.exists(), (folder / "saved_model.pb").is_file()))

    export_policy_zip(POLICIES["discrete"], target, prove=prove)

    assert seen == [(False, True)]
    assert list(tmp_path.iterdir()) == [target]


def test_export_that_is_not_proved_leaves_everything_as_it_was(tmp_path: Path) -> None:
    target = tmp_path / "saved_model.zip"
    target.write_bytes(b"the old policy")

    def refuse(folder: Path) -> None:
        raise ExportError(f"not the policy: {folder.name}")

    with pytest.raises(ExportError, match="not the policy"):
        export_policy_zip(POLICIES["discrete"], target, prove=refuse)

    assert target.read_bytes() == b"the old policy"
    assert list(tmp_path.iterdir()) == [target]


def test_export_to_a_missing_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="can't be written: No such file"):
        export_policy_zip(
            POLICIES["discrete"], tmp_path / "missing" / "saved_model.zip", prove=lambda _: None
        )


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "outputs_do_not_fit": (
        lambda: dataclasses.replace(POLICIES["discrete"], distribution=Categorical((5,))),
        "the last layer: expected 5 outputs, got 4",
    ),
    "layers_do_not_fit": (
        lambda: dataclasses.replace(POLICIES["discrete"], observation_width=7),
        r"layer 0: weights: expected float32\[7, 8\], got float32\[6, 8\]",
    ),
    "weight_is_nan": (
        lambda: MlpPolicy(1, (DenseLayer(float32(math.nan)[None], float32(0.0)),), GreedyValues(1)),
        "layer 0: weights: holds NaN or infinity; train the policy anew",
    ),
    "weight_is_float64": (
        lambda: MlpPolicy(1, (DenseLayer(np.ones((1, 1)), float32(0.0)),), GreedyValues(1)),  # type: ignore[arg-type]  # the mistake
        r"layer 0: weights: expected float32\[1, 1\], got float64\[1, 1\]",
    ),
    "mask_beyond_the_observation": (
        lambda: mlp(Categorical((4,), mask_start=3)),
        "the action mask: ends at 7, an observation has 6 values",
    ),
    "scaling_of_another_width": (
        lambda: mlp(GreedyValues(2), scaling=ObservationScaling(float32(0.0), float32(1.0))),
        r"the scaling's mean: expected float32\[6\], got float32\[1\]",
    ),
    "log_std_of_another_size": (
        lambda: mlp(Normal(2, float32(0.0))),
        r"log_std: expected float32\[2\], got float32\[1\]",
    ),
    "unknown_activation": (
        lambda: mlp(GreedyValues(2), "swish"),  # type: ignore[arg-type]  # the mistake
        "layer 0: expected one of linear, .*, got swish",
    ),
}


@pytest.mark.parametrize(("make", "message"), WRONG.values(), ids=WRONG)
def test_description_that_does_not_fit_is_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        make()
