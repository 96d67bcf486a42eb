"""Hand-built policies, loaded as a server loads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from policy_server.errors import (
    DistributionError,
    ModelError,
    PolicyFailedError,
    SchemaError,
    UnsupportedAnswerError,
)
from policy_server.policy import PolicyInputs
from policy_server.schema import parse_schema
from tests.support.hand_built import (
    FLOAT32_MIN,
    Part,
    V1Policy,
    answer,
    describe,
    load_policy,
    observations,
    save_functions,
    tf,
    weights,
)

DTYPES = (
    "float16",
    "float32",
    "float64",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "bool",
)
FAILED = "the policy failed on this observation; the server's log has the reason"


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return what `Categorical` makes of logits."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: np.ndarray = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probabilities


@pytest.mark.parametrize("dtype", DTYPES)
def test_observations_of_every_type_give_exact_probabilities(dtype: str, tmp_path: Path) -> None:
    built = V1Policy(dtype=dtype)
    rows = observations() if dtype.startswith("float") else np.abs(observations()).round()
    rows = rows > 1 if dtype == "bool" else rows

    policy = load_policy(built.save(tmp_path / "m"))

    assert policy.signature.is_proved
    assert policy.signature.observation_dtype == dtype
    [component] = describe(policy, rows)
    assert component.probabilities == pytest.approx(softmax(built.expected_inputs(rows)), abs=1e-6)


@pytest.mark.parametrize(
    ("shape", "width"),
    [((None,), 4), ((2, 2, 1), 4), ((2, None, 1), 4), (None, 4), ((), 1), ((4,), 4)],
    ids=["open-width", "image", "image-of-open-width", "unknown-rank", "scalar", "flat"],
)
def test_observations_of_odd_shapes_give_exact_probabilities(
    shape: tuple[int | None, ...] | None, width: int, tmp_path: Path
) -> None:
    built = V1Policy(shape=shape, width=width)
    schema = parse_schema(f"observations: {{a: {{type: 'List[float]', min_items: {width}}}}}")

    policy = load_policy(built.save(tmp_path / "m"), schema)

    rows = observations(width=width)
    assert policy.signature.observation_width == width
    [component] = describe(policy, rows)
    assert component.probabilities == pytest.approx(softmax(built.expected_inputs(rows)), abs=1e-6)


def test_graph_for_a_fixed_batch_answers_any_number_of_rows(tmp_path: Path) -> None:
    built = V1Policy(batch=3)

    policy = load_policy(built.save(tmp_path / "m"))

    for size in (1, 3, 7):
        rows = observations(size)
        [component] = describe(policy, rows)
        expected = softmax(built.expected_inputs(rows))
        assert component.probabilities == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    "built",
    [
        V1Policy(inputs=()),
        V1Policy(inputs=(), unlisted=("is_training", "timestep")),
        V1Policy(inputs=("is_training", "timestep", "prev_action", "prev_reward")),
        V1Policy(signature="answer"),
        V1Policy(observations="obs"),
        V1Policy(outputs=("action_dist_inputs", "action_prob")),
        V1Policy(outputs=("action_dist_inputs",), has_exploring=True, exploration="epsilon"),
        V1Policy(has_exploring=False),
        V1Policy(exploration="random"),
        V1Policy(exploration="random", unlisted=("timestep",), inputs=()),
        V1Policy(exploration="random", inputs=(), has_variable_counter=True),
    ],
    ids=[
        "observation-only",
        "unlisted-inputs",
        "previous-step",
        "signature-of-another-name",
        "observation-of-another-name",
        "probability-only",
        "no-log-probability",
        "no-switch-for-exploration",
        "random-first-steps",
        "random-first-steps-unlisted",
        "random-first-steps-counted-by-a-variable",
    ],
)
def test_export_of_any_shape_is_served_exactly_or_by_its_own_draws(
    built: V1Policy, tmp_path: Path
) -> None:
    policy = load_policy(built.save(tmp_path / "m"))

    rows = observations()
    expected = built.expected_inputs(rows)
    sure = answer(policy, rows, is_deterministic=True)
    assert (sure.actions[:, 0] == expected.argmax(axis=1)).all()
    if policy.signature.is_proved:
        [component] = describe(policy, rows)
        assert component.probabilities == pytest.approx(softmax(expected), abs=1e-6)
    else:
        assert built.outputs == ("action_dist_inputs",)


def test_recurrent_policy_answers_from_the_zero_state(tmp_path: Path) -> None:
    built = V1Policy(inputs=("state_in_0", "seq_lens"))

    policy = load_policy(built.save(tmp_path / "m"))

    rows = observations()
    [component] = describe(policy, rows)
    assert policy.signature.memory == ()
    assert policy.signature.findings[-1] == (
        "recurrent: every answer starts from the zero state, since its state can't be followed: "
        "no output shows to be 'state_in_0' after a step"
    )
    assert component.probabilities == pytest.approx(softmax(built.expected_inputs(rows)), abs=1e-6)


def test_twelve_scrambled_actions_have_their_own_distributions_in_numeric_order(
    tmp_path: Path,
) -> None:
    sizes = [3, 4, 5, 2, 6, 3, 2, 7, 4, 3, 2, 5]
    order = tuple(int(index) for index in np.random.default_rng(5).permutation(len(sizes)))
    built = V1Policy(parts=tuple(Part(sizes=(size,)) for size in sizes), order=order)

    policy = load_policy(built.save(tmp_path / "m"))

    rows = observations()
    starts = np.cumsum([0, *sizes])
    expected = built.expected_inputs(rows)
    names = [action.name for action in policy.signature.action_outputs]
    assert names == [f"actions_{index}" for index in range(12)]
    for index, component in enumerate(describe(policy, rows)):
        part = order.index(index)
        logits = expected[:, starts[part] : starts[part + 1]]
        assert component.probabilities == pytest.approx(softmax(logits), abs=1e-6)


def test_mixed_actions_have_a_component_each(tmp_path: Path) -> None:
    parts = (Part(), Part("normal", (2,)), Part("multi_discrete", (2, 4)))
    built = V1Policy(parts=parts)

    policy = load_policy(built.save(tmp_path / "m"))

    rows = observations()
    expected = built.expected_inputs(rows)
    first, box, second, third = describe(policy, rows)
    assert policy.signature.family == (
        "categorical(3) + normal(2) + categorical(2) + categorical(4)"
    )
    assert first.probabilities == pytest.approx(softmax(expected[:, :3]), abs=1e-6)
    assert box.mean == pytest.approx(expected[:, 3:5], rel=1e-5, abs=1e-6)
    assert box.std == pytest.approx(np.exp(expected[:, 5:7]), rel=1e-5)
    assert second.probabilities == pytest.approx(softmax(expected[:, 7:9]), abs=1e-6)
    assert third.probabilities == pytest.approx(softmax(expected[:, 9:]), abs=1e-6)


def test_temperature_of_the_graph_is_the_temperature_of_the_answer(tmp_path: Path) -> None:
    built = V1Policy(parts=(Part("multi_discrete", (3, 2)),), temperature=2.5)

    policy = load_policy(built.save(tmp_path / "m"))

    rows = observations()
    first, second = describe(policy, rows)
    expected = built.expected_inputs(rows) / 2.5
    assert first.probabilities == pytest.approx(softmax(expected[:, :3]), abs=1e-6)
    assert second.probabilities == pytest.approx(softmax(expected[:, 3:]), abs=1e-6)


@pytest.mark.parametrize("masked", [FLOAT32_MIN, -np.inf], ids=["float32-min", "minus-infinity"])
def test_masked_action_has_probability_zero_and_is_never_drawn(
    masked: float, tmp_path: Path
) -> None:
    def mask(rows: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        return tf.where(tf.pad(rows[:, :2], [[0, 0], [0, 1]]) > 0, masked, logits)

    built = V1Policy(network=mask)

    policy = load_policy(built.save(tmp_path / "m"))

    rows = np.repeat([[1.0, -1.0, 0.5, 2.0]], 2000, axis=0)
    drawn = answer(policy, rows)
    [component] = describe(policy, rows[:1])
    expected = softmax(built.expected_inputs(rows[:1])[:, 1:])
    assert policy.signature.is_proved
    assert set(drawn.actions[:, 0]) == {1.0, 2.0}
    assert component.probabilities is not None
    assert component.probabilities[0, 0] == 0.0
    assert component.probabilities[:, 1:] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("bounds", [None, (-1.0, 0.25)], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("kind", ["normal", "squashed"])
def test_log_std_is_clipped_as_the_graph_clips_it(
    kind: str, bounds: tuple[float, float] | None, tmp_path: Path
) -> None:
    built = V1Policy(parts=(Part(kind, (2,)),), log_std_bounds=bounds)

    policy = load_policy(built.save(tmp_path / "m"))

    rows = observations() / 3
    [component] = describe(policy, rows)
    expected = built.expected_inputs(rows)
    log_std = expected[:, 2:] if bounds is None else np.clip(expected[:, 2:], *bounds)
    family = "normal(2)" if kind == "normal" else "squashed_normal(2)"
    assert policy.signature.family == family
    assert component.mean == pytest.approx(expected[:, :2], rel=1e-5, abs=1e-6)
    assert component.std == pytest.approx(np.exp(log_std), rel=1e-5)


def test_action_itself_is_a_deterministic_component(tmp_path: Path) -> None:
    built = V1Policy(parts=(Part("deterministic", (2,)),))

    policy = load_policy(built.save(tmp_path / "m"))

    rows = observations()
    assert policy.signature.family == "deterministic(2)"
    drawn = answer(policy, rows)
    assert drawn.actions == pytest.approx(built.expected_inputs(rows), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(
    "outputs",
    [
        ("action_dist_inputs", "action_logp", "q_values"),
        ("action_dist_inputs", "q_values"),
        ("q_values",),
    ],
    ids=["q-values", "no-log-probability", "q-values-alone"],
)
def test_policy_over_q_values_takes_its_best_action_with_probability_one(
    outputs: tuple[str, ...], tmp_path: Path
) -> None:
    built = V1Policy(exploration="epsilon", outputs=outputs)

    policy = load_policy(built.save(tmp_path / "m"))

    rows = np.repeat(observations(), 50, axis=0)
    best = built.expected_inputs(rows).argmax(axis=1)
    drawn = answer(policy, rows)
    assert policy.signature.family == "greedy over categorical(3)"
    assert (drawn.actions[:, 0] == best).all()
    assert (drawn.probability == 1.0).all()
    [component] = describe(policy, rows[:3])
    assert (component.probabilities == np.eye(3)[best[:3]]).all()


def test_seeded_draw_of_tensorflow_is_the_same_to_the_last_bit_in_any_batch(
    tmp_path: Path,
) -> None:
    built = V1Policy(parts=(Part("normal", (2,)),), width=9, shape=(9,))
    policy = load_policy(built.save(tmp_path / "m"), engine="tensorflow")
    rows = np.random.default_rng(1).normal(size=(33, 9)).astype(np.float32)
    seeds = np.where(np.arange(33) % 4 == 1, -1, np.arange(33))

    for size in (2, 8, 33):
        together = policy.infer(PolicyInputs.of(rows[:size], seeds=seeds[:size]))
        for row in np.flatnonzero(seeds[:size] >= 0):
            alone = policy.infer(PolicyInputs.of(rows[row : row + 1], seeds=seeds[row : row + 1]))
            assert alone.actions[0].tobytes() == together.actions[row].tobytes()


def test_family_that_cannot_be_proved_is_drawn_by_the_graph(tmp_path: Path) -> None:
    policy = load_policy(V1Policy(parts=(Part("dirichlet", (3,)),)).save(tmp_path / "m"))

    rows = observations()
    drawn, sure = answer(policy, rows), answer(policy, rows, is_deterministic=True)
    assert policy.signature.components is None
    assert policy.signature.findings[-1].endswith(": the graph's own actions are served")
    assert drawn.distribution is None
    assert drawn.actions.sum(axis=1) == pytest.approx(np.ones(len(rows)), abs=1e-5)
    assert (answer(policy, rows).actions != drawn.actions).any()
    assert (answer(policy, rows, is_deterministic=True).actions == sure.actions).all()
    assert np.isnan(sure.probability).all()
    assert np.isfinite(drawn.probability).all()


def test_batch_of_draws_and_modes_is_told_apart_by_the_graph(tmp_path: Path) -> None:
    policy = load_policy(V1Policy(parts=(Part("dirichlet", (3,)),)).save(tmp_path / "m"))
    rows = observations(4).astype(np.float32)

    mixed = policy.infer(PolicyInputs(rows, np.array([True, False] * 2), np.full(4, -1)))

    sure = answer(policy, rows, is_deterministic=True)
    assert (mixed.actions[::2] == sure.actions[::2]).all()
    assert (mixed.actions[1::2] != sure.actions[1::2]).any()
    assert np.isnan(mixed.probability).tolist() == [True, False, True, False]


def test_policy_without_any_probability_is_drawn_without_one(tmp_path: Path) -> None:
    built = V1Policy(parts=(Part("dirichlet", (3,)),), outputs=(), has_exploring=False)

    policy = load_policy(built.save(tmp_path / "m"))

    drawn = answer(policy, observations())
    assert policy.signature.findings == (
        "nothing shows what its actions are drawn from: the graph's own actions are served",
    )
    assert np.isnan(drawn.probability).all()
    with pytest.raises(UnsupportedAnswerError, match="no deterministic action: nothing shows what"):
        answer(policy, observations(), is_deterministic=True)


def test_log_probability_alone_gives_the_probability_of_a_draw(tmp_path: Path) -> None:
    built = V1Policy(outputs=("action_logp",))

    policy = load_policy(built.save(tmp_path / "m"))

    rows = observations()
    drawn = answer(policy, rows)
    chosen = drawn.actions[:, :1].astype(int)
    expected = np.take_along_axis(softmax(built.expected_inputs(rows)), chosen, axis=1)[:, 0]
    assert drawn.probability == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("output", "value"), [("action_logp", 0.0), ("action_prob", 1.0)])
def test_log_probability_that_is_always_zero_is_none(
    output: str, value: float, tmp_path: Path
) -> None:
    """RLlib's exploration by noise or by chance calls each draw certain."""

    def policy(observations: tf.Tensor) -> dict[str, tf.Tensor]:
        rows = tf.shape(observations)[0]
        drawn = tf.random.uniform([rows], maxval=3, dtype=tf.int64)
        return {"actions_0": drawn, output: tf.fill([rows], value)}

    save_functions(tmp_path / "m", policy, {"observations": ([None, 4], "float32")})

    drawn = answer(load_policy(tmp_path / "m"), observations())

    assert np.isnan(drawn.log_probability).all()
    assert np.isnan(drawn.probability).all()


