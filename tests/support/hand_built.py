"""SavedModels built by hand: policies as RLlib writes them, and the odd shapes that it may write.

`V1Policy` is a graph with placeholders as Ray 1.0 to 2.0 writes it; `save_functions` writes a TF2
module with functions, as Keras does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.distributions.action_distribution import (
    ActionDistribution,
    ComponentDistribution,
)
from policy_server.formats.saved_model.loading import load_policy
from policy_server.policy import (
    Float32Array,
    Float64Array,
    Policy,
    PolicyInputs,
    PolicyOutputs,
)

# The import above keeps TensorFlow's notes back.
import tensorflow as tf  # isort: skip

__all__ = [
    "FLOAT32_MIN",
    "TABLE",
    "Part",
    "V1Policy",
    "answer",
    "describe",
    "load_policy",
    "observations",
    "picking",
    "save_functions",
    "tf",
    "weights",
]

# What `picking` picks from.
TABLE = np.linspace(-1, 1, 15, dtype=np.float32).reshape(5, 3)

v1 = tf.compat.v1
FLOAT32_MIN = float(np.finfo(np.float32).min)


def weights(width: int, outputs: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the kernel and the bias of every hand-built network: the same at every call."""
    generator = np.random.default_rng(7)
    kernel = generator.standard_normal((width, outputs)) * 0.5
    return kernel.astype(np.float32), np.linspace(-0.6, 0.6, outputs, dtype=np.float32)


def observations(rows: int = 16, width: int = 4) -> NDArray[np.float64]:
    """Return observations in halves, which every type of float holds exactly."""
    return np.random.default_rng(3).integers(-6, 7, (rows, width)) / 2


def answer(
    policy: Policy, rows: NDArray[Any], *, is_deterministic: bool = False, seed: int = -1
) -> PolicyOutputs:
    """Return the policy's answers to all rows."""
    typed: Float32Array | Float64Array = rows.astype(policy.signature.row_dtype)  # type: ignore[assignment]  # one of the two
    return policy.infer(
        PolicyInputs.of(
            typed,
            is_deterministic=is_deterministic,
            seeds=[seed] * len(rows),
        )
    )


def describe(policy: Policy, rows: NDArray[Any]) -> list[ComponentDistribution]:
    """Return every component's distribution."""
    outputs, signature = answer(policy, rows, is_deterministic=True), policy.signature
    assert signature.components is not None
    assert outputs.distribution is not None
    known = ActionDistribution(signature.components, is_greedy=signature.is_value_based)
    return known.describe(outputs.distribution)


@dataclass(frozen=True)
class Part:
    """One action: `categorical` (integer), `multi_discrete`, `normal`, `squashed`, `dirichlet`."""

    kind: str = "categorical"
    sizes: tuple[int, ...] = (3,)

    @property
    def inputs(self) -> int:
        """Return how many values of `action_dist_inputs` it takes."""
        return sum(self.sizes) * (2 if self.kind in ("normal", "squashed") else 1)


