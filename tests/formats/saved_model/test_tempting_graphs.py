"""Graphs that tempt a loader to state a distribution which their own draws refute.

Each is a policy whose outputs look like a known family's, and whose draws are something else: by a
step between the distribution's inputs and the draw, by another way from the observation to the
action, or by noise. What is stated has to be what the graph draws; the rest is left to the graph.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from policy_server.distributions.action_distribution import ActionDistribution
from policy_server.formats.saved_model.frequency import judge_draws
from policy_server.policy import Policy
from tests.support.hand_built import Part, V1Policy, answer, load_policy, tf

DISCRETE = (Part(),)
BOX = (Part("normal", (2,)),)
MEANS = (Part("deterministic", (2,)),)
Sampler = Callable[[Any, Any], tuple[list[Any], Any, list[Any]]]


def categorical(logits: Any, *, sampled: Any = None, stated: Any = None) -> Any:  # noqa: ANN401 -- TensorFlow is untyped
    """Return a choice, with the log-probability of other logits than it is drawn from."""
    if sampled is None:
        sampled = tf.random.categorical(logits, 1)[:, 0]
    logits = logits if stated is None else stated
    chance = -tf.nn.sparse_softmax_cross_entropy_with_logits(labels=sampled, logits=logits)
    return [sampled], chance, [tf.argmax(logits, axis=1)]


def normal(mean: Any, std: Any, *, value: Any = None, noise: Any = None) -> Any:  # noqa: ANN401 -- TensorFlow is untyped
    """Return a normal draw with its own log-density."""
    if noise is None:
        noise = tf.random.normal(tf.shape(mean))
    value = mean + std * noise if value is None else value
    density = -0.5 * (((value - mean) / std) ** 2 + np.log(2 * np.pi)) - tf.math.log(std)
    return [value], tf.reduce_sum(density, axis=1), [mean]


def halves(inputs: Any) -> tuple[Any, Any]:  # noqa: ANN401 -- TensorFlow is untyped
    """Return mean and log of the deviation."""
    mean, log_std = tf.split(inputs, 2, axis=1)
    return mean, log_std


def rows_of(inputs: Any) -> Any:  # noqa: ANN401 -- TensorFlow is untyped
    """Return the number of observations."""
    return tf.shape(inputs)[0]


def epsilon_greedy(_rows: Any, values: Any) -> Any:  # noqa: ANN401 -- TensorFlow is untyped
    """Return the best action in 80 % of the draws, any in the others, called certain."""
    anything = tf.random.uniform([rows_of(values)], maxval=3, dtype=tf.int64)
    is_random = tf.random.uniform([rows_of(values)]) < 0.2
    best = tf.argmax(values, axis=1)
    return [tf.where(is_random, anything, best)], tf.zeros_like(values[:, 0]), [best]


def mixed(_rows: Any, logits: Any) -> Any:  # noqa: ANN401 -- TensorFlow is untyped
    """Return a choice that is uniform in 20 % of the draws."""
    drawn = tf.random.categorical(logits, 1)[:, 0]
    anything = tf.random.uniform([rows_of(logits)], maxval=3, dtype=tf.int64)
    chosen = tf.where(tf.random.uniform([rows_of(logits)]) < 0.2, anything, drawn)
    return categorical(logits, sampled=chosen)


def clipped(_rows: Any, inputs: Any) -> Any:  # noqa: ANN401 -- TensorFlow is untyped
    """Return draws that are clipped to [-1, 1], with the density of the unclipped."""
    mean, log_std = halves(inputs)
    drawn = mean + tf.exp(log_std) * tf.random.normal(tf.shape(mean))
    [_], chance, sure = normal(mean, tf.exp(log_std), value=drawn)
    return [tf.clip_by_value(drawn, -1.0, 1.0)], chance, sure


def squashed_to(limit: float) -> Sampler:
    """Return a sampler whose tanh is clipped, as SAC's is, but far from 1."""

    def sampler(_rows: Any, inputs: Any) -> Any:  # noqa: ANN401 -- TensorFlow is untyped
        mean, log_std = halves(inputs)
        value = mean + tf.exp(log_std) * tf.random.normal(tf.shape(mean))
        squashed = tf.clip_by_value(tf.tanh(value), -limit, limit)
        density = -0.5 * (((value - mean) / tf.exp(log_std)) ** 2 + np.log(2 * np.pi)) - log_std
        density -= tf.math.log(1 - squashed**2 + 1e-6)
        return [squashed], tf.reduce_sum(density, axis=1), [tf.tanh(mean)]

    return sampler


