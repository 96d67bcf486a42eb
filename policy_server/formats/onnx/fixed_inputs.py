"""Inputs that are the same for every observation: lengths, switches, flags of a reset."""

from __future__ import annotations

import re
from collections.abc import Sequence

from policy_server.errors import ModelError
from policy_server.formats.onnx.plan import Feed
from policy_server.policy import SignatureTensor
from policy_server.schema import ServerSchema

__all__ = ["filled_with", "reset_flags", "switched"]

_LENGTHS = re.compile(r"seq_?lens?|sequence_lengths?")
_SWITCHES = re.compile(r"(?:is_)?training|train_mode|deterministic|explore")
# A recurrent policy's flag of an episode's first step, at which the graph clears the state itself.
# The state of a first step is zero already, so that each step goes on. A graph with a trained first
# state is told by running it. Some libraries write the opposite flag.
_RESETS = re.compile(r"is_init|is_first|episode_starts?|(?:is_)?dones?|(?:is_)?terminals?|resets?")
_CONTINUES = re.compile(r"not_dones?|non_?terminals?|continues?")


def switched(item: SignatureTensor, name: str) -> Feed | None:
    """Return the feed of an input that is no observation; None for one that may be.

    Args:
        item: the input.
        name: the file's name, for messages.
    """
    plain = item.name.lower()
    if _LENGTHS.fullmatch(plain):
        return filled_with(item, name, value=1.0)
    if _SWITCHES.fullmatch(plain) and item.dtype == "bool":
        return filled_with(item, name, value=float(plain == "deterministic"))
    return None


def reset_flags(
    inputs: Sequence[SignatureTensor], name: str, schema: ServerSchema | None
) -> list[Feed]:
    """Return the feeds of the flags that clear a state, which schema.yaml does not observe.

    Each is filled with the number of a step that goes on.

    Args:
        inputs: those of a recurrent policy that are no states.
        name: the file's name, for messages.
        schema: the contents of schema.yaml; None where there is none.
    """
    fields = (schema.observations if schema is not None else None) or ()
    observed = {field.name for field in fields}
    found = []
    for item in inputs:
        plain = item.name.lower()
        goes_on = _CONTINUES.fullmatch(plain) is not None
        if item.name in observed or not (goes_on or _RESETS.fullmatch(plain)):
            continue
        feed = filled_with(item, name, value=float(goes_on))
        if feed.width == 1:
            found.append(feed)
    return found


def filled_with(item: SignatureTensor, name: str, *, value: float = 0.0) -> Feed:
    """Return an input that is always the same; its rows lie along its first open or single axis.

    Args:
        item: the input.
        name: the file's name, for messages.
        value: the number that fills it.

    Raises:
        ModelError: if the file does not state its shape.
    """
    shape = item.shape
    if shape is None:
        raise ModelError(f"{name}: the input {item.name!r} has no shape; export it with one")
    axis = next((at for at, size in enumerate(shape) if size is None or size == 1), None)
    rest = tuple(1 if size is None else size for at, size in enumerate(shape) if at != axis)
    return Feed(item.name, item.dtype, rest, axis, None, value)
