"""The report of `inspect` about a model, and the schema.yaml that `schema` drafts from it."""

from __future__ import annotations

import contextlib
import json
import secrets
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from policy_server.commands.drafted_observations import draft_observations
from policy_server.commands.native_logs import hidden_native_logs
from policy_server.errors import ModelError, SchemaError
from policy_server.files.atomic import write_whole
from policy_server.formats import load_policy
from policy_server.formats.finding import describe_others, find_model, find_policy, policy_at
from policy_server.formats.known_formats import expected_formats
from policy_server.formats.unpacking import unpack_model
from policy_server.installation import command_for
from policy_server.policy import (
    ActionComponent,
    ActionOutput,
    Basis,
    PolicySignature,
    SignatureTensor,
)
from policy_server.schema import (
    ServerSchema,
    find_example_of,
    named_as_example,
    parse_schema,
    read_schema,
    read_schema_file,
)
from policy_server.settings import Settings

__all__ = [
    "ModelReport",
    "draft_schema",
    "inspect_model",
    "opened_model",
    "report_as_json",
    "report_as_text",
    "write_draft",
]

_SOME_LABELS = 4
_UNKNOWN_MEANING = """\
# The file does not say what the network's output means. This draft takes it for the
# logits of one integer action. If it is something else, write that:
#   Q values: `values: q_values` below choices
#   several integer actions: an entry for each, with its choices
#   continuous: discrete: False, and in place of choices `values: action` for the action
#   itself, normal or squashed_normal for means followed by logs of deviations
"""
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
    """

    source: Path
    signature: PolicySignature
    schema: Path | None
    problem: str | None

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
    source = _find_source(path if named is None else named, settings)
    schema = _find_schema(source, settings) if named is None else settings.schema_path
    with _unzipped(source, settings) as folder:
        if schema is None:
            return ModelReport(source, _load(folder, None), None, None)
        try:
            with named_as_example(schema):
                return ModelReport(source, _load(folder, read_schema(schema, policy)), schema, None)
        except SchemaError as error:
            try:
                return ModelReport(source, _load(folder, None), schema, error.message)
            except ModelError:
                raise error from None


@contextlib.contextmanager
def opened_model(path: Path, settings: Settings) -> Iterator[tuple[Path, Path | None]]:
    """Give the folder of a policy's files, and the schema.yaml beside the policy.

    Args:
        path: a policy's zip, other file or folder, or a folder that holds one.
        settings: how much may be unpacked.

    Yields:
        The folder, which is gone afterwards where the policy was unpacked; and the schema.yaml,
        None where there is none.

    Raises:
        ModelError: if there is no policy.
    """
    source = _find_source(path, settings)
    with _unzipped(source, settings) as folder:
        yield folder, _find_schema(source, settings)


def report_as_text(report: ModelReport) -> list[str]:
    """Return the report as aligned lines.

    Args:
        report: the report of `inspect_model`.
    """
    signature = report.signature
    width = signature.observation_width
    values = "any number of values" if width is None else _count(width, "value")
    fits = f"there is none; draft one with `{command_for('schema')}`"
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
            (key if i == 0 else "", line)
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


def draft_schema(path: Path | None, settings: Settings, *, module: str | None = None) -> str:
    """Write the text of a schema.yaml that fits a model.

    Args:
        path: as `inspect_model` takes it.
        settings: the path of the served policy.
        module: the policy's name in a file that holds several; None for the only one.

    Returns:
        YAML with a random access key.

    Raises:
        ModelError: if there is no model, or it can't give a policy.
    """
    source = _find_source(path, settings)
    note = ""
    with _unzipped(source, settings) as folder:
        try:
            signature = _load(folder, None if module is None else ServerSchema(module=module))
        except ModelError:
            if module is not None:
                raise
            # A file that holds the network only: the most common kind of policy is the draft.
            signature = _load(folder, ServerSchema(discrete=True))
            note = _UNKNOWN_MEANING
    if signature.mask_name is not None:
        note += (
            f"# Beside the observation a request may have {signature.mask_name}, the action mask:\n"
            f"# 1 or 0 for each of the {sum(signature.mask_sizes)} choices. If listed below, it is "
            "required.\n"
        )
    text = _draft(signature, source.name, note, module=module)
    parse_schema(text)
    return text


def write_draft(text: str, file: Path, *, overwrite: bool) -> None:
    """Write a drafted schema.yaml.

    Args:
        text: its text.
        file: the file to write.
        overwrite: replace the file if it exists.

    Raises:
        SchemaError: if the file exists and is no example's, or can't be written.
    """
    if file.exists() and not overwrite and find_example_of(file) is None:
        raise SchemaError(f"{file}: exists; give another file, or overwrite it with --overwrite")
    try:
        write_whole(file, text, is_durable=True)
    except OSError as error:
        raise SchemaError(f"{file}: can't be written: {error.strerror or error}") from error


def _find_named(settings: Settings, policy: str | None) -> Path | None:
    """Return the model that schema.yaml names for a policy; None where it names no models."""
    if not settings.schema_path.is_file():
        return None
    section = read_schema_file(settings.schema_path).choose(policy)
    # Of several versions the first: they take the same observations and give the same actions.
    models = [section.model, *(version.model for version in section.versions)]
    named = next((model for model in models if model is not None), None)
    return None if named is None else settings.home / named


def _find_source(path: Path | None, settings: Settings) -> Path:
    if path is None:
        served = find_policy(settings)
        if served is None:
            raise ModelError(
                describe_others(settings)
                or f"{settings.zip_path}: not found; name a file or a folder, or put a policy "
                f"there with `{command_for('copy_server_files FOLDER')}`"
            )
        return served
    if path.is_file():
        return path
    found = _find_below(path, settings)
    if found is None:
        others = describe_others(settings.model_copy(update={"home": path}))
        if others is not None:
            raise ModelError(others)
        what = f"holds no policy, {expected_formats()}" if path.is_dir() else "not found"
        raise ModelError(
            f"{path}: {what}; expected a policy's file or folder, or an example's folder"
        )
    return found


def _find_below(folder: Path, settings: Settings) -> Path | None:
    """Return the policy that a folder is or holds: its own files, a zip, or files at any depth."""
    return policy_at(folder, settings) or find_model(folder)


def _find_schema(source: Path, settings: Settings) -> Path | None:
    folder = source.parent if source.is_file() else source
    if folder.resolve() == settings.models_path.resolve():
        folder = settings.home
    schema = folder / settings.schema_path.name
    return schema if schema.is_file() else None


@contextlib.contextmanager
def _unzipped(source: Path, settings: Settings) -> Iterator[Path]:
    if source.is_dir():
        yield source
        return
    with tempfile.TemporaryDirectory() as scratch:
        models = Path(scratch) / settings.models_path.name
        yield unpack_model(source, models, max_bytes=settings.max_unpacked_bytes)


def _load(folder: Path, schema: ServerSchema | None) -> PolicySignature:
    with hidden_native_logs():
        return load_policy(folder, schema).signature


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


def _draft(signature: PolicySignature, source: str, note: str, *, module: str | None) -> str:
    actions = signature.action_outputs
    is_discrete = all(action.is_integer for action in actions)
    chosen = "" if module is None else f"module: {json.dumps(module)}\n"
    return f"""\