def by_the_first(_rows: Any, logits: Any) -> Any:  # noqa: ANN401 -- TensorFlow is untyped
    """Return two choices, the second of which follows the first."""
    first, second = tf.split(logits, [3, 3], axis=1)
    one = tf.random.categorical(first, 1)[:, 0]
    other = tf.random.categorical(second + tf.one_hot(one, 3) * 3, 1)[:, 0]
    [_], chance, _ = categorical(first, sampled=one)
    [_], other_chance, _ = categorical(second, sampled=other)
    modes = [tf.argmax(first, axis=1), tf.argmax(second, axis=1)]
    return [one, other], chance + other_chance, modes


def one_noise(_rows: Any, inputs: Any) -> Any:  # noqa: ANN401 -- TensorFlow is untyped
    """Return two dimensions that share their noise."""
    mean, log_std = halves(inputs)
    noise = tf.tile(tf.random.normal([rows_of(inputs), 1]), [1, 2])
    return normal(mean, tf.exp(log_std), noise=noise)


def one_noise_for_all(_rows: Any, inputs: Any) -> Any:  # noqa: ANN401 -- TensorFlow is untyped
    """Return draws that share their noise among the observations of a batch."""
    mean, log_std = halves(inputs)
    return normal(mean, tf.exp(log_std), noise=tf.random.normal([1, 2]) + 0 * mean)


def two_hills(_rows: Any, inputs: Any) -> Any:  # noqa: ANN401 -- TensorFlow is untyped
    """Return draws of a mixture of two normal distributions."""
    mean, log_std = halves(inputs)
    side = tf.where(tf.random.uniform(tf.shape(mean)) < 0.5, -1.0, 1.0)
    value = mean + side + tf.exp(log_std) * tf.random.normal(tf.shape(mean))
    return normal(mean, tf.exp(log_std), value=value)


def switched(threshold: float) -> Sampler:
    """Return a sampler that is uniform where a logit is large."""

    def sampler(_rows: Any, logits: Any) -> Any:  # noqa: ANN401 -- TensorFlow is untyped
        is_large = tf.reduce_max(logits, axis=1, keepdims=True) > threshold
        return categorical(tf.where(is_large, tf.zeros_like(logits), logits))

    return sampler


def masked_beyond(_rows: Any, logits: Any) -> Any:  # noqa: ANN401 -- TensorFlow is untyped
    """Return a choice whose logits are masked where one is very small."""
    return categorical(tf.where(logits < -500.0, tf.float32.min, logits))


def masked_by_observation(rows: Any, logits: Any) -> Any:  # noqa: ANN401 -- TensorFlow is untyped
    """Return a choice that the observation masks behind the distribution's inputs."""
    return categorical(tf.where(rows[:, :3] > 900.0, tf.float32.min, logits))


def for_all_at_once(_rows: Any, logits: Any) -> Any:  # noqa: ANN401 -- TensorFlow is untyped
    """Return choices that are flat if any logit of the batch is large."""
    is_large = tf.reduce_max(logits) > 1000.0
    return categorical(tf.cond(is_large, lambda: logits * 0, lambda: logits))


def by_batch_size(_rows: Any, logits: Any) -> Any:  # noqa: ANN401 -- TensorFlow is untyped
    """Return choices whose temperature follows the size of the batch."""
    return categorical(logits / tf.where(rows_of(logits) > 100, 3.0, 1.0))


