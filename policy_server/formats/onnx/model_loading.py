"""Loading: from an .onnx file to a policy that answers, by the engine that suits it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.distributions.action_distribution import ActionDistribution
from policy_server.engine.building import NotCompiledError
from policy_server.engine.network import CompiledPolicy, NetworkPolicy
from policy_server.engine.proof import (
    EngineProof,
    batch_sizes,
    extreme_rows,
    hold_against_graph,
    mixes_rows,
    probe_rows,
)
from policy_server.errors import ModelError
from policy_server.formats.onnx.action_outputs import Actions, Measured, read_actions
from policy_server.formats.onnx.leapp import read_description
from policy_server.formats.onnx.model_file import OnnxModel, read_model
from policy_server.formats.onnx.onnxruntime_policy import OnnxRuntimePolicy
from policy_server.formats.onnx.plan import Piece, Plan, rows_first
from policy_server.formats.onnx.plan_compiler import Compilation, compile_plan
from policy_server.formats.onnx.roles import Roles, find_roles
from policy_server.formats.onnx.runtimes import (
    GraphRunError,
    has_onnxruntime,
    open_runtime,
    row_function,
)
from policy_server.installation import require
from policy_server.policy import Policy, PolicySignature
from policy_server.schema import ServerSchema
from policy_server.schema_fit import check_schema_fits, describe_signature
from policy_server.settings import Engine

__all__ = ["load_policy"]

Array = NDArray[Any]
Function = Callable[[Array], Array]

_TOLERANCE = 1e-5
_BARE_MODE = "the graph's own deterministic action is the mean without its tanh, and so is the mode"
_MEASURED_ROWS = 191
_LARGEST = np.float32(1e18)
# onnxruntime's own convolutions are faster above this many multiplications an observation.
_MOST_IN_CONVOLUTIONS = 1_000_000
_SHOWN_NAMES = 8


def load_policy(
    files: Mapping[str, Path], schema: ServerSchema | None, *, engine: Engine
) -> Policy:
    """Load the policy, check that schema.yaml fits it, and build its network.

    Args:
        files: the model's files by name: an .onnx file, and those beside it.
        schema: the contents of schema.yaml; None for a policy that has none yet.
        engine: `numpy`, `onnxruntime`, or `auto` for NumPy where that agrees with the graph.

    Returns:
        The policy, ready to answer.

    Raises:
        ModelError: if the file can't give a policy, or not by the engine that was asked for.
        SchemaError: if schema.yaml disagrees with the policy.
        MissingPackageError: if a package is missing that the file needs.
    """
    model = read_model(files)
    description = read_description(files, model)
    roles = find_roles(model, schema, flow=None if description is None else description.flow)
    _check_width(roles, schema)
    graph = _Graph(model, roles)
    # A graph that can't be run is refused before it is looked into.
    graph.measure([item.name for item in model.outputs])
    actions = read_actions(model, roles, schema, graph.measure)
    plan = _plan(roles, actions)
    function = graph.function(plan)
    actions = _checked(graph, plan, actions, function)
    signature = _signature(model, roles, actions)
    if description is not None:
        signature = replace(signature, findings=(*signature.findings, description.finding))
    signature = describe_signature(signature, schema, has_own_bounds=actions.has_own_bounds)
    if signature.mask_name is not None:
        _check_mask(graph, plan, signature)
    if engine != "onnxruntime":
        try:
            is_forced = engine == "numpy"
            compiled = _compiled(graph, plan, signature, function, is_forced=is_forced)
            return NetworkPolicy(compiled)
        except NotCompiledError as error:
            if engine == "numpy":
                raise ModelError(
                    f"{model.name}: can't be computed by NumPy: {error}; set POLICY_SERVER_ENGINE "
                    "to auto or onnxruntime"
                ) from error
            reason = str(error)
    else:
        reason = "POLICY_SERVER_ENGINE asks for it"
    require("onnxruntime", use=f"{model.name}, which NumPy can't compute ({reason})")
    signature = replace(signature, engine="onnxruntime", engine_reason=reason)
    return OnnxRuntimePolicy(signature, graph.function(plan, is_literal=False))


class _Graph:
    """A graph that is run for observations, row by row where it takes no batch."""

    def __init__(self, model: OnnxModel, roles: Roles) -> None:
        self.model = model
        self.roles = roles
        self.width = roles.observation_width + sum(item.size for item in roles.memory)
        fixed = {
            item.name
            for item in model.inputs
            if item.shape is not None and all(size is not None for size in item.shape)
        }
        self.is_batch_fixed = any(
            feed.rows_axis is None or feed.name in fixed for feed in roles.feeds
        )

        self._measured: dict[str, Measured] = {}

    def measure(self, tensors: Sequence[str]) -> Mapping[str, Measured]:
        """Run the graph for some observations, and return the values of tensors."""
        new = [name for name in tensors if name not in self._measured]
        if new:
            self._measured |= self._run(new)
        return self._measured

    def _run(self, tensors: Sequence[str]) -> dict[str, Measured]:
        constants = {n: self.model.constants[n] for n in tensors if n in self.model.constants}
        computed = [name for name in tensors if name not in constants]
        rows = probe_rows(self.width, np.float32)
        # An odd number that few other sizes are, so that the axis of the rows is told from others.
        size = 1 if self.is_batch_fixed else _MEASURED_ROWS
        rows = rows[: len(rows) // size * size]
        found = {
            name: Measured(value.reshape(1, -1), value.dtype.kind in "iub", is_one_a_row=False)
            for name, value in constants.items()
        }
        if not computed:
            return found
        runtime = open_runtime(self.model, computed)
        values: list[Mapping[str, Array]] = []
        try:
            for first in range(0, len(rows), size):
                batch = rows[first : first + size]
                values.append(runtime.run({feed.name: feed.of(batch) for feed in self.roles.feeds}))
        except GraphRunError as error:
            raise ModelError(
                f"{self.model.name}: can't be computed: {error}; export it again"
            ) from error
        for name in computed:
            parts = [item[name] for item in values]
            is_of_rows = parts[0].ndim > 0 and len(parts[0]) == size
            tables = [rows_first(part, size, 0 if is_of_rows else None) for part in parts]
            found[name] = Measured(
                np.concatenate(tables),
                has_integer_type=parts[0].dtype.kind in "iub",
                is_one_a_row=is_of_rows and parts[0].ndim == 1,
            )
        return found

    def function(self, plan: Plan, *, is_literal: bool = True) -> Function:
        """Return a plan's function, as a runtime computes it; see `open_runtime`."""
        tensors = [item.tensor for item in plan.pieces if item.tensor not in self.model.constants]
        runtime = open_runtime(self.model, tensors, is_literal=is_literal)
        constants = self.model.constants
        at_once = row_function(runtime, plan, constants, is_row_by_row=False)
        alone = row_function(runtime, plan, constants, is_row_by_row=True)
        if self.is_batch_fixed:
            return alone
        rows = probe_rows(plan.width, np.float32)
        try:
            others = extreme_rows(plan.width, "float32", np.float32)
            mixed = mixes_rows(at_once, rows, others, batch_sizes(0)[:-2], refusal=GraphRunError)
        except GraphRunError:
            return alone
        return at_once if mixed is None else alone


