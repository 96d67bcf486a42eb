"""Several inputs of a graph as one observation, in the order that schema.yaml names them in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from policy_server.errors import SchemaError
from policy_server.formats.input_order import in_stated_order
from policy_server.policy import SignatureTensor
from policy_server.schema import ServerSchema

__all__ = ["check_places", "in_schema_order"]


def in_schema_order(
    inputs: Sequence[SignatureTensor], schema: ServerSchema | None, mask: str | None
) -> tuple[SignatureTensor, ...]:
    """Return the inputs in the order in which an observation's numbers come.

    That is schema.yaml's, where its observations are named as the inputs are, else the graph's.

    Args:
        inputs: those of the observation, in the graph's order.
        schema: the contents of schema.yaml; None where there is none.
        mask: the name of the input that is an action mask; None for none.
    """
    fields = None if schema is None else schema.without(mask).observations
    names = [field.name for field in fields or ()]
    by_name = {item.name: item for item in inputs}
    return tuple(by_name[name] for name in in_stated_order(list(by_name), names))


def check_places(
    widths: Mapping[str, int], schema: ServerSchema | None, mask: str | None, *, subject: str
) -> None:
    """Refuse a schema.yaml that gives numbers of one name to an input of another.

    Args:
        widths: how many numbers each input of the observation has, in their order in a row.
        schema: the contents of schema.yaml; None where there is none.
        mask: the name of the input that is an action mask; None for none.
        subject: the file's name, for messages.

    Raises:
        SchemaError: if an observation is named as one of several inputs, and is not in its place.
    """
    fields = None if schema is None else schema.without(mask).observations
    if schema is None or fields is None or len(widths) < 2:
        return
    firsts, first = {}, 0
    for name, width in widths.items():
        firsts[name] = first
        first += width
    start = 0
    for field in fields:
        if firsts.get(field.name, start) != start:
            raise SchemaError(
                f"{schema.source}: observations.{field.name}: begins at number {start} of an "
                f"observation, the input of {subject} at number {firsts[field.name]}; give each "
                f"observation its input's size, and list them as {_listed(widths)}"
            )
        if not field.has_fixed_length or field.max_columns is None:
            return
        start += field.max_columns


def _listed(widths: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ({width})" for name, width in widths.items())
