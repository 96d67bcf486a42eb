"""The section `observations` of a drafted schema.yaml."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

from policy_server.policy import ObservationPart, PolicySignature, part_names
from policy_server.schema import FLOAT32_MAX

__all__ = ["draft_observations"]


def draft_observations(signature: PolicySignature) -> str:
    """Return the entries of the section `observations`.

    Args:
        signature: the policy's signature. Where its file tells the parts of an observation, each is
            an entry that takes it as the environment gives it; else all is one list.
    """
    parts = signature.observation_parts
    if not parts:
        width = signature.observation_width
        text = '  observation:\n    type: "List[float]"\n'
        return text if width is None else f"{text}    min_items: {width}\n    max_items: {width}\n"
    named = zip(part_names(parts), parts, strict=True)
    return "".join(f"  {name}: {{{', '.join(_words(name, part))}}}\n" for name, part in named)


def _words(name: str, part: ObservationPart) -> Iterator[str]:
    kind = "int" if part.is_integer or part.kind != "box" else "float"
    yield f'type: "List[{kind}]"' if part.shape else f"type: {kind}"
    if part.key and part.key != name:
        yield f"description: {json.dumps(f'{part.key!r} in the environment', ensure_ascii=False)}"
    if part.kind == "one_hot":
        yield from _expanded(part)
        return
    if len(part.shape) > 1:
        yield f"shape: {list(part.shape)}"
    elif part.shape:
        yield f"min_items: {part.items}, max_items: {part.items}"
    bounds = zip(("minimum", "maximum"), _bounds(part), strict=True)
    told = [f"{key}: {_number(bound)}" for key, bound in bounds if bound is not None]
    if told:
        yield ", ".join(told)


def _expanded(part: ObservationPart) -> Iterator[str]:
    """Give the words of integers that become one-hot vectors."""
    has_one_size = len(set(part.sizes)) == 1
    if not part.shape:
        yield f"one_hot: {part.sizes[0]}"
    elif len(part.shape) > 1 and has_one_size:
        yield f"one_hot: {part.sizes[0]}, shape: {list(part.shape)}"
    elif len(part.sizes) == 1:
        # A size alone would be that of each item of a list of any length.
        yield f"one_hot: {list(part.sizes)}, min_items: 1, max_items: 1"
    else:
        # With a size for each item schema.yaml has flat lists only.
        yield f"one_hot: {list(part.sizes)}"


def _bounds(part: ObservationPart) -> tuple[float | None, float | None]:
    """Return the bounds that schema.yaml can state; None for a side without one."""
    if part.kind == "binary":
        return 0.0, 1.0
    low, high = (
        None if bound is None or abs(bound) >= FLOAT32_MAX else bound
        for bound in (part.low, part.high)
    )
    if part.is_integer:
        low = None if low is None else float(math.ceil(low))
        high = None if high is None else float(math.floor(high))
    # No integer lies between such bounds as 0.25 and 0.75.
    return (None, None) if low is not None and high is not None and low > high else (low, high)


def _number(bound: float) -> str:
    return f"{int(bound)}" if bound.is_integer() else repr(bound)