def _check_width(roles: Roles, schema: ServerSchema | None) -> None:
    """Hold schema.yaml's width against the graph's: a wrong one has the clearer words here."""
    if schema is None:
        return
    known = PolicySignature(
        observation_width=roles.observation_width,
        observation_dtype="float32",
        inputs=(),
        outputs=(),
        action_outputs=(),
        components=None,
    )
    mask = None if roles.mask is None else roles.mask.name
    if mask is not None and schema.observations is not None:
        kept = tuple(item for item in schema.observations if item.name != mask)
        schema = replace(schema, observations=kept)
    check_schema_fits(replace(schema, discrete=None, tuple=None), known)


def _plan(roles: Roles, actions: Actions) -> Plan:
    widths = {feed.name: feed for feed in roles.feeds}
    states = [
        Piece(
            pair.after, widths[pair.before.name].width, rows_axis=widths[pair.before.name].rows_axis
        )
        for pair in roles.states
    ]
    memory = sum(piece.width for piece in states)
    return Plan(roles.observation_width + memory, roles.feeds, (*actions.pieces, *states))


def _signature(model: OnnxModel, roles: Roles, actions: Actions) -> PolicySignature:
    dtypes = {item.dtype for item in roles.observations}
    dtype = dtypes.pop() if len(dtypes) == 1 else "float32"
    has_mask = roles.mask is not None and any(
        part.kind == "categorical" for part in actions.components
    )
    return PolicySignature(
        observation_width=roles.observation_width,
        observation_dtype=dtype,
        inputs=model.inputs,
        outputs=model.outputs,
        action_outputs=actions.outputs,
        components=actions.components,
        is_value_based=actions.is_value_based,
        basis=actions.basis,
        memory=roles.memory,
        recurrent_inputs=tuple(item.name for item in roles.memory),
        mask_name=roles.mask.name if roles.mask is not None and has_mask else None,
        findings=(*_read(model), *actions.findings, *_assumed(roles)),
    )


