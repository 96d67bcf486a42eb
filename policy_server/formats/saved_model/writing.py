"""Write an MLP policy as a SavedModel as RLlib 2.0.1 does, checked before it is put in place.

A trainer other than RLlib describes its policy in NumPy (`MlpPolicy`); this module builds the graph
that RLlib's `export_policy_model` would have built, so that one loader serves both.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from policy_server.errors import ExportError
from policy_server.files.atomic import scratch_folder, write_whole
from policy_server.formats.saved_model.mlp_policy import (
    Activation,
    Categorical,
    GreedyValues,
    MlpPolicy,
    Normal,
    ObservationScaling,
    SquashedNormal,
)
from policy_server.formats.saved_model.quiet_import import quiet_import
from policy_server.policy import Float32Array

with quiet_import():
    import tensorflow as tf
    from tensorflow.core.protobuf import meta_graph_pb2

__all__ = ["export_policy_zip", "pack_saved_model", "write_saved_model"]

_LOG_STD_RANGE = (-20.0, 2.0)
_TANH_MARGIN = 1e-6
_LOG_DENSITY_LIMIT = 100.0
_EARLIEST_ZIP_TIME = (1980, 1, 1, 0, 0, 0)

# The code below builds a graph: a tensor is `Any`, since TensorFlow carries no types.
_Tensor = Any


def write_saved_model(policy: MlpPolicy, folder: Path) -> None:
    """Write a policy as a SavedModel folder.

    The signature `serving_default` takes `observations`, `is_training` and `timestep`; it gives
    `actions_0`, `action_prob`, `action_logp` and `action_dist_inputs`, and `q_values` where the
    policy is greedy over them. Feeding False to `default_policy/is_exploring` makes the action the
    mode, and its log-probability zero, as RLlib does.

    Args:
        policy: the policy to write.
        folder: must not exist, or be empty; gets saved_model.pb and variables/, the same bytes for
            the same policy.
    """
    builder = tf.compat.v1.saved_model.builder.SavedModelBuilder(str(folder))
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        weights: dict[_Tensor, Float32Array] = {}
        with tf.name_scope("default_policy"):
            inputs, outputs = _build_graph(policy, weights)
        signature = meta_graph_pb2.SignatureDef(
            inputs={name: _tensor_info(tensor) for name, tensor in inputs.items()},
            outputs={name: _tensor_info(tensor) for name, tensor in outputs.items()},
            method_name="tensorflow/serving/predict",
        )
        for variable, value in weights.items():
            # The weights are fed, since as constants of the initializer they would be in the graph
            # a second time.
            session.run(variable.initializer, {variable.initializer.inputs[1]: value})
        builder.add_meta_graph_and_variables(
            session,
            ["serve"],
            signature_def_map={"serving_default": signature},
            strip_default_attrs=True,
            # The default saver is sharded, and a sharded one writes a random name into the graph.
            saver=tf.compat.v1.train.Saver(list(weights), sharded=False),
        )
        builder.save()


def pack_saved_model(folder: Path, target: Path) -> None:
    """Zip a SavedModel folder with saved_model.pb at the root and without event files.

    Args:
        folder: the SavedModel.
        target: the zip, replaced if it exists; the same folder gives the same bytes.
    """
    members = [
        member
        for member in folder.rglob("*")
        if member.is_file() and ".tfevents." not in member.name
    ]
    with zipfile.ZipFile(target, "w") as archive:
        for name, member in sorted(
            (member.relative_to(folder).as_posix(), member) for member in members
        ):
            info = zipfile.ZipInfo(name, _EARLIEST_ZIP_TIME)
            info.create_system = 3
            info.external_attr = 0o100644 << 16
            archive.writestr(info, member.read_bytes(), zipfile.ZIP_DEFLATED, 9)


def export_policy_zip(policy: MlpPolicy, target: Path, *, prove: Callable[[Path], None]) -> None:
    """Write a policy as a zip that replaces an older one only after it has been checked.

    Args:
        policy: the policy to write.
        target: the zip, replaced whole; its folder must exist.
        prove: is given a folder unpacked from the finished zip, and raises if that is not the
            policy.

    Raises:
        ExportError: if the folder can't be written to. Whatever `prove` raises passes through;
            `target` is then as before.
    """
    try:
        with scratch_folder(target) as scratch:
            write_saved_model(policy, scratch / "written")
            pack_saved_model(scratch / "written", scratch / target.name)
            with zipfile.ZipFile(scratch / target.name) as archive:
                archive.extractall(scratch / "unpacked")
            prove(scratch / "unpacked")
            write_whole(target, (scratch / target.name).read_bytes(), is_durable=True)
    except OSError as error:
        raise ExportError(f"{target}: can't be written: {error.strerror or error}") from error


def _tensor_info(tensor: _Tensor) -> meta_graph_pb2.TensorInfo:
    return meta_graph_pb2.TensorInfo(
        name=tensor.name,
        dtype=tensor.dtype.as_datatype_enum,
        tensor_shape=tensor.shape.as_proto(),
    )


def _build_graph(
    policy: MlpPolicy, weights: dict[_Tensor, Float32Array]
) -> tuple[dict[str, _Tensor], dict[str, _Tensor]]:
    observations = tf.compat.v1.placeholder(
        tf.float32, [None, policy.observation_width], name="obs"
    )
    inputs = {
        "observations": observations,
        "is_training": tf.compat.v1.placeholder_with_default(
            input=False, shape=[], name="is_training"
        ),
        "timestep": tf.compat.v1.placeholder_with_default(
            tf.zeros([], tf.int64), [], name="timestep"
        ),
    }
    is_exploring = tf.compat.v1.placeholder_with_default(input=True, shape=[], name="is_exploring")
    hidden = (
        observations if policy.scaling is None else _scale(observations, policy.scaling, weights)
    )
    for number, layer in enumerate(policy.layers, start=1):
        name = "fc_out" if number == len(policy.layers) else f"fc_{number}"
        kernel = _variable(f"{name}/kernel", layer.weights, weights)
        bias = _variable(f"{name}/bias", layer.bias, weights)
        hidden = _activate(tf.nn.bias_add(tf.matmul(hidden, kernel), bias), layer.activation)
    dist_inputs, drawn, mode, logp = _act(policy.distribution, hidden, observations, weights)
    action_logp = tf.where(is_exploring, logp, tf.zeros_like(logp))
    outputs = {
        "actions_0": tf.where(is_exploring, drawn, mode),
        "action_prob": tf.exp(action_logp),
        "action_logp": action_logp,
        "action_dist_inputs": dist_inputs,
    }
    if isinstance(policy.distribution, GreedyValues):
        outputs["q_values"] = dist_inputs
    return inputs, outputs


def _variable(name: str, value: Float32Array, weights: dict[_Tensor, Float32Array]) -> _Tensor:
    variable = tf.compat.v1.get_variable(
        f"default_policy/{name}", value.shape, tf.float32, tf.zeros_initializer(), use_resource=True
    )
    weights[variable] = value
    return variable


def _scale(
    observations: _Tensor, scaling: ObservationScaling, weights: dict[_Tensor, Float32Array]
) -> _Tensor:
    mean = _variable("scaling/mean", scaling.mean, weights)
    std = _variable("scaling/std", scaling.std, weights)
    scaled = (observations - mean) / std
    return (
        scaled
        if math.isinf(scaling.limit)
        else tf.clip_by_value(scaled, -scaling.limit, scaling.limit)
    )


def _activate(values: _Tensor, activation: Activation) -> _Tensor:
    if activation == "leaky_relu":
        return tf.nn.leaky_relu(values, alpha=0.01)
    if activation == "silu":
        # `tf.nn.silu` has a gradient of its own, which writes a counter into the graph.
        return values * tf.sigmoid(values)
    functions = {
        "linear": tf.identity,
        "relu": tf.nn.relu,
        "tanh": tf.tanh,
        "sigmoid": tf.sigmoid,
        "elu": tf.nn.elu,
        "gelu": tf.nn.gelu,
        "softplus": tf.nn.softplus,
    }
    return functions[activation](values)


def _act(
    distribution: Categorical | Normal | SquashedNormal | GreedyValues,
    hidden: _Tensor,
    observations: _Tensor,
    weights: dict[_Tensor, Float32Array],
) -> tuple[_Tensor, _Tensor, _Tensor, _Tensor]:
    """Return the distribution's inputs, a draw, the mode, and the draw's log-probability."""
    match distribution:
        case Categorical():
            return _act_categorical(distribution, hidden, observations)
        case Normal():
            return _act_normal(distribution, hidden, weights)
        case SquashedNormal():
            return _act_squashed(hidden)
        case GreedyValues():
            best = tf.argmax(hidden, axis=1)
            return hidden, best, best, tf.zeros_like(hidden[:, 0])


def _act_categorical(
    distribution: Categorical, hidden: _Tensor, observations: _Tensor
) -> tuple[_Tensor, _Tensor, _Tensor, _Tensor]:
    logits = hidden
    if distribution.mask_start is not None:
        mask = observations[
            :, distribution.mask_start : distribution.mask_start + distribution.inputs
        ]
        logits = tf.where(tf.not_equal(mask, 0.0), logits, tf.float32.min)
    # The loader reads the sizes from the constants of this SplitV, which RLlib has for
    # MultiDiscrete only.
    parts = (
        tf.split(logits, list(distribution.sizes), axis=1)
        if len(distribution.sizes) > 1
        else [logits]
    )
    draws = [tf.squeeze(tf.random.categorical(part, 1), axis=1) for part in parts]
    modes = [tf.argmax(part, axis=1) for part in parts]
    logps = [
        -tf.nn.sparse_softmax_cross_entropy_with_logits(labels=draw, logits=part)
        for draw, part in zip(draws, parts, strict=True)
    ]
    if len(parts) == 1:
        return logits, draws[0], modes[0], logps[0]
    return logits, tf.stack(draws, axis=1), tf.stack(modes, axis=1), tf.add_n(logps)


def _act_normal(
    distribution: Normal, hidden: _Tensor, weights: dict[_Tensor, Float32Array]
) -> tuple[_Tensor, _Tensor, _Tensor, _Tensor]:
    dist_inputs = hidden
    if distribution.log_std is not None:
        log_std = _variable("log_std", distribution.log_std, weights)
        dist_inputs = tf.concat([hidden, tf.zeros_like(hidden) + log_std], axis=1)
    mean, log_std = tf.split(dist_inputs, 2, axis=1)
    drawn = mean + tf.exp(log_std) * tf.random.normal(tf.shape(mean))
    return (
        dist_inputs,
        drawn,
        mean,
        tf.reduce_sum(_normal_log_density(drawn, mean, log_std), axis=1),
    )


def _act_squashed(hidden: _Tensor) -> tuple[_Tensor, _Tensor, _Tensor, _Tensor]:
    """Build RLlib's `SquashedGaussian` with the bounds -1 and 1, its constants included."""
    mean, log_std = tf.split(hidden, 2, axis=1)
    log_std = tf.clip_by_value(log_std, *_LOG_STD_RANGE)
    drawn = tf.tanh(mean + tf.exp(log_std) * tf.random.normal(tf.shape(mean)))
    unsquashed = tf.atanh(tf.clip_by_value(drawn, -1 + _TANH_MARGIN, 1 - _TANH_MARGIN))
    log_density = _normal_log_density(unsquashed, mean, log_std)
    log_density = tf.clip_by_value(log_density, -_LOG_DENSITY_LIMIT, _LOG_DENSITY_LIMIT)
    correction = tf.math.log(1 - tf.tanh(unsquashed) ** 2 + _TANH_MARGIN)
    return (
        hidden,
        drawn,
        tf.tanh(mean),
        tf.reduce_sum(log_density, axis=1) - tf.reduce_sum(correction, axis=1),
    )


def _normal_log_density(values: _Tensor, mean: _Tensor, log_std: _Tensor) -> _Tensor:
    return -0.5 * ((values - mean) / tf.exp(log_std)) ** 2 - log_std - 0.5 * math.log(2 * math.pi)