def test_draw_that_the_graph_is_sure_of_keeps_its_probability(tmp_path: Path) -> None:
    """A log-probability of 0 is one where others are not 0."""

    def policy(observations: tf.Tensor) -> dict[str, tf.Tensor]:
        drawn = tf.cast(observations[:, 0] > 0, tf.int64)
        chance = tf.where(observations[:, 0] > 0, 0.0, -1.5)
        return {"actions_0": drawn, "action_logp": chance}

    save_functions(tmp_path / "m", policy, {"observations": ([None, 4], "float32")})

    drawn = answer(load_policy(tmp_path / "m"), np.array([[1.0, 0, 0, 0], [-1.0, 0, 0, 0]]))

    assert drawn.log_probability.tolist() == [0.0, -1.5]


def test_density_beyond_float32_and_impossible_probability_are_told_apart(tmp_path: Path) -> None:
    def policy(observations: tf.Tensor) -> dict[str, tf.Tensor]:
        drawn = observations[:, :2] + tf.random.gamma([2], 1.0)
        return {"actions_0": drawn, "action_prob": observations[:, 2]}

    save_functions(tmp_path / "m", policy, {"observations": ([None, 4], "float32")})

    rows = np.array([[0.0, 0, np.inf, 0], [0.0, 0, -1, 0], [0.0, 0, 0, 0], [0.0, 0, 0.25, 0]])
    drawn = answer(load_policy(tmp_path / "m"), rows)

    assert drawn.log_probability[0] == np.inf
    assert np.isnan(drawn.log_probability[1:3]).all()
    assert drawn.probability[3] == pytest.approx(0.25)