@dataclass(frozen=True, kw_only=True)
class V1Policy:
    """A TensorFlow 1 graph as RLlib exports it."""

    parts: tuple[Part, ...] = (Part(),)
    dtype: str = "float32"
    # Without the batch's dimension; None leaves the rank open.
    shape: tuple[int | None, ...] | None = (4,)
    batch: int | None = None
    width: int = 4
    # Listed in the signature, and left out of it.
    inputs: tuple[str, ...] = ("is_training", "timestep")
    unlisted: tuple[str, ...] = ()
    observations: str = "observations"
    signature: str = "serving_default"
    tags: tuple[str, ...] = ("serve",)
    outputs: tuple[str, ...] = ("action_dist_inputs", "action_logp", "action_prob")
    has_exploring: bool = True
    temperature: float | None = None
    log_std_bounds: tuple[float, float] | None = None
    # `actions_i` for each part in the order of the network's outputs.
    order: tuple[int, ...] | None = None
    # Changes the network's outputs: (observations, outputs) -> outputs.
    network: Callable[[Any, Any], Any] = field(default=lambda _rows, outputs: outputs)
    # Draws in place of the parts' own: (observations, outputs) -> draws, log-probability, modes.
    sampler: Callable[[Any, Any], tuple[list[Any], Any, list[Any]]] | None = None
    # epsilon, or steps of random actions, by `timestep`.
    exploration: str = "distribution"
    has_variable_counter: bool = False

    @property
    def size(self) -> int:
        """Return how many values `action_dist_inputs` has."""
        return sum(part.inputs for part in self.parts)

    def expected_inputs(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        """Return `action_dist_inputs` as NumPy has them."""
        kernel, bias = weights(self.width, self.size)
        return rows.reshape(len(rows), -1).astype(np.float32) @ kernel + bias

    def draw(self, folder: Path, rows: NDArray[Any]) -> NDArray[np.float64]:
        """Return the actions that a saved policy draws by itself, a row each."""
        with tf.Graph().as_default(), v1.Session() as session:
            loaded = v1.saved_model.load(session, list(self.tags), str(folder))
            signature = loaded.signature_def[self.signature]
            feeds = {signature.inputs[self.observations].name: rows}
            known = {"is_training": False, "timestep": 10**9}
            feeds |= {signature.inputs[name].name: known[name] for name in self.inputs}
            names = [f"actions_{index}" for index in range(len(self.parts))]
            arrays = session.run([signature.outputs[name].name for name in names], feeds)
        return np.concatenate([item.reshape(len(rows), -1) for item in arrays], axis=1).astype(
            float
        )

    def save(self, folder: Path) -> Path:
        """Write the SavedModel."""
        with tf.Graph().as_default(), v1.Session() as session:
            shape = None if self.shape is None else [self.batch, *self.shape]
            rows = v1.placeholder(self.dtype, shape, name="policy/obs")
            extra = {name: _placeholder(name) for name in (*self.inputs, *self.unlisted)}
            outputs = self._outputs(rows, extra)
            session.run(v1.global_variables_initializer())
            inputs = {self.observations: rows} | {name: extra[name] for name in self.inputs}
            builder = v1.saved_model.Builder(str(folder))
            info = v1.saved_model.build_tensor_info
            signature = v1.saved_model.build_signature_def(
                {key: info(item) for key, item in inputs.items()},
                {key: info(item) for key, item in outputs.items()},
                "tensorflow/serving/predict",
            )
            builder.add_meta_graph_and_variables(
                session, list(self.tags), {self.signature: signature}, strip_default_attrs=True
            )
            builder.save()
        return folder

    def _outputs(self, rows: tf.Tensor, extra: Mapping[str, Any]) -> dict[str, Any]:
        kernel, bias = weights(self.width, self.size)
        flat = tf.reshape(tf.cast(rows, tf.float32), [-1, self.width])
        inputs = v1.get_variable("policy/kernel", initializer=kernel)
        shift = v1.get_variable("policy/bias", initializer=bias)
        inputs = self.network(flat, tf.nn.bias_add(tf.matmul(flat, inputs), shift))
        for name in ("state_in_0", "prev_action", "memory"):
            if name in extra:
                numbers = tf.cast(extra[name], tf.float32)
                sums = tf.reduce_sum(numbers, axis=[*range(1, len(numbers.shape))])
                inputs += sums[:, None]
        if "seq_lens" in extra:
            # A sequence of no steps has no answer.
            inputs /= tf.cast(extra["seq_lens"], tf.float32)[:, None]
        if "action_mask" in extra:
            inputs *= extra["action_mask"]
        drawn, chance, sure = (
            self._actions(inputs) if self.sampler is None else self.sampler(flat, inputs)
        )
        drawn, chance = self._explored(drawn, chance, sure, extra)
        if self.has_exploring:
            switch = v1.placeholder_with_default(np.True_, [], name="policy/is_exploring")
            pairs = zip(drawn, sure, strict=True)
            drawn = [tf.cond(switch, lambda a=a: a, lambda b=b: b) for a, b in pairs]
            chance = tf.cond(switch, lambda: chance, lambda: tf.zeros_like(chance))
        order = self.order or tuple(range(len(self.parts)))
        outputs = {f"actions_{name}": action for name, action in zip(order, drawn, strict=True)}
        known = {
            "action_dist_inputs": inputs,
            "action_logp": chance,
            "action_prob": tf.exp(chance),
            "q_values": tf.identity(inputs),
            "vf_preds": tf.reduce_sum(inputs, axis=1),
        }
        return outputs | {name: known[name] for name in self.outputs}

    def _actions(self, inputs: tf.Tensor) -> tuple[list[Any], Any, list[Any]]:
        sizes = [part.inputs for part in self.parts]
        splits = tf.split(inputs, sizes, axis=1) if len(sizes) > 1 else [inputs]
        drawn, sure, chances = [], [], []
        for part, values in zip(self.parts, splits, strict=True):
            if part.kind in ("categorical", "multi_discrete"):
                sampled, mode, chance = self._integers(part, values)
            else:
                sampled, mode, chance = self._numbers(part, values)
            drawn.append(sampled)
            sure.append(mode)
            chances.append(chance)
        return drawn, tf.add_n(chances), sure

    def _integers(self, part: Part, values: tf.Tensor) -> tuple[Any, Any, Any]:
        pieces = tf.split(values, list(part.sizes), axis=1) if len(part.sizes) > 1 else [values]
        if self.temperature is not None:
            pieces = [piece / self.temperature for piece in pieces]
        sampled = [tf.squeeze(tf.random.categorical(piece, 1), 1) for piece in pieces]
        modes = [tf.argmax(piece, axis=1) for piece in pieces]
        chance = tf.add_n(
            [
                -tf.nn.sparse_softmax_cross_entropy_with_logits(labels=action, logits=piece)
                for action, piece in zip(sampled, pieces, strict=True)
            ]
        )
        if part.kind == "multi_discrete":
            return tf.stack(sampled, axis=1), tf.stack(modes, axis=1), chance
        return sampled[0], modes[0], chance

    def _numbers(self, part: Part, values: tf.Tensor) -> tuple[Any, Any, Any]:
        if part.kind == "dirichlet":
            # Neither its draw nor its mode is a function that the loader knows.
            gamma = tf.random.gamma([], tf.exp(values))
            drawn = gamma / tf.reduce_sum(gamma, axis=1, keepdims=True)
            return drawn, tf.nn.softmax(values * 2), tf.reduce_sum(tf.math.log(drawn), axis=1)
        if part.kind == "deterministic":
            # RLlib's GaussianNoise: its scale follows a schedule, and it is clipped to the bounds.
            counter = v1.get_variable("policy/timestep", initializer=np.int64(0), trainable=False)
            scale = tf.where(counter < 1000, 1.0, 0.2)
            noisy = values + scale * tf.random.normal(tf.shape(values))
            return tf.clip_by_value(noisy, -1.0, 1.0), values, tf.zeros_like(values[:, 0])
        mean, log_std = tf.split(values, 2, axis=1)
        if self.log_std_bounds is not None:
            log_std = tf.clip_by_value(log_std, *self.log_std_bounds)
        value = mean + tf.exp(log_std) * tf.random.normal(tf.shape(mean))
        deviation = (value - mean) / tf.exp(log_std)
        chance = -0.5 * (deviation**2 + np.log(2 * np.pi)) - log_std
        if part.kind == "normal":
            return value, mean, tf.reduce_sum(chance, axis=1)
        # RLlib's SquashedGaussian.
        squashed = tf.clip_by_value(tf.tanh(value), -1 + 1e-6, 1 - 1e-6)
        correction = tf.math.log(1 - squashed**2 + 1e-6)
        return squashed, tf.tanh(mean), tf.reduce_sum(chance - correction, axis=1)

    def _explored(
        self, drawn: list[Any], chance: tf.Tensor, sure: list[Any], extra: Mapping[str, Any]
    ) -> tuple[list[Any], Any]:
        if self.exploration == "distribution":
            return drawn, chance
        steps = extra.get("timestep", tf.constant(0, tf.int64))
        if self.has_variable_counter:
            counter = v1.get_variable(
                "policy/timestep", initializer=np.int64(0), trainable=False, use_resource=False
            )
            with tf.control_dependencies([v1.assign_add(counter, 1)]):
                steps = tf.identity(counter)
        rows = tf.shape(drawn[0])[0]
        size = self.parts[0].sizes[0]
        anything = tf.random.uniform([rows], maxval=size, dtype=tf.int64)
        if self.exploration == "random":
            return [tf.cond(steps < 1000, lambda: anything, lambda: drawn[0])], chance
        epsilon = tf.where(steps < 1000, 1.0, 0.02)
        is_random = tf.random.uniform([rows]) < epsilon
        return [tf.where(is_random, anything, sure[0])], tf.zeros_like(chance)


def _placeholder(name: str) -> tf.Tensor:
    shapes: dict[str, tuple[Any, Sequence[int | None]]] = {
        "is_training": (tf.bool, []),
        "timestep": (tf.int64, []),
        "seq_lens": (tf.int32, [None]),
        "prev_action": (tf.int64, [None]),
        "prev_reward": (tf.float32, [None]),
        "state_in_0": (tf.float32, [None, 8]),
        "memory": (tf.float32, [None, None, 8]),
        "action_mask": (tf.float32, [None, 3]),
        "name": (tf.string, []),
    }
    dtype, shape = shapes[name]
    return v1.placeholder(dtype, shape, name=f"policy/{name}")


def save_functions(
    folder: Path,
    function: Callable[..., Mapping[str, Any]],
    inputs: Mapping[str, tuple[Sequence[int | None], str]],
    *,
    variables: Sequence[Any] = (),
) -> Path:
    """Write a TF2 module with one signature.

    Args:
        folder: where to.
        function: takes the inputs by name, returns the outputs by name.
        inputs: shape and type of each.
        variables: what the function uses.
    """
    module = tf.Module()
    module.kept = list(variables)
    names = [tf.TensorSpec(shape, dtype, name=name) for name, (shape, dtype) in inputs.items()]
    module.answer = tf.function(function, input_signature=names, autograph=False)
    tf.saved_model.save(module, str(folder), signatures={"serving_default": module.answer})
    return folder


def picking(rows: Any, outputs: Any) -> Any:  # noqa: ANN401 -- TensorFlow is untyped
    """Add a row of `TABLE`, by an index that may lie beyond it: a network for `V1Policy`."""
    return outputs + tf.gather(tf.constant(TABLE), tf.cast(rows[:, 0], tf.int32))
