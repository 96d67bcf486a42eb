"""The report of `inspect` about a model."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from policy_server.commands.policy_files import (
    find_schema,
    find_source,
    signature_of,
    unzipped_model,
)
from policy_server.errors import ModelError, SchemaError, printable
from policy_server.installation import command_for
from policy_server.policy import (
    ActionComponent,
    ActionOutput,
    Basis,
    PolicySignature,
    SignatureTensor,
)
from policy_server.schema import named_as_example, read_schema, read_schema_file
from policy_server.settings import Settings

__all__ = [
    "ModelReport",
    "inspect_model",
    "report_as_json",
    "report_as_text",
]

_BASES: Mapping[Basis, str] = {
    "structure": "how actions are drawn was read from the file; the findings tell the checks",
    "metadata": "the file describes the distribution; its test vectors agree",
    "names": "the names of the file's outputs state the distribution; it holds no draws",
    "schema": "schema.yaml states the distribution; the file holds no draw to hold it against",
    "graph": "the file's own draws are answered; their distribution is not known",
}


@dataclass(frozen=True)
class ModelReport:
    """A model, and the schema.yaml that lies beside it.

    Attributes:
        source: the zip, other file or folder of the model.
        signature: its inputs, outputs and distribution; with the schema's names where that fits.
        schema: the schema.yaml; None where there is none.
        problem: why the schema can't be served with this model; None where it can.
        path: the path that was asked about; None for the served policy.
    """

    source: Path
    signature: PolicySignature
    schema: Path | None
    problem: str | None
    path: Path | None = None

    def check_fits(self) -> None:
        """Raise a SchemaError if there is a schema.yaml that can't be served with the model."""
        if self.problem is not None:
            raise SchemaError(self.problem)


def inspect_model(
    path: Path | None, settings: Settings, *, policy: str | None = None
) -> ModelReport:
    """Load a model, check its distribution, and compare it with the schema.yaml beside it.

    Args:
        path: a policy's zip, other file or folder, or a folder that holds one; None for the served
            policy.
        settings: the path of the served policy.
        policy: the name of one of schema.yaml's policies; None for its only one.

    Returns:
        The report.

    Raises:
        ModelError: if there is no model, or it can't give a policy.
        SchemaError: if the model can't be read without the schema, and that is wrong.
    """
    named = _find_named(settings, policy) if path is None else None
    source = find_source(path if named is None else named, settings)
    schema = find_schema(source, settings) if named is None else settings.schema_path
    with unzipped_model(source, settings) as folder:
        if schema is None and policy is not None:
            raise SchemaError(f"--policy: {policy!r} is of no schema.yaml; beside {source} is none")
        if schema is None:
            return ModelReport(source, signature_of(folder, None, settings), None, None, path)
        try:
            with named_as_example(schema, draft=_draft_to(path, schema)):
                signature = signature_of(folder, read_schema(schema, policy), settings)
                return ModelReport(source, signature, schema, None, path)
        except SchemaError as error:
            try:
                return ModelReport(
                    source, signature_of(folder, None, settings), schema, error.message, path
                )
            except ModelError:
                raise error from None


def report_as_text(report: ModelReport) -> list[str]:
    """Return the report as aligned lines.

    Args:
        report: the report of `inspect_model`.
    """
    signature = report.signature
    width = signature.observation_width
    values = "any number of values" if width is None else _count(width, "value")
    fits = f"there is none; draft one with `{command_for(_draft_of(report.path))}`"
    if report.schema is not None:
        fits = (
            f"{report.schema} fits" if report.problem is None else f"does not fit: {report.problem}"
        )
    sections: dict[str, Sequence[str]] = {
        "model": [str(report.source)],
        "inputs": _table([_tensor(item) for item in signature.inputs]),
        "outputs": _table([_tensor(item) for item in signature.outputs]),
        "observation": [
            f"{values} of {signature.observation_dtype}",
            *_table([(part.key, str(part)) for part in signature.observation_parts]),
        ],
        "actions": _table([_action(item) for item in signature.action_outputs]),
        "family": [signature.family],
        "components": _table([_component(*item) for item in enumerate(signature.components or ())])
        or ["unknown"],
        "proved": ["yes" if signature.is_proved else "no"],
        "basis": [f"{signature.basis}: {_BASES[signature.basis]}"],
        "findings": signature.findings or ["none"],
        "engine": [f"{signature.engine}: {signature.engine_reason}"],
        "recurrent": [tensor.name for tensor in signature.memory] or ["no"],
        "action mask": [_mask(signature)],
        "schema": [fits],
    }
    return _table(
        [
            (key if i == 0 else "", printable(line))
            for key, lines in sections.items()
            for i, line in enumerate(lines)
        ]
    )