def same_every_time(_rows: Any, inputs: Any) -> Any:  # noqa: ANN401 -- TensorFlow is untyped
    """Return draws with the same noise at every call."""
    mean, log_std = halves(inputs)
    noise = tf.random.stateless_normal(tf.shape(mean), seed=[1, 2])
    return normal(mean, tf.exp(log_std), noise=noise)


def with_noise(noise: Callable[[Any], Any]) -> Sampler:
    """Return a sampler of mean + deviation x some noise."""

    def sampler(_rows: Any, inputs: Any) -> Any:  # noqa: ANN401 -- TensorFlow is untyped
        mean, log_std = halves(inputs)
        return normal(mean, tf.exp(log_std), noise=noise(tf.shape(mean)))

    return sampler


def with_std(std: Callable[[Any], Any]) -> Sampler:
    """Return a normal sampler whose deviation is a function of the second half."""
    return lambda _rows, inputs: normal(halves(inputs)[0], std(halves(inputs)[1]))


def of_means(std: Any) -> Sampler:  # noqa: ANN401 -- TensorFlow is untyped
    """Return a normal sampler whose deviation is not among the distribution's inputs."""
    return lambda _rows, inputs: normal(inputs, std() * tf.ones_like(inputs))


def without_log_probability(sampler: Sampler) -> Sampler:
    """Return a sampler that calls every action certain."""

    def silent(rows: Any, inputs: Any) -> Any:  # noqa: ANN401 -- TensorFlow is untyped
        drawn, chance, sure = sampler(rows, inputs)
        return drawn, tf.zeros_like(chance), sure

    return silent


def batch_norm(_rows: Any, values: Any) -> Any:  # noqa: ANN401 -- TensorFlow is untyped
    """Normalise by the statistics of the batch."""
    mean, variance = tf.nn.moments(values, [0])
    return (values - mean) / tf.sqrt(variance + 1e-3)


def noisy_when_large(rows: Any, values: Any) -> Any:  # noqa: ANN401 -- TensorFlow is untyped
    """Add noise for observations that no probe is."""
    noise = tf.random.normal(tf.shape(values))
    return values + tf.where(tf.abs(rows[:, :1]) > 1e4, noise, tf.zeros_like(noise))


def variable(name: str, value: Any) -> Any:  # noqa: ANN401 -- TensorFlow is untyped
    """Return a variable of the policy."""
    return tf.compat.v1.get_variable(f"policy/{name}", initializer=np.float32(value))


def updated(_rows: Any, logits: Any) -> Any:  # noqa: ANN401 -- TensorFlow is untyped
    """Return a choice by a temperature that each call sets first."""
    temperature = tf.compat.v1.get_variable(
        "policy/heat", initializer=np.float32(1.0), use_resource=True
    )
    with tf.control_dependencies([tf.compat.v1.assign(temperature, 5.0)]):
        return categorical(logits / temperature.read_value())


def of_one_seed(_rows: Any, logits: Any) -> Any:  # noqa: ANN401 -- TensorFlow is untyped
    """Return two choices that are drawn with one seed."""
    one, other = tf.split(logits, [3, 3], axis=1)
    first = tf.random.categorical(one, 1, seed=9)[:, 0]
    second = tf.random.categorical(other, 1, seed=9)[:, 0]
    [_], chance, [mode] = categorical(one, sampled=first)
    [_], other_chance, [other_mode] = categorical(other, sampled=second)
    return [first, second], chance + other_chance, [mode, other_mode]


def greedy_but(chance: Any, random: Any) -> Sampler:  # noqa: ANN401 -- TensorFlow is untyped
    """Return a sampler that looks like epsilon-greedy over Q values."""

    def sampler(rows: Any, values: Any) -> Any:  # noqa: ANN401 -- TensorFlow is untyped
        best = tf.argmax(values, axis=1)
        drawn = tf.where(chance(rows_of(values)), random(rows, values), best)
        return [drawn], tf.zeros_like(values[:, 0]), [best]

    return sampler


