"""Operators whose meaning is the same in two versions of ONNX's operators.

A function of an ONNX file may be written for another version than its model. Runtimes compute it by
the model's version, whatever the function says, and ONNX's converter of versions mistakes some.
"""

from __future__ import annotations

from typing import Any

__all__ = ["is_same_operation"]

# What they do by default is not what they did before, as it is for all other operators: by a new
# attribute of RoiAlign, and by an input of DFT that was an attribute.
_CHANGED = ("DFT", "RoiAlign")
# Before version 13 they are taken over all axes from the one that they name: of the last, itself.
_NORMALIZING = ("Hardmax", "LogSoftmax", "Softmax")


def is_same_operation(node: Any, domain: str, written: int, taken: int) -> bool:  # noqa: ANN401 -- onnx is untyped
    """Return whether a node means the same in two versions of its domain's operators.

    The types that an operator takes are left out: a runtime refuses those that it can't compute.

    Example:
        A Relu of version 13 is that of 21, which takes more types; a Softmax of version 12 is not
        that of 13, which is taken over another axis.

    Args:
        node: the node's message.
        domain: its domain; an empty name for ONNX's own.
        written: the version that it is written for.
        taken: the version that it would be computed by.
    """
    from onnx import defs

    versions = written, taken
    is_known = [defs.has(node.op_type, version, domain) for version in versions]
    if not all(is_known):
        return not any(is_known)
    one, other = (defs.get_schema(node.op_type, version, domain) for version in versions)
    if one.since_version == other.since_version:
        return True
    if one.deprecated or other.deprecated or node.op_type in _CHANGED:
        return False
    return (
        all(_takes(schema, node) for schema in (one, other))
        and (_has_same_defaults(one, other) or _is_along_last_axis(node))
        and _has_same_places(one, other)
    )


def _takes(schema: Any, node: Any) -> bool:  # noqa: ANN401 -- onnx is untyped
    """Return whether an operator has a node's attributes, and as many inputs and outputs."""
    return (
        all(item.name in schema.attributes for item in node.attribute)
        and schema.min_input <= len(node.input) <= schema.max_input
        and schema.min_output <= len(node.output) <= schema.max_output
    )


def _has_same_defaults(one: Any, other: Any) -> bool:  # noqa: ANN401 -- onnx is untyped
    """Return whether the attributes of both operators have the same defaults.

    Another default comes with another meaning: that of Softmax's axis, for one, whatever is given.
    """
    return all(
        one.attributes[name].default_value == other.attributes[name].default_value
        for name in one.attributes.keys() & other.attributes.keys()
    )


def _is_along_last_axis(node: Any) -> bool:  # noqa: ANN401 -- onnx is untyped
    return node.op_type in _NORMALIZING and any(
        item.name == "axis" and item.i == -1 for item in node.attribute
    )


def _has_same_places(one: Any, other: Any) -> bool:  # noqa: ANN401 -- onnx is untyped
    """Return whether inputs of one name lie at one place; one that has another name is the same."""
    places = {item.name: place for place, item in enumerate(other.inputs)}
    return all(places.get(item.name, place) == place for place, item in enumerate(one.inputs))