# Drafted from {source}.
# Give each value a name of its own, in the order of training, such as
#   speed: {{type: float, description: in m/s, minimum: 0, maximum: 30, example: 12.5}}
# Types: int, float, bool, List[int], List[float], List[bool].
{note}{chosen}observations:
{draft_observations(signature)}{_draft_actions(signature)}parameters:
  discrete: {is_discrete}
  tuple: {len(actions) > 1}
  api_key: {json.dumps(secrets.token_urlsafe(18))}
"""


def _draft_actions(signature: PolicySignature) -> str:
    parts = signature.components or ()
    if not parts:
        return ""
    names = ["action"] if len(parts) == 1 else [f"action_{index}" for index in range(len(parts))]
    known = [part.name for part in parts if part.name is not None]
    if len(set(known)) == len(parts):
        # A policy that describes itself.
        names = known
    return "actions:\n" + "".join(map(_draft_action, names, parts))


def _draft_action(name: str, part: ActionComponent) -> str:
    if part.labels is not None:
        return f"  {name}:\n    labels: {json.dumps(part.labels, ensure_ascii=False)}\n"
    if part.kind == "categorical":
        some = ", ".join(f"choice_{index}" for index in range(min(part.size, _SOME_LABELS)))
        labels = some if part.size <= _SOME_LABELS else f"{some}, ..."
        return f"  {name}:\n    choices: {part.size}\n    # labels: [{labels}]\n"
    if part.is_integer:
        return f"  {name}:\n    description: an integer; give it labels, in order\n"
    dimensions = f"  {name}:\n    dimensions: {part.size}\n"
    if part.low is not None:
        return f"{dimensions}    # The policy's file has the bounds, in the environment's units.\n"
    low, high = [-1.0] * part.size, [1.0] * part.size
    return (
        f"{dimensions}"
        "    # The bounds in the environment's units, to which the policy's [-1, 1] is rescaled:\n"
        f"    # low: {low}\n    # high: {high}\n"
    )