def noisy_center(noise: Any) -> Sampler:  # noqa: ANN401 -- TensorFlow is untyped
    """Return a sampler that looks like a computed action with RLlib's noise."""

    def sampler(_rows: Any, values: Any) -> Any:  # noqa: ANN401 -- TensorFlow is untyped
        counter = tf.compat.v1.get_variable(
            "policy/timestep", initializer=np.int64(0), trainable=False
        )
        scale = tf.where(counter < 1000, 1.0, 0.5)
        drawn = tf.clip_by_value(values + scale * noise(values), -100.0, 100.0)
        return [drawn], tf.zeros_like(values[:, 0]), [values]

    return sampler


def is_marked(rows: Any) -> Any:  # noqa: ANN401 -- TensorFlow is untyped
    """Return 1 where an observation of the batch is one that no probe is, else 0."""
    return tf.reduce_max(tf.cast(tf.equal(rows[:, 0], 77.25), tf.int32))


Q_VALUES = ("action_dist_inputs", "action_logp", "q_values")
LEFT_TO_THE_GRAPH: dict[str, V1Policy] = {
    "temperature of a lone observation": V1Policy(
        sampler=lambda _, x: categorical(x / tf.where(tf.equal(rows_of(x), 1), 5.0, 1.0), stated=x)
    ),
    "temperature of the sixth observation": V1Policy(
        sampler=lambda _, x: categorical(
            x / tf.where(tf.equal(tf.range(rows_of(x))[:, None], 5), 5.0, 1.0), stated=x
        )
    ),
    "observations swapped in pairs": V1Policy(
        sampler=lambda _, x: categorical(
            tf.cond(tf.equal(rows_of(x), 2), lambda: x[::-1], lambda: x), stated=x
        )
    ),
    "a variable that each call sets": V1Policy(sampler=updated),
    "choices of one seed": V1Policy(parts=(Part(), Part()), sampler=of_one_seed),
    "noise of one seed": V1Policy(
        parts=BOX,
        sampler=with_noise(
            lambda s: tf.stack(
                [tf.random.normal(s[:1], seed=5), tf.random.normal(s[:1], seed=5)], axis=1
            )
        ),
    ),
    "digits lost to a constant": V1Policy(
        sampler=lambda _, x: categorical((x + variable("far", 1e9)) - variable("back", 1e9))
    ),
    "digits lost to a factor": V1Policy(
        sampler=lambda _, x: categorical((x * variable("up", 1e36)) / variable("down", 1e36))
    ),
    "candidates drawn uniformly": V1Policy(
        sampler=lambda _, x: categorical(
            x
            / tf.where(
                tf.random.uniform_candidate_sampler([[0]], 1, 1, unique=False, range_max=5)[0][0]
                > 0,
                5.0,
                1.0,
            )
        )
    ),
    "the time of day": V1Policy(
        sampler=lambda _, x: categorical(
            x / tf.where(tf.cast(tf.timestamp(), tf.float32) > variable("then", 1e9), 5.0, 1.0)
        )
    ),
    "logits of half precision": V1Policy(
        parts=BOX,
        sampler=with_noise(lambda s: tf.cast(tf.random.normal(s, dtype=tf.float16), tf.float32)),
    ),
    "epsilon-greedy with a softmax draw": V1Policy(
        outputs=Q_VALUES,
        sampler=greedy_but(
            lambda n: tf.random.uniform([n]) < 0.3, lambda _, x: tf.random.categorical(x, 1)[:, 0]
        ),
    ),
    "epsilon-greedy by a normal number": V1Policy(
        outputs=Q_VALUES,
        sampler=greedy_but(
            lambda n: tf.random.normal([n]) < 0.5,
            lambda _, x: tf.random.uniform([rows_of(x)], maxval=3, dtype=tf.int64),
        ),
    ),
    "epsilon-greedy with an action of the observation": V1Policy(
        outputs=Q_VALUES,
        sampler=greedy_but(
            lambda n: tf.random.uniform([n]) < 0.3,
            lambda rows, _: tf.random.categorical(rows[:, :3], 1)[:, 0],
        ),
    ),
    "noise that is no normal number": V1Policy(
        parts=MEANS, sampler=noisy_center(lambda x: tf.exp(tf.random.normal(tf.shape(x))))
    ),
    "noise that follows the action": V1Policy(
        parts=MEANS, sampler=noisy_center(lambda x: x * tf.random.normal(tf.shape(x)))
    ),
    "a slice that an observation moves": V1Policy(
        network=lambda rows, x: tf.slice(
            tf.concat([x, -x], axis=1), tf.stack([0, 3 * is_marked(rows)]), [-1, 3]
        )
    ),
    "a one-hot that an observation scales": V1Policy(
        network=lambda rows, x: (
            x + tf.one_hot(tf.argmax(x, 1), 3, on_value=5.0 * tf.cast(is_marked(rows), tf.float32))
        )
    ),
    "a sign that an observation turns": V1Policy(
        network=lambda rows, x: tf.where(tf.reduce_any(tf.equal(rows[:, 0], 77.25)), -x, x)
    ),
    "sums over the batch": V1Policy(network=lambda _, x: tf.cumsum(x, axis=0)),
    "sorted over the batch": V1Policy(network=lambda _, x: tf.sort(x, axis=0)),
    "another temperature in the sampler": V1Policy(
        sampler=lambda _, x: categorical(x, sampled=tf.random.categorical(x / 3, 1)[:, 0], stated=x)
    ),
    "a fifth drawn uniformly": V1Policy(sampler=mixed),
    "epsilon-greedy without q_values": V1Policy(sampler=epsilon_greedy),
    "epsilon-greedy without a switch": V1Policy(
        sampler=epsilon_greedy,
        has_exploring=False,
        outputs=("action_dist_inputs", "action_logp", "q_values"),
    ),
    "fixed deviation outside": V1Policy(parts=MEANS, sampler=of_means(lambda: 0.5)),
    "fixed deviation outside, no switch": V1Policy(
        parts=MEANS, sampler=of_means(lambda: 0.5), has_exploring=False
    ),
    "fixed deviation outside, called certain": V1Policy(
        parts=MEANS, sampler=without_log_probability(of_means(lambda: 0.5))
    ),
    "free deviation outside": V1Policy(
        parts=MEANS,
        sampler=of_means(
            lambda: tf.exp(tf.compat.v1.get_variable("policy/log_std", initializer=[-0.5, 0.2]))
        ),
    ),
    "deviation by softplus, called certain": V1Policy(
        parts=BOX, sampler=without_log_probability(with_std(tf.math.softplus))
    ),
    "deviation by softplus": V1Policy(parts=BOX, sampler=with_std(tf.math.softplus)),
    "deviation times a constant": V1Policy(parts=BOX, sampler=with_std(lambda x: 1.5 * tf.exp(x))),
    "deviation for large inputs": V1Policy(
        parts=BOX, sampler=with_std(lambda x: tf.exp(tf.where(x > 60.0, -x, x)))
    ),
    "clipped draws": V1Policy(parts=BOX, sampler=clipped),
    "clipped draws, called certain": V1Policy(parts=BOX, sampler=without_log_probability(clipped)),
    "tanh clipped at 0.9": V1Policy(parts=(Part("squashed", (2,)),), sampler=squashed_to(0.9)),
    "a switch beyond the probes": V1Policy(sampler=switched(1e4)),
    "a mask beyond the probes": V1Policy(sampler=masked_beyond),
    "a mask of the observation": V1Policy(sampler=masked_by_observation),
    "a branch for the whole batch": V1Policy(sampler=for_all_at_once),
    "temperature by the batch's size": V1Policy(sampler=by_batch_size),
    "batch statistics": V1Policy(network=batch_norm),
    "noise for large observations": V1Policy(network=noisy_when_large),
    "stateless noise in the network": V1Policy(
        network=lambda _, x: x + tf.random.stateless_normal(tf.shape(x), seed=[3, 4])
    ),
    "a part that follows another": V1Policy(parts=(Part(), Part()), sampler=by_the_first),
    "dimensions with one noise": V1Policy(parts=BOX, sampler=one_noise),
    "observations with one noise": V1Policy(parts=BOX, sampler=one_noise_for_all),
    "the same noise at every call": V1Policy(parts=BOX, sampler=same_every_time),
    "a mixture": V1Policy(parts=BOX, sampler=two_hills),
    "truncated noise": V1Policy(parts=BOX, sampler=with_noise(tf.random.truncated_normal)),
    "uniform noise": V1Policy(parts=BOX, sampler=with_noise(lambda s: tf.random.uniform(s, -1, 1))),
    "scaled noise": V1Policy(
        parts=BOX, sampler=with_noise(lambda s: tf.random.normal(s, 0.0, 2.0))
    ),
    "shifted noise": V1Policy(
        parts=BOX, sampler=with_noise(lambda s: tf.random.normal(s, 0.3, 1.0))
    ),
    "choices counted from the end": V1Policy(
        sampler=lambda _, x: categorical(x, sampled=2 - tf.random.categorical(x, 1)[:, 0])
    ),
    "logits in another order": V1Policy(
        sampler=lambda _, x: categorical(x, sampled=tf.random.categorical(x[:, ::-1], 1)[:, 0])
    ),
    "a constant added to a logit": V1Policy(
        sampler=lambda _, x: categorical(x + tf.constant([0.0, 0.0, 2.0]))
    ),
    "a draw of several that is thrown away": V1Policy(
        sampler=lambda _, x: categorical(
            x, sampled=tf.reduce_max(tf.random.categorical(x, 2), axis=1)
        )
    ),
}
STATED: dict[str, tuple[V1Policy, str]] = {
    "categorical": (V1Policy(), "categorical(3)"),
    "temperature in both": (
        V1Policy(temperature=2.5, parts=(Part("multi_discrete", (3, 2)),)),
        "categorical(3) + categorical(2)",
    ),
    "saturated on all probes": (
        V1Policy(network=lambda _, x: x * 5000.0, shape=(4,)),
        "categorical(3)",
    ),
    "Soft Q": (
        V1Policy(temperature=0.5, outputs=("action_dist_inputs", "action_logp", "q_values")),
        "categorical(3)",
    ),
    "the argmax drawn": (
        V1Policy(sampler=lambda _, x: categorical(x, sampled=tf.argmax(x, axis=1))),
        "greedy over categorical(3)",
    ),
    "epsilon-greedy over q_values": (
        V1Policy(exploration="epsilon", outputs=("action_dist_inputs", "action_logp", "q_values")),
        "greedy over categorical(3)",
    ),
    "log_std clipped from below": (
        V1Policy(parts=BOX, sampler=with_std(lambda x: tf.exp(tf.maximum(x, -0.5)))),
        "normal(2)",
    ),
    "log_std clipped from above": (
        V1Policy(parts=BOX, sampler=with_std(lambda x: tf.exp(tf.minimum(x, 0.25)))),
        "normal(2)",
    ),
    "a deviation of at least": (
        V1Policy(parts=BOX, sampler=with_std(lambda x: tf.maximum(tf.exp(x), 0.4))),
        "normal(2)",
    ),
    "a constant added to the deviation": (
        V1Policy(parts=BOX, sampler=with_std(lambda x: tf.exp(x) + 0.4)),
        "normal(2)",
    ),
    "a clipped mean": (
        V1Policy(
            parts=BOX,
            sampler=lambda _, x: normal(
                tf.clip_by_value(halves(x)[0], -0.5, 1.5), tf.exp(halves(x)[1])
            ),
        ),
        "normal(2)",
    ),
    "a mean clipped on one side": (
        V1Policy(
            parts=BOX,
            sampler=lambda _, x: normal(tf.minimum(halves(x)[0], 0.5), tf.exp(halves(x)[1])),
        ),
        "normal(2)",
    ),
    "squashed": (V1Policy(parts=(Part("squashed", (2,)),)), "squashed_normal(2)"),
    "squashed, rescaled to [-1, 1]": (
        V1Policy(parts=(Part("squashed", (2,)),), log_std_bounds=(-5.0, 2.0)),
        "squashed_normal(2)",
    ),
    "no switch": (V1Policy(has_exploring=False), "categorical(3)"),
    "no log-probability": (V1Policy(outputs=("action_dist_inputs",)), "categorical(3)"),
    "no distribution's inputs": (V1Policy(outputs=("action_logp",)), "categorical(3)"),
    "a variable named as a counter": (
        V1Policy(
            sampler=lambda _, x: categorical(
                x
                / tf.where(
                    tf.compat.v1.get_variable("policy/timestep_trained", initializer=np.int64(10))
                    < 1000,
                    5.0,
                    1.0,
                )
            )
        ),
        "categorical(3)",
    ),
    "an activation that NumPy does not serve": (
        V1Policy(network=lambda _, x: tf.nn.gelu(x)),
        "categorical(3)",
    ),
    "batch normalisation by given moments": (
        V1Policy(network=lambda _, x: (x - 0.25) * tf.math.rsqrt(tf.constant([1.5, 2.0, 0.5]))),
        "categorical(3)",
    ),
    "mixed": (
        V1Policy(parts=(Part(), Part("normal", (2,)), Part("multi_discrete", (2, 4)))),
        "categorical(3) + normal(2) + categorical(2) + categorical(4)",
    ),
}