def test_impossible_probability_is_left_out(tmp_path: Path) -> None:
    built = V1Policy(parts=(Part(), Part("dirichlet", (3,))), outputs=("action_prob",))
    folder = built.save(tmp_path / "m")
    assert np.isfinite(answer(load_policy(folder), observations()).probability).all()

    def policy(observations: tf.Tensor) -> dict[str, tf.Tensor]:
        rows = tf.shape(observations)[0]
        return {"actions_0": tf.ones([rows], tf.int64), "action_prob": tf.fill([rows], 1.9)}

    save_functions(tmp_path / "f", policy, {"observations": ([None, 4], "float32")})
    assert np.isnan(answer(load_policy(tmp_path / "f"), observations()).probability).all()


def test_noisy_network_is_drawn_by_the_graph_and_has_no_distribution(tmp_path: Path) -> None:
    def noisy(_rows: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        return logits + tf.random.normal([3])

    built = V1Policy(
        network=noisy,
        exploration="epsilon",
        outputs=("action_dist_inputs", "action_logp", "q_values"),
    )

    policy = load_policy(built.save(tmp_path / "m"))

    assert policy.signature.components is None
    assert policy.signature.is_value_based
    with pytest.raises(UnsupportedAnswerError, match="draws new noise at every pass"):
        answer(policy, observations(), is_deterministic=True)
    rows = np.zeros((1, 4))
    # The rarest is one in eight draws.
    assert {answer(policy, rows).actions[0, 0] for _ in range(400)} == {0.0, 1.0, 2.0}


def test_seed_is_refused_where_the_graph_draws(tmp_path: Path) -> None:
    policy = load_policy(V1Policy(parts=(Part("dirichlet", (3,)),)).save(tmp_path / "m"))

    with pytest.raises(UnsupportedAnswerError, match="a seed needs a policy whose distribution is"):
        answer(policy, observations(), seed=3)


def test_seed_makes_a_draw_reproducible_row_by_row(tmp_path: Path) -> None:
    policy = load_policy(V1Policy().save(tmp_path / "m"))
    rows = np.repeat(observations(1), 300, axis=0)

    first, second = answer(policy, rows, seed=3), answer(policy, rows[:2], seed=3)

    assert len(set(first.actions[:, 0])) == 1
    assert (first.actions[:2] == second.actions).all()
    assert len(set(answer(policy, rows).actions[:, 0])) > 1


def test_draws_and_modes_of_one_batch_are_told_apart(tmp_path: Path) -> None:
    built = V1Policy()
    policy = load_policy(built.save(tmp_path / "m"))
    rows = np.repeat(observations(1), 400, axis=0).astype(np.float32)
    is_deterministic = np.arange(400) % 2 == 0

    mixed = policy.infer(PolicyInputs(rows, is_deterministic, np.full(400, -1)))

    best = built.expected_inputs(rows).argmax(axis=1)
    assert (mixed.actions[is_deterministic, 0] == best[is_deterministic]).all()
    assert len(set(mixed.actions[~is_deterministic, 0])) > 1


def test_policy_that_fails_on_some_observations_is_served_for_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def picky(rows: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        with tf.control_dependencies([tf.debugging.assert_less(rows, 1.5, message="too large")]):
            return tf.identity(logits)

    built = V1Policy(network=picky)

    policy = load_policy(built.save(tmp_path / "m"))

    assert policy.signature.is_proved
    assert not caplog.records
    describe(policy, np.zeros((1, 4)))
    with pytest.raises(PolicyFailedError) as caught:
        describe(policy, np.full((1, 4), 2.0))
    assert caught.value.message == FAILED
    assert "too large" in str(caught.value.__cause__)
    # Who has asked logs it, once.
    assert not caplog.records


def test_policy_that_gives_nan_on_some_observations_says_so_for_these(tmp_path: Path) -> None:
    policy = load_policy(
        V1Policy(network=lambda rows, logits: logits + tf.math.log(rows[:, :1] + 3)).save(
            tmp_path / "m"
        )
    )

    describe(policy, np.zeros((1, 4)))
    with pytest.raises(DistributionError, match="hold NaN"):
        describe(policy, np.full((1, 4), -5.0))


def test_graph_that_draws_nan_says_so(tmp_path: Path) -> None:
    def network(rows: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
        return values + tf.math.log(rows[:, :1] + 100)

    built = V1Policy(parts=(Part("dirichlet", (3,)),), network=network)
    policy = load_policy(built.save(tmp_path / "m"))

    with pytest.raises(DistributionError, match="the policy's actions hold NaN"):
        answer(policy, np.full((1, 4), -500.0))


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (Part(), "the policy fails on an observation of 4 values: Received a label value"),
        (
            Part("normal", (2,)),
            "the policy gives no answer on each of 194 observations",
        ),
        (
            Part("dirichlet", (3,)),
            "the policy gives no answer on each of 194 observations",
        ),
    ],
    ids=["categorical", "normal", "unknown"],
)
def test_policy_whose_weights_are_nan_is_refused(part: Part, expected: str, tmp_path: Path) -> None:
    built = V1Policy(parts=(part,), network=lambda _rows, logits: logits * np.nan)

    with pytest.raises(ModelError) as caught:
        load_policy(built.save(tmp_path / "m"))

    assert expected in caught.value.message
    assert "\n" not in caught.value.message


def test_policy_that_fails_on_every_observation_is_refused(tmp_path: Path) -> None:
    def network(rows: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        return logits + tf.reshape(rows, [-1, 3])[:1]

    with pytest.raises(ModelError, match="fails on an observation of 4 values"):
        load_policy(V1Policy(network=network).save(tmp_path / "m"))


def test_other_input_beside_the_observation_is_refused(tmp_path: Path) -> None:
    built = V1Policy(inputs=("action_mask",))

    with pytest.raises(ModelError, match="needs the input 'action_mask' beside the observation"):
        load_policy(built.save(tmp_path / "m"))


def test_memory_whose_length_nothing_tells_is_refused(tmp_path: Path) -> None:
    built = V1Policy(inputs=("memory", "seq_lens"))

    with pytest.raises(ModelError, match="the input 'memory' is a memory of open length"):
        load_policy(built.save(tmp_path / "m"))


def test_open_width_that_nothing_tells_is_refused(tmp_path: Path) -> None:
    def policy(observations: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"actions_0": tf.argmax(observations, axis=1)}

    folder = save_functions(tmp_path / "m", policy, {"observations": ([None, None], "float32")})

    with pytest.raises(ModelError, match="leaves the width of an observation open"):
        load_policy(folder)


def test_open_width_that_the_weights_hide_is_the_schemas(tmp_path: Path) -> None:
    def policy(observations: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"actions_0": tf.argmax(observations, axis=1), "action_dist_inputs": observations}

    folder = save_functions(tmp_path / "m", policy, {"observations": ([None, None], "float32")})

    loaded = load_policy(folder, parse_schema("observations: {a: {type: int}, b: {type: int}}"))

    assert loaded.signature.observation_width == 2
    assert (answer(loaded, np.array([[1, 2], [3, 0]])).actions[:, 0] == [1, 0]).all()


def test_schema_of_another_width_is_refused_with_both_figures(tmp_path: Path) -> None:
    folder = V1Policy().save(tmp_path / "m")

    with pytest.raises(SchemaError) as caught:
        load_policy(folder, parse_schema("observations: {a: {type: int}}"))

    assert "gives 1 values, the policy expects 4" in caught.value.message


def test_schema_of_other_actions_is_refused(tmp_path: Path) -> None:
    folder = V1Policy().save(tmp_path / "m")

    with pytest.raises(SchemaError) as caught:
        load_policy(folder, parse_schema("parameters: {discrete: False}"))

    assert "parameters.discrete: is False, the policy's actions are integers" in (
        caught.value.message
    )


def test_flag_that_changes_no_answer_is_a_finding(tmp_path: Path) -> None:
    folder = V1Policy().save(tmp_path / "m")

    policy = load_policy(folder, parse_schema("parameters: {tuple: True}"))

    assert "parameters.tuple: is True, the policy gives one action" in policy.signature.findings[-1]


def test_schema_names_actions_and_gives_bounds_in_the_environments_units(tmp_path: Path) -> None:
    built = V1Policy(parts=(Part("normal", (2,)),))
    schema = parse_schema("actions: {aim: {low: -10, high: 10}}")

    policy = load_policy(built.save(tmp_path / "m"), schema)

    rows = observations() / 10
    sure = answer(policy, rows, is_deterministic=True)
    expected = np.clip(built.expected_inputs(rows)[:, :2] * 10, -10, 10)
    assert policy.signature.components is not None
    assert policy.signature.components[0].name == "aim"
    assert sure.actions == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_functions_and_branches_are_read_like_a_flat_graph(tmp_path: Path) -> None:
    kernel, bias = weights(4, 5)
    variables = [tf.Variable(kernel), tf.Variable(bias)]

    @tf.function
    def network(rows: tf.Tensor) -> tf.Tensor:
        return tf.nn.bias_add(tf.matmul(rows, variables[0]), variables[1])

    @tf.function
    def draw(logits: tf.Tensor) -> tuple[tf.Tensor, ...]:
        actions, chance = [], tf.zeros([tf.shape(logits)[0]])
        for part in tf.split(logits, [3, 2], axis=1):
            action = tf.squeeze(tf.random.categorical(part, 1), 1)
            chance -= tf.nn.sparse_softmax_cross_entropy_with_logits(labels=action, logits=part)
            actions.append(action)
        return (*actions, chance)

    @tf.function
    def best(logits: tf.Tensor) -> tuple[tf.Tensor, ...]:
        parts = tf.split(logits, [3, 2], axis=1)
        modes = [tf.argmax(part, axis=1) for part in parts]
        return (*modes, tf.zeros([tf.shape(logits)[0]]))

    def policy(observations: tf.Tensor, explore: tf.Tensor) -> dict[str, tf.Tensor]:
        logits = network(observations)
        _, logits = tf.while_loop(
            lambda step, _: step < 2, lambda step, values: (step + 1, values + 0.0), [0, logits]
        )
        logits = tf.ensure_shape(logits, [None, 5])
        first, second, chance = tf.cond(explore, lambda: draw(logits), lambda: best(logits))
        return {
            "actions_0": first,
            "actions_1": second,
            "action_logp": chance,
            "action_dist_inputs": logits,
        }

    folder = save_functions(
        tmp_path / "m",
        policy,
        {"observations": ([None, 4], "float32"), "explore": ([], "bool")},
        variables=variables,
    )

    loaded = load_policy(folder)

    rows = observations()
    logits = rows.astype(np.float32) @ kernel + bias
    first, second = describe(loaded, rows)
    assert loaded.signature.family == "categorical(3) + categorical(2)"
    assert loaded.signature.is_proved
    assert first.probabilities == pytest.approx(softmax(logits[:, :3]), abs=1e-6)
    assert second.probabilities == pytest.approx(softmax(logits[:, 3:]), abs=1e-6)