def report_as_json(report: ModelReport) -> str:
    """Return the report as a JSON object on one line; a bound that is infinite is null.

    Args:
        report: the report of `inspect_model`.
    """
    document: dict[str, Any] = asdict(report.signature)
    document |= {
        "is_proved": report.signature.is_proved,
        "model": str(report.source),
        "family": report.signature.family,
        "schema": None if report.schema is None else str(report.schema),
        "schema_fits": None if report.schema is None else report.problem is None,
        "schema_problem": report.problem,
    }
    return orjson.dumps(document).decode()


def _draft_of(path: Path | None) -> str:
    """Return the words of the command that drafts a schema.yaml for the policy at a path."""
    return "schema" if path is None else f"schema {shlex.quote(str(path))}"


def _draft_to(path: Path | None, schema: Path) -> str:
    return f"{_draft_of(path)} --output {shlex.quote(str(schema))}"


def _find_named(settings: Settings, policy: str | None) -> Path | None:
    """Return the model that schema.yaml names for a policy; None where it names no models."""
    if not settings.schema_path.is_file():
        return None
    section = read_schema_file(settings.schema_path).choose(policy)
    # Of several versions the first: they take the same observations and give the same actions.
    models = [section.model, *(version.model for version in section.versions)]
    named = [model for model in models if model is not None]
    local = next((model for model in named if "://" not in model), None)
    if named and local is None:
        raise ModelError(
            f"{settings.schema_path}: the model of {section.name} is an address; get it with "
            f"`{command_for('fetch ADDRESS')}` into a folder of its own, and name its file"
        )
    return None if local is None else settings.home / local


def _mask(signature: PolicySignature) -> str:
    """Return the action mask that a policy takes beside its observation."""
    if signature.mask_name is None:
        return "no"
    sizes = " + ".join(map(str, signature.mask_sizes))
    return f"{signature.mask_name}, beside the observation: 1 or 0 for each of {sizes} choices"


def _tensor(item: SignatureTensor) -> tuple[str, str]:
    if item.shape is None:
        return item.name, f"{item.dtype} of any shape"
    dimensions = ", ".join("N" if size is None else str(size) for size in item.shape)
    return item.name, f"{item.dtype} ({dimensions})"


def _action(item: ActionOutput) -> tuple[str, str]:
    kind = "integer" if item.is_integer else "continuous"
    return item.name, f"{kind}, {_count(item.columns, 'value')}"


def _component(index: int, item: ActionComponent) -> tuple[str, str]:
    size = _count(item.size, "choice" if item.kind == "categorical" else "dimension")
    parts = [f"{item.kind}, {size}"]
    if item.labels is not None:
        parts.append(", ".join(item.labels))
    if item.low is not None and item.high is not None:
        scaling = "rescaled" if item.is_normalized else "clipped"
        parts.append(f"{scaling} to {list(item.low)} .. {list(item.high)}")
    if item.temperature != 1.0:
        parts.append(f"temperature {item.temperature:g}")
    for noun, bounds in (
        ("mean", item.mean_bounds),
        ("log of the deviation", item.log_std_bounds),
    ):
        if bounds is not None:
            low, high = ("" if bound is None else f"{bound:g}" for bound in bounds)
            sides = [f"from {low}" if low else "", f"to {high}" if high else ""]
            parts.append(" ".join([noun, *filter(None, sides)]))
    if item.std_floor:
        parts.append(f"deviation + {item.std_floor:g}")
    return item.name or str(index), ": ".join(parts)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _table(rows: Sequence[tuple[str, str]]) -> list[str]:
    column = max((len(key) for key, _ in rows), default=0)
    return [f"{key:<{column}}  {value}" for key, value in rows]
