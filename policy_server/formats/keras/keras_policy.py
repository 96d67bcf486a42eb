"""From a Keras file to a policy that answers."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from policy_server.engine.network import CompiledPolicy, NetworkPolicy
from policy_server.errors import ModelError
from policy_server.formats.keras.layer_calls import Model, Output
from policy_server.formats.keras.model_config import SUBJECT, Part, read_config
from policy_server.formats.keras.model_inputs import (
    MOST_WIDE,
    ModelInput,
    inputs_of,
    memory_of,
    ordered,
)
from policy_server.formats.keras.model_parts import layers_below
from policy_server.formats.keras.network_steps import Steps
from policy_server.formats.keras.stored_weights import Weights, read_weights
from policy_server.formats.keras.window_check import (
    WINDOW,
    Run,
    check_window,
    uncomputed_window,
)
from policy_server.formats.output_meaning import Meaning, NetworkOutput, ReadOutput, read_meaning
from policy_server.formats.probability_checks import (
    check_probabilities,
    refuse_hidden_probabilities,
)
from policy_server.formats.row_types import common_dtype, mixed_columns
from policy_server.formats.scaled_actions import without_rescaling
from policy_server.policy import ObservationPart, PolicySignature, SignatureTensor
from policy_server.schema import ServerSchema
from policy_server.schema_fit import describe_signature
from policy_server.settings import Engine

__all__ = ["load_policy"]


def load_policy(
    config: Path,
    weights: Path,
    metadata: Path | None,
    schema: ServerSchema | None,
    *,
    engine: Engine,
) -> NetworkPolicy:
    """Build the model's network, read the meaning of its outputs, and check schema.yaml.

    Args:
        config: the member config.json.
        weights: the member model.weights.h5.
        metadata: the member metadata.json; None where there is none.
        schema: the contents of schema.yaml; None for a policy that has none yet.
        engine: `numpy` and `auto` alike; `tensorflow` can't compute it.

    Returns:
        The policy, ready to answer.

    Raises:
        MissingPackageError: if h5py is not installed.
        ModelError: if the file can't give the policy.
        SchemaError: if schema.yaml disagrees with the policy.
    """
    if engine == "tensorflow":
        raise ModelError(
            f"{SUBJECT}: is computed by NumPy; set POLICY_SERVER_ENGINE to auto or numpy"
        )
    version = _version(metadata)
    try:
        part = read_config(config)
        # Weights of another type are not stored as plain numbers: the type is the reason to state.
        _dtype_of(part)
        loading = _Loading(part, read_weights(weights), schema)
        return loading.policy(version)
    except RecursionError as error:
        raise ModelError(f"{SUBJECT}: is nested too deeply; no model is") from error


def _version(metadata: Path | None) -> str:
    """Return the version of Keras that wrote the file."""
    try:
        document = json.loads(metadata.read_bytes()) if metadata is not None else {}
    except (ValueError, RecursionError):
        document = {}
    found = document.get("keras_version") if isinstance(document, dict) else None
    version = found[:20] if isinstance(found, str) else "3"
    if version.startswith("2."):
        raise ModelError(
            f"metadata.json: the file is of Keras {version}; load it with Keras 3 and save it again"
        )
    return version


class _Loading:
    """One model on its way to a policy."""

    def __init__(
        self, part: Part, weights: Weights, schema: ServerSchema | None, *, length: int = 1
    ) -> None:
        self._part, self._weights, self._schema = part, weights, schema
        dtype = _dtype_of(part)
        inputs = inputs_of(part, length)
        self._memory = memory_of(part, inputs)
        observed = [item for item in inputs if item.name not in self._memory.inputs]
        self._observed = ordered(observed, schema)
        self._width = sum(item.width for item in self._observed)
        if self._width < 1:
            raise ModelError(f"{SUBJECT}: takes no observation")
        if (width := self._width + self._memory.width) > MOST_WIDE:
            raise ModelError(
                f"{SUBJECT}: takes {width:,} numbers for an observation with its memory, expected "
                f"at most {MOST_WIDE:,}"
            )
        self._steps = Steps(self._width + self._memory.width, dtype)
        self._model = Model(self._steps, weights, self._states())
        self._outputs = self._run(inputs)

    def _states(self) -> dict[str, list[int]]:
        """Return the registers of the states that layers keep themselves, by their paths."""
        found: dict[str, list[int]] = {}
        for path, index in self._memory.kept:
            found.setdefault(path, []).append(self._state(index))
        return found

    def _state(self, index: int) -> int:
        first = self._width + self._memory.first(index)
        return self._steps.number(self._steps.part(0, 0, first, self._memory.tensors[index].size))

    def _run(self, inputs: Sequence[ModelInput]) -> list[Output]:
        steps, registers, first = self._steps, {}, 0
        for item in self._observed:
            x = steps.part(0, 0, first, item.width)
            first += item.width
            if item.dtype.startswith("float"):
                x = steps.number(x)
            else:
                if item.dtype == "uint8":
                    # A row's numbers are held to 0..255, which both casts leave as they are.
                    x = steps.add("Cast", x, dtype="int32")
                x = steps.add("Cast", x, dtype=item.dtype)
            registers[item.name] = steps.reshape(x, item.shape)
        for name, index in self._memory.inputs.items():
            registers[name] = self._state(index)
        return self._model.run(self._part, [registers[item.name] for item in inputs])

    def policy(self, version: str) -> NetworkPolicy:
        """Return the policy that the model's outputs give."""
        schema, after = self._schema, self._after()
        shown = {
            output.name: (self._network_output(output, schema), output)
            for output in self._outputs
            if output.register not in after
        }
        outputs = [item for item, _ in shown.values()]
        meaning = read_meaning(outputs, schema, subject=SUBJECT)
        steps = self._steps
        bounds = {
            item.name: steps.bounds[output.register]
            for item, output in shown.values()
            if output.register in steps.bounds
        }
        self._check_probabilities(meaning, [shown[one.output.name][1] for one in meaning.read])
        if any(item.is_sequence for item in self._observed):
            self._check_window([one.output.name for one in meaning.read])
        read = [self._source(one, shown[one.output.name][1]) for one in meaning.read]
        result = steps.joined(*[steps.number(x) for x in (*read, *after)])
        builder = steps.builder
        if not builder.is_row_wise(result) or builder.depends_on_size:
            raise ModelError(
                f"{SUBJECT}: one observation of a batch changes the answer to another; "
                "expected a model that answers each by itself"
            )
        network = builder.finish(result)
        inputs = sum(part.inputs for part in meaning.components)
        signature = PolicySignature(
            observation_width=self._width,
            observation_dtype=common_dtype([item.dtype for item in self._observed]),
            observation_columns=mixed_columns(
                [(item.dtype, item.width) for item in self._observed]
            ),
            inputs=tuple(
                SignatureTensor(item.name, item.dtype, (None, *item.shape))
                for item in self._observed
            ),
            outputs=(SignatureTensor("action_dist_inputs", "float32", (None, inputs)),),
            action_outputs=meaning.action_outputs,
            components=meaning.components,
            is_value_based=meaning.is_value_based,
            basis=meaning.basis,
            memory=self._memory.tensors,
            observation_parts=tuple(map(self._observed_part, self._observed)),
            findings=self._findings(meaning, version),
            engine="numpy",
            engine_reason=f"{len(network.steps)} operations, from the file's own weights",
        )
        described = describe_signature(
            signature,
            without_rescaling(meaning, schema, bounds),
            has_own_bounds=meaning.has_own_bounds,
        )
        return NetworkPolicy(CompiledPolicy(described, network))

    def _after(self) -> list[int]:
        """Return the registers of the memory after the step."""
        return self._memory.after(self._outputs, self._model.states)

    def _check_window(self, names: Sequence[str]) -> None:
        """Refuse a model that gives other numbers for a whole window than step by step."""
        shapes = {output.name: self._steps.shape(output.register) for output in self._outputs}
        shapes = {name: shapes[name] for name in names}
        try:
            window = _Loading(self._part, self._weights, self._schema, length=WINDOW)
            step, whole = self.last_step(shapes), window.last_step(shapes)
        except ModelError as error:
            raise uncomputed_window(error) from error
        check_window(step, whole, self._observed, self._memory.width, self._steps.dtype)

    def last_step(self, shapes: Mapping[str, tuple[int, ...]]) -> Run:
        """Return the function of outputs' numbers at the last step, followed by the memory.

        Args:
            shapes: the outputs' shapes for one step, by their names.
        """
        steps, found = self._steps, []
        registers = {output.name: output.register for output in self._outputs}
        for name, shape in shapes.items():
            x = registers[name]
            if steps.shape(x) != shape:
                x = steps.part(x, 0, steps.shape(x)[0] - 1, 1)
            found.append(steps.number(steps.reshape(x, (math.prod(shape),))))
        result = steps.joined(*found, *[steps.number(x) for x in self._after()])
        return steps.builder.finish(result).compile()

    def _observed_part(self, item: ModelInput) -> ObservationPart:
        return ObservationPart(
            item.name if len(self._observed) > 1 else "",
            "box",
            item.shape[1:] if item.is_sequence else item.shape,
            is_integer=item.dtype.startswith(("int", "uint")),
        )

    def _network_output(self, output: Output, schema: ServerSchema | None) -> NetworkOutput:
        """Return an output as the rule of meaning takes it."""
        steps, shape = self._steps, self._steps.shape(output.register)
        ending = steps.endings.get(output.register, (None, 0))[0]
        is_integer = steps.builder.dtype(output.register).kind in "iu"
        size, is_normalized = steps.size(output.register), ending in ("softmax", "log_softmax")
        # Dimensions of one number make no rows.
        row_length = next((length for length in reversed(shape) if length > 1), size)
        known = None if is_normalized else row_length
        tried = steps.builder.tried(output.register)
        # An output that is the same for every observation has no row for each.
        numbers = tried.reshape(len(tried), -1) if tried.ndim and tried.size > size else None
        whole = NetworkOutput(
            output.name,
            size,
            is_integer,
            bool(shape),
            ending,
            known,
            is_inner=output.register in self._inner,
            rows=numbers,
        )
        if not is_normalized or whole.width == shape[-1]:
            return whole
        rows = whole.width // shape[-1]
        if schema is None or not (schema.tuple or len(schema.actions or ()) == rows):
            raise ModelError(
                f"{SUBJECT}: the output {output.name!r} holds {rows} softmaxes over "
                f"{shape[-1]} numbers; if these are {rows} actions, list them under 'actions' in "
                f"schema.yaml with 'choices: {shape[-1]}' each"
            )
        return whole

    @functools.cached_property
    def _inner(self) -> frozenset[int]:
        """Return the registers that outputs are computed from, as from a layer of features."""
        return frozenset(
            register
            for output in {output.register for output in self._outputs}
            for step in self._steps.builder.finish(output).steps
            for register in step.inputs
        )

    def _check_probabilities(self, meaning: Meaning, outputs: Sequence[Output]) -> None:
        """Refuse outputs that are read as probabilities and are none of the actions' choices."""
        rows = [self._steps.builder.tried(output.register) for output in outputs]
        endings = {one.output.ending for one in meaning.read}
        forms = {one.form for one in meaning.read}
        if endings == {"log_softmax"}:
            rows = [np.exp(values) for values in rows]
        elif forms not in ({"probabilities"}, {"logits"}):
            return
        flat = np.concatenate([values.reshape(len(values), -1) for values in rows], axis=1)
        if forms == {"logits"} and endings != {"log_softmax"}:
            refuse_hidden_probabilities(SUBJECT, meaning.components, flat, self._schema)
        else:
            check_probabilities(SUBJECT, meaning.components, flat)

    def _source(self, one: ReadOutput, output: Output) -> int:
        """Return the register of an output's numbers, as the distribution takes them."""
        steps, x = self._steps, output.register
        ending, before = steps.endings.get(x, (None, x))
        if one.form == "one_hot" or (one.form == "probabilities" and ending == "softmax"):
            x = before
        elif one.form in ("probabilities", "std"):
            x = steps.add("Log", steps.number(x))
        return steps.reshape(x, (steps.size(x),))

    def _findings(self, meaning: Meaning, version: str) -> tuple[str, ...]:
        read = (
            f"read: a {self._part.kind} model of Keras {version}, its layers and its weights; no "
            "code of the file was run"
        )
        found = [read, *meaning.findings]
        names = ", ".join(item.name for item in self._observed)
        if len(self._observed) > 1:
            found.append(f"observations are the inputs {names}, one after another")
        if self._memory.tensors:
            found.append("recurrent: an observation is one step of time")
        return tuple(found)


def _dtype_of(part: Part) -> str:
    """Return the type that all layers compute in."""
    found = set()
    for _, layer in layers_below(part):
        stated = layer.settings.get("dtype")
        if isinstance(stated, dict):
            config = stated.get("config")
            stated = config.get("name") if isinstance(config, dict) else None
        if layer.kind != "InputLayer" and not layer.is_operation and stated is not None:
            found.add(str(stated))
    if len(found) > 1 or not found <= {"float32", "float64"}:
        raise ModelError(
            f"{SUBJECT}: computes in {', '.join(sorted(found))}; expected float32, whose "
            "results NumPy repeats"
        )
    return found.pop() if found else "float32"