def _read(model: OnnxModel) -> list[str]:
    found = [f"read: the graph of {model.producer or 'an unknown exporter'}, opset {model.opset}"]
    if model.metadata:
        names = ", ".join(sorted(model.metadata)[:_SHOWN_NAMES])
        found.append(f"its metadata ({names}) describe the environment, and change no answer")
    return found


def _assumed(roles: Roles) -> list[str]:
    found = []
    if len(roles.observations) > 1:
        names = ", ".join(item.name for item in roles.observations)
        found.append(f"an observation is the inputs {names}, one after another")
    if roles.memory:
        found.append("recurrent: every answer starts from the zero state")
    return found


def _checked(graph: _Graph, plan: Plan, actions: Actions, function: Function) -> Actions:
    """Hold what was read of a graph against its answers: probabilities, and its own modes.

    Returns:
        The actions, whose mode may be the mean of a squashed normal without its tanh.
    """
    rows = probe_rows(plan.width, np.float32)
    inputs = function(rows)[:, : sum(part.inputs for part in actions.components)]
    for piece in actions.pieces:
        if piece.transform == "log" and any(p.kind == "categorical" for p in actions.components):
            _check_probabilities(graph.model.name, actions, inputs)
    if not actions.modes:
        return actions
    widths = [item.columns for item in actions.outputs]
    pieces = tuple(Piece(name, size) for name, size in zip(actions.modes, widths, strict=True))
    modes = graph.function(replace(plan, pieces=pieces))(rows)
    for is_bare in (False, True):
        components = tuple(
            replace(part, has_unsquashed_mode=is_bare and part.kind == "squashed_normal")
            for part in actions.components
        )
        distribution = ActionDistribution(components)
        found = distribution.in_environment_units(distribution.mode(inputs))
        if np.allclose(found, modes, atol=1e-4):
            findings = (*actions.findings, *([_BARE_MODE] if is_bare else []))
            return replace(actions, components=components, findings=findings)
    raise ModelError(
        f"{graph.model.name}: its output {actions.modes[0]!r} differs from the mode of the "
        "distribution that it draws from; export the logits, or mean and log_std"
    )


def _check_probabilities(name: str, actions: Actions, inputs: Array) -> None:
    for part in actions.components:
        total = np.exp(inputs[:, part.first_input : part.first_input + part.size]).sum(axis=1)
        if not np.allclose(total, 1, atol=1e-4):
            raise ModelError(
                f"{name}: its probabilities sum to {total[0]:.4g} for an observation, expected 1; "
                "export the logits, or one softmax for each action"
            )