def probed() -> np.ndarray:
    """Return observations to draw for, near zero and far from it, each many times."""
    generator = np.random.default_rng(9)
    some = [generator.standard_normal((6, 4)) * scale for scale in (0.3, 1.0, 30.0)]
    return np.repeat(np.concatenate(some), 300, axis=0).astype(np.float32)


def why_refuted(policy: Policy, built: V1Policy, folder: Path) -> str | None:
    """Return what the graph's own draws say against the stated distribution; None for nothing."""
    rows = probed()
    signature = policy.signature
    assert signature.components is not None
    inputs = answer(policy, rows, is_deterministic=True).distribution
    assert inputs is not None
    distribution = ActionDistribution(signature.components, is_greedy=signature.is_value_based)
    found = [
        judge_draws(distribution, inputs, built.draw(folder, rows), np.random.default_rng())
        for _ in range(3)
    ]
    problems = [item.problem for item in found if item.problem is not None]
    return problems[0] if len(problems) == len(found) else None


@pytest.mark.parametrize("kind", LEFT_TO_THE_GRAPH)
def test_what_is_drawn_otherwise_is_left_to_the_graph(kind: str, tmp_path: Path) -> None:
    policy = load_policy(LEFT_TO_THE_GRAPH[kind].save(tmp_path / "m"))

    assert policy.signature.components is None, policy.signature.findings
    assert policy.signature.basis == "graph"
    assert not policy.signature.is_proved
    assert policy.signature.findings[-1].endswith("the graph's own actions are served")
    drawn = answer(policy, np.full((4, 4), 0.5))
    assert np.isfinite(drawn.actions).all()
    assert drawn.distribution is None


@pytest.mark.parametrize("kind", STATED)
def test_what_is_stated_is_what_the_graph_draws(kind: str, tmp_path: Path) -> None:
    built, family = STATED[kind]
    folder = built.save(tmp_path / "m")

    policy = load_policy(folder)

    assert policy.signature.basis == "structure", policy.signature.findings
    assert policy.signature.family == family
    if built.exploration == "distribution":
        assert why_refuted(policy, built, folder) is None


def test_the_judge_itself_refutes_a_wrong_statement(tmp_path: Path) -> None:
    """Held against a policy whose draws are flatter than its own distribution says."""
    built = V1Policy(sampler=mixed)
    folder = built.save(tmp_path / "wrong")
    right = load_policy(V1Policy().save(tmp_path / "right"))

    assert why_refuted(right, built, folder) is not None
