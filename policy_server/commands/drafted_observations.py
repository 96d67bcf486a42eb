"""The section `observations` of a drafted schema.yaml."""

from __future__ import annotations

import json
from collections.abc import Iterator

from policy_server.policy import ObservationPart, PolicySignature, part_names

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
    kind = "int" if part.is_integer else "float"
    yield f'type: "List[{kind}]"' if part.shape else f"type: {kind}"
    if part.key and part.key != name:
        yield f"description: {json.dumps(f'{part.key!r} in the environment', ensure_ascii=False)}"
    if part.kind == "one_hot":
        yield f"one_hot: {list(part.sizes) if part.shape else part.sizes[0]}"
    elif len(part.shape) > 1:
        yield f"shape: {list(part.shape)}"
    elif part.shape:
        yield f"min_items: {part.items}, max_items: {part.items}"
    if part.kind != "one_hot" and part.low is not None and part.high is not None:
        yield f"minimum: {_number(part.low)}, maximum: {_number(part.high)}"


def _number(bound: float) -> str:
    return f"{int(bound)}" if bound.is_integer() else repr(bound)