def _check_mask(graph: _Graph, plan: Plan, signature: PolicySignature) -> None:
    """Refuse a graph whose masked distribution is not the unmasked one over what is allowed."""
    assert signature.components is not None and graph.roles.mask is not None, "it takes a mask"  # noqa: PT018 -- one fact
    mask, sizes = graph.roles.mask, signature.mask_sizes
    if mask.width != sum(sizes):
        raise ModelError(
            f"{graph.model.name}: its input {mask.name!r} has {mask.width} numbers, expected one "
            f"for each of the {sum(sizes)} choices; name it otherwise if it is no action mask"
        )
    rows = probe_rows(plan.width, np.float32)
    generator = np.random.default_rng(4)
    masks = generator.integers(0, 2, (len(rows), mask.width)).astype(bool)
    for first in np.cumsum([0, *sizes[:-1]]):
        masks[:, first] = True
    fed = replace(mask, first=plan.width)
    feeds = tuple(fed if feed.name == mask.name else feed for feed in plan.feeds)
    masked = replace(plan, width=plan.width + mask.width, feeds=feeds)
    theirs = graph.function(masked)(np.concatenate([rows, masks.astype(np.float32)], axis=1))
    distribution = ActionDistribution(signature.components)
    columns = sum(part.inputs for part in signature.components)
    ours = distribution.masked(graph.function(plan)(rows)[:, :columns], masks)
    for mine, other in zip(
        distribution.describe(ours), distribution.describe(theirs[:, :columns]), strict=True
    ):
        if mine.probabilities is None or other.probabilities is None:
            continue
        if not np.allclose(mine.probabilities, other.probabilities, atol=_TOLERANCE):
            raise ModelError(
                f"{graph.model.name}: its input {mask.name!r} does not only forbid choices; name "
                "it otherwise if it is no action mask"
            )


def _compiled(
    graph: _Graph, plan: Plan, signature: PolicySignature, function: Function, *, is_forced: bool
) -> CompiledPolicy:
    """Return the policy as NumPy operations, after comparing its outputs with the runtime's.

    Raises:
        NotCompiledError: saying why NumPy can't compute it.
    """
    library = "onnxruntime" if has_onnxruntime() else "onnx's reference"
    reason = ""
    for is_row_by_row in (False, True):
        if not is_row_by_row and not plan.takes_batches:
            continue
        try:
            compilation = compile_plan(graph.model, plan, is_row_by_row=is_row_by_row)
            _check_cost(compilation.in_convolutions, is_forced=is_forced)
            proof = _hold(compilation, function, plan, signature.memory_width, library)
        except NotCompiledError as error:
            reason = reason or str(error)
            continue
        network = compilation.network
        reason = (
            f"{len(network.steps)} operations{', row by row' if is_row_by_row else ''}, equal to "
            f"{library} on {proof.probes} probes (within {proof.largest:.1e}) and on "
            f"{proof.extremes} extreme ones (within {proof.largest_on_extremes:.1e})"
        )
        return CompiledPolicy(replace(signature, engine="numpy", engine_reason=reason), network)
    raise NotCompiledError(reason)


def _hold(
    compilation: Compilation, function: Function, plan: Plan, memory: int, library: str
) -> EngineProof:
    """Compare a network's answers with a runtime's.

    Raises:
        NotCompiledError: saying where they differ.
    """
    if not compilation.is_row_wise:
        raise NotCompiledError("its network joins the observations of a batch")
    return hold_against_graph(
        compilation.network,
        function,
        probe_rows(plan.width, np.float32),
        _extremes(plan, memory),
        batch_sizes(compilation.in_convolutions),
        refusal=GraphRunError,
        library=library,
    )


def _extremes(plan: Plan, memory: int) -> Array:
    """Return extreme observations; a state stays near zero, as recurrent layers keep it.

    A sum of squares of larger numbers overflows or not by the order that it is taken in.
    """
    rows = extreme_rows(plan.width, "float32", np.float32).clip(-_LARGEST, _LARGEST)
    if memory:
        state = np.random.default_rng(22).uniform(-1, 1, (len(rows), memory))
        rows[:, -memory:] = state.astype(np.float32)
    return rows


def _check_cost(in_convolutions: int, *, is_forced: bool) -> None:
    if in_convolutions > _MOST_IN_CONVOLUTIONS and has_onnxruntime() and not is_forced:
        raise NotCompiledError(
            f"its convolutions take {in_convolutions / 1e6:.1f} million multiplications an "
            f"observation; NumPy is slower above {_MOST_IN_CONVOLUTIONS / 1e6:.1f}"
        )
