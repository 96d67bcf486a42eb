"""From the members of a stable-baselines3 .zip to a policy that answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from policy_server.engine.network import CompiledPolicy, NetworkPolicy, NumpyNetwork
from policy_server.errors import ModelError
from policy_server.formats.pickles.space_parts import needs_float64
from policy_server.formats.pickles.spaces import BoxSpace, Space, width_of
from policy_server.formats.stable_baselines3.action_spaces import Answers, has_integer_actions
from policy_server.formats.stable_baselines3.algorithms import Algorithm, algorithm_of
from policy_server.formats.stable_baselines3.features import add_features
from policy_server.formats.stable_baselines3.findings import findings_of
from policy_server.formats.stable_baselines3.images import parts_of, turned_images
from policy_server.formats.stable_baselines3.layers import Layers, activation_of
from policy_server.formats.stable_baselines3.recurrent import add_memory, memory_of
from policy_server.formats.stable_baselines3.saved_parts import read_parts
from policy_server.formats.stable_baselines3.vec_normalize import (
    Scaling,
    read_scaling,
    statistics_of,
)
from policy_server.formats.stable_baselines3.zip_members import SavedPolicy, read_saved_policy
from policy_server.policy import ActionOutput, PolicySignature, SignatureTensor
from policy_server.schema import ServerSchema
from policy_server.schema_fit import describe_signature
from policy_server.settings import Engine

__all__ = ["load_policy"]

# Settings of the classes that don't change the network, or that it is built by.
_ARGUMENTS = frozenset(
    {
        "activation_fn",
        "batch_norm",
        "batch_norm_eps",
        "batch_norm_momentum",
        "clip_mean",
        "features_extractor_class",
        "features_extractor_kwargs",
        "enable_critic_lstm",
        "full_std",
        "log_std_init",
        "lstm_hidden_size",
        "lstm_kwargs",
        "n_critics",
        "n_lstm_layers",
        "n_quantiles",
        "net_arch",
        "normalize_images",
        "optimizer_class",
        "optimizer_kwargs",
        "ortho_init",
        "renorm_warmup_steps",
        "sde_net_arch",
        "share_features_extractor",
        "shared_lstm",
        "squash_output",
        "use_expln",
        "use_sde",
        "with_bias",
    }
)
_MASK = "action_mask"
# MaskableCategorical gives it to the logits of actions that are not allowed.
_MASKED = np.float32(-1e8)


def load_policy(
    files: Mapping[str, Path], schema: ServerSchema | None, *, engine: Engine
) -> NetworkPolicy:
    """Load the policy, check that schema.yaml fits it, and build its network.

    Args:
        files: the members of the .zip by name, and vec_normalize.pkl if there is one.
        schema: the contents of schema.yaml; None for a policy that has none yet.
        engine: `numpy` and `auto` alike; `tensorflow` can't compute it.

    Returns:
        The policy, ready to answer.

    Raises:
        ModelError: if the files can't give a policy.
        SchemaError: if schema.yaml disagrees with the policy.
    """
    if engine == "tensorflow":
        raise ModelError(
            "data: a policy of stable-baselines3 is computed by NumPy; set POLICY_SERVER_ENGINE to "
            "auto or numpy"
        )
    saved = read_saved_policy(files)
    algorithm = algorithm_of(saved)
    unknown = sorted(map(str, {*saved.arguments} - _ARGUMENTS))
    if unknown:
        raise ModelError(
            f"data: policy_kwargs: {unknown[0]} is not known, and may change the network; expected "
            "stable-baselines3's own settings"
        )
    is_unscaled = schema is not None and schema.is_unscaled
    scaling = read_scaling(
        files, saved, is_on_policy=algorithm.is_on_policy, is_unscaled=is_unscaled
    )
    turned = turned_images(
        saved.observation_space, schema, known={} if scaling is None else scaling.has_channels_first
    )
    network, answers = _build(saved, algorithm, scaling, schema, turned)
    findings = findings_of(
        saved,
        algorithm,
        scaling,
        answers,
        statistics=statistics_of(files),
        is_unscaled=is_unscaled,
        turned=turned,
    )
    parts = read_parts(saved, scaling, turned)
    signature = replace(
        _signature(saved, answers, network, findings, is_scaled=scaling is not None),
        observation_parts=parts,
    )
    described = describe_signature(
        signature, schema, has_own_bounds=True, has_separate_scaling=True
    )
    return NetworkPolicy(CompiledPolicy(described, network))


def _build(
    saved: SavedPolicy,
    algorithm: Algorithm,
    scaling: Scaling | None,
    schema: ServerSchema | None,
    turned: frozenset[str | None],
) -> tuple[NumpyNetwork, Answers]:
    """Return the network and its answers; errors of damaged settings and weights in one line."""
    try:
        return _network(saved, algorithm, scaling, schema, turned)
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        MemoryError,
        TypeError,
        ValueError,
    ) as error:
        words = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ModelError(
            f"policy.pth: its weights don't fit data's policy_kwargs and spaces: {words}; save the "
            "policy anew"
        ) from error


def _network(
    saved: SavedPolicy,
    algorithm: Algorithm,
    scaling: Scaling | None,
    schema: ServerSchema | None,
    turned: frozenset[str | None],
) -> tuple[NumpyNetwork, Answers]:
    width, numbers = width_of(saved.observation_space), sum(map(np.size, saved.weights.values()))
    if width > numbers:
        raise ModelError(
            f"data: an observation has {width} numbers, and the policy's weights are {numbers}; "
            "expected at least one for each"
        )
    memory = memory_of(saved) if algorithm.is_recurrent else ()
    layers = Layers(
        width,
        saved.weights,
        activation=activation_of(saved, algorithm.activation),
        memory_width=sum(tensor.size for tensor in memory),
    )
    extractor, others = algorithm.extractor, algorithm.others
    if algorithm.is_on_policy and layers.has("pi_features_extractor."):
        # Where critic and actor share it, the file has it by both names.
        extractor, others = "pi_features_extractor", (*others, "features_extractor.")
    x = add_features(layers, saved, scaling, turned=turned, name=extractor)
    state = None
    if memory:
        x, state = add_memory(layers, x, saved, memory)
    answers = replace(algorithm.build(layers, x, saved), memory=memory)
    if algorithm.is_maskable:
        answers = _masked(layers, answers, saved, schema)
    layers.refuse_unused(others)
    result = answers.result if state is None else layers.joined([answers.result, state])
    network = layers.builder.finish(result)
    _check_width(network, answers, width)
    return network, answers


def _check_width(network: NumpyNetwork, answers: Answers, observation_width: int) -> None:
    """Refuse a network that gives more or fewer numbers than the distribution takes."""
    remembered = sum(tensor.size for tensor in answers.memory)
    (row,) = network.compile()(np.zeros((1, observation_width + remembered), np.float32))
    expected = sum(part.inputs for part in answers.components)
    if row.size - remembered != expected:
        raise ModelError(
            f"policy.pth: gives {row.size - remembered} numbers, and the actions of data's "
            f"action_space take {expected}; expected the weights and the space of one policy"
        )


def _masked(
    layers: Layers, answers: Answers, saved: SavedPolicy, schema: ServerSchema | None
) -> Answers:
    """Return the answers of a policy that masks actions, by its observation or beside it."""
    choices = sum(part.size for part in answers.components)
    first = _mask_start(saved, schema, choices)
    if first is None:
        return replace(answers, mask_name=_MASK)
    mask = layers.columns(0, first, choices)
    allowed = layers.with_constant("NotEqual", mask, np.float32(0))
    forbidden = layers.builder.keep(np.full(choices, _MASKED))
    result = layers.add("SelectV2", allowed, answers.result, forbidden)
    return replace(answers, result=result)


def _mask_start(saved: SavedPolicy, schema: ServerSchema | None, choices: int) -> int | None:
    """Return where in the observation the action mask begins; None where it is no part of it."""
    widths = {key: width_of(part) for key, part in parts_of(saved.observation_space).items()}
    if widths.get(_MASK) == choices:
        names = list(widths)
        return sum(widths[name] for name in names[: names.index(_MASK)])
    fields = (schema.observations or ()) if schema is not None else ()
    listed = [item.name for item in fields]
    if schema is None or _MASK not in listed or schema.width != sum(widths.values()):
        return None
    at = listed.index(_MASK)
    first, end = (replace(schema, observations=fields[:count]).width for count in (at, at + 1))
    return first if first is not None and end == first + choices else None


def _signature(
    saved: SavedPolicy,
    answers: Answers,
    network: NumpyNetwork,
    findings: tuple[str, ...],
    *,
    is_scaled: bool,
) -> PolicySignature:
    width = width_of(saved.observation_space)
    columns = sum(part.columns for part in answers.components)
    inputs = sum(part.inputs for part in answers.components)
    is_one = type(saved.action_space).__name__ == "DiscreteSpace"
    dtype = _dtype_of(saved.observation_space, is_scaled=is_scaled)
    return PolicySignature(
        observation_width=width,
        observation_dtype=dtype,
        inputs=(SignatureTensor("observations", dtype, (None, width)),),
        outputs=(SignatureTensor("action_dist_inputs", "float32", (None, inputs)),),
        action_outputs=(
            ActionOutput("actions", has_integer_actions(saved), columns, is_vector=not is_one),
        ),
        components=answers.components,
        is_value_based=answers.is_value_based,
        mask_name=answers.mask_name,
        basis="structure",
        memory=answers.memory,
        findings=findings,
        engine="numpy",
        engine_reason=f"{len(network.steps)} operations, from the file's own weights",
    )


def _dtype_of(space: Space, *, is_scaled: bool) -> str:
    parts = parts_of(space).values()
    # VecNormalize reckons in float64 with all digits of an integer; PyTorch rounds them.
    is_double = is_scaled and needs_float64(space)
    is_double |= any(isinstance(part, BoxSpace) and part.dtype == "float64" for part in parts)
    return "float64" if is_double else "float32"
