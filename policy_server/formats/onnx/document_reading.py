"""The description of a policy in an .onnx file, read and held against itself."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from pydantic import ValidationError

from policy_server.errors import ModelError
from policy_server.formats.onnx.model_file import OnnxModel
from policy_server.formats.onnx.policy_metadata import POLICY_KEY, PolicyDocument
from policy_server.policy import ActionComponent

__all__ = ["read_document"]

_VERSIONED = re.compile(r"policy_server\.policy\.v\w+")
_PAGE = "docs/onnx.md"


def read_document(model: OnnxModel) -> PolicyDocument | None:
    """Return the description in an .onnx file, after checking that it is whole.

    Args:
        model: the file's contents.

    Returns:
        The description; None where the file has none.

    Raises:
        ModelError: naming the first mistake in it.
    """
    text = model.metadata.get(POLICY_KEY)
    if text is None:
        other = next((key for key in model.metadata if _VERSIONED.fullmatch(key)), None)
        if other is None:
            return None
        raise ModelError(
            f"{model.name}: describes its policy by {other}, this server reads {POLICY_KEY}; "
            "update the server, or export it again"
        )
    try:
        document = PolicyDocument.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the text"
        raise ModelError(
            f"{model.name}: {POLICY_KEY}: {where}: {first['msg']}; mend it as {_PAGE} has it"
        ) from error
    problem = next(_problems(document), None)
    if problem is not None:
        raise ModelError(f"{model.name}: {POLICY_KEY}: {problem}; mend it as {_PAGE} has it")
    return document


def _problems(document: PolicyDocument) -> Iterator[str]:
    column = 0
    for place, part in enumerate(document.components()):
        where = f"distribution.components.{place}"
        if part.first_column != column:
            yield f"{where}.first_column: is {part.first_column}, expected {column}"
        column += part.columns
        yield from _problems_of(part, where)
        if document.distribution.is_value_based and part.kind != "categorical":
            yield "distribution.is_value_based: is for categorical components"
    columns = sum(action.columns for action in document.action_outputs())
    if columns != column:
        yield f"actions: have {columns} columns, the components {column}"
    yield from _false_integers(document)
    for place, item in enumerate(document.observation.parts):
        count = math.prod(item.shape)
        if item.kind == "one_hot" and len(item.sizes) != count:
            yield f"observation.parts.{place}.sizes: has {len(item.sizes)} for {count} integers"
        yield from _crossed("low", (item.low, item.high), f"observation.parts.{place}")


def _false_integers(document: PolicyDocument) -> Iterator[str]:
    """Yield the actions that are stated as integers, and would be cut to them."""
    of_columns = [part for part in document.components() for _ in range(part.columns)]
    first = 0
    for place, action in enumerate(document.action_outputs()):
        parts = of_columns[first : first + action.columns]
        first += action.columns
        if action.is_integer and not all(part.is_integer for part in parts):
            yield f"actions.{place}.is_integer: is True, its components give continuous numbers"


def _crossed(key: str, bounds: tuple[float | None, float | None], where: str) -> Iterator[str]:
    """Yield a lower bound that lies above the upper one; None for an open side."""
    low, high = bounds
    if low is not None and high is not None and low > high:
        yield f"{where}.{key}: is {low}, above the high of {high}"


def _problems_of(part: ActionComponent, where: str) -> Iterator[str]:
    if (part.low is None) != (part.high is None):
        yield f"{where}: has low or high alone, expected both"
    for key, values in (("low", part.low), ("high", part.high)):
        if values is not None and (len(values) != part.size or part.is_integer):
            yield f"{where}.{key}: expected one bound a dimension of a continuous action"
    if part.labels is not None and len(part.labels) != part.size:
        yield f"{where}.labels: has {len(part.labels)} labels for {part.size} choices"
    for pair in zip(part.low or (), part.high or (), strict=False):
        yield from _crossed("low", pair, where)
    for key, bounds in (("log_std_bounds", part.log_std_bounds), ("mean_bounds", part.mean_bounds)):
        yield from _crossed(key, bounds or (None, None), where)
