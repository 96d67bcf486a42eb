"""The text of a schema.yaml: safe YAML without YAML's traps, and a mistake in it as one line."""

from __future__ import annotations

import re
from collections.abc import Collection
from itertools import chain
from typing import Any

import yaml

from policy_server.errors import SchemaError
from policy_server.schema.scalars import Unquoted, is_nothing, read_number
from policy_server.schema.yaml_slips import describe_slip

__all__ = ["load_foreign_yaml", "load_yaml"]

_MOST_VALUES = 500_000
# What no text of UTF-8 holds, and the escapes of a quoted text do.
_SURROGATE = re.compile("[\ud800-\udfff]")
# As PyYAML says it of those that it can't build; others would be values without an end.
_RECURSIVE = "found unconstructable recursive node"
_MERGE_TAG = "tag:yaml.org,2002:merge"
_TEXT_TAG = "tag:yaml.org,2002:str"
_INT_TAG, _FLOAT_TAG = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
# The errors that PyYAML's constructors let through for values such as `!!timestamp 2020-13-45`.
_PYYAML_ERRORS = (ValueError, ArithmeticError, LookupError, AttributeError)


class _WrongTextError(Exception):
    """A key stands twice in one mapping, or behind spaces that are none to YAML; or half a letter.

    Attributes:
        line: the number of its line, from 1.
    """

    def __init__(self, problem: str, line: int) -> None:
        super().__init__(problem)
        self.line = line


class _TooManyValuesError(Exception):
    """The document has more values than any policy needs, once its aliases are written out."""


class _LimitedLoader(yaml.SafeLoader):
    """YAML's safe loader, but a few bytes of aliases can't stand for values without an end."""

    def get_single_node(self) -> yaml.Node | None:
        """Compose the document, whose anchors may stand for few values only."""
        node: yaml.Node | None = super().get_single_node()
        if node is not None and _values_in(node, {}) > _MOST_VALUES:
            raise _TooManyValuesError
        return node


class _Loader(_LimitedLoader):
    """YAML's safe loader, but it guesses no types and refuses a key that is given twice.

    Every value without quotes is `Unquoted`, or None where a key has an empty value.
    """

    # By the first character; all others of YAML 1.1 turn text into something else.
    yaml_implicit_resolvers = {"<": [(_MERGE_TAG, re.compile("<<"))]}  # noqa: RUF012 -- PyYAML's own

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002 -- PyYAML's own signature
        seen: set[str] = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode) and key_node.tag != _MERGE_TAG:
                _check_key(key_node, seen)
                seen.add(key_node.value)
        found = super().construct_mapping(node, deep=deep)
        return {_key(key): None if is_nothing(item) else item for key, item in found.items()}

    def construct_text(self, node: yaml.ScalarNode) -> str:
        if _SURROGATE.search(node.value):
            raise _WrongTextError(
                "holds half a character, such as \\ud83d; write the character itself, or as "
                "\\U0001F600",
                node.start_mark.line + 1,
            )
        return str(node.value) if node.style else Unquoted(node.value)

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        # YAML's own reads `1:1:1` in base 60, in a time that grows with the square of its length.
        found = read_number(Unquoted(self.construct_scalar(node)))
        if found is None:
            raise ValueError("no number")
        return int(found) if node.tag == _INT_TAG else float(found)


for _tag in (_TEXT_TAG, _MERGE_TAG):
    _Loader.add_constructor(_tag, _Loader.construct_text)
for _tag in (_INT_TAG, _FLOAT_TAG):
    _Loader.add_constructor(_tag, _Loader.construct_number)


def _values_in(node: yaml.Node, known: dict[int, int]) -> int:
    """Return how many values a node holds where each alias stands for a copy of its anchor."""
    size = known.get(id(node))
    if size == 0:
        raise yaml.constructor.ConstructorError(None, None, _RECURSIVE, node.start_mark)
    if size is None:
        known[id(node)] = 0
        size = 1
        if isinstance(node, yaml.CollectionNode):
            parts = node.value if isinstance(node, yaml.SequenceNode) else chain(*node.value)
            size += sum(_values_in(part, known) for part in parts)
        known[id(node)] = size
    return size


def _check_key(node: yaml.ScalarNode, seen: Collection[str]) -> None:
    problem = None
    if node.value in seen:
        problem = f"the key '{node.value}' is given twice; remove one"
    elif not node.style and node.value != node.value.strip():
        problem = (
            "a space of another kind indents the line; YAML allows plain ones only: replace it"
        )
    if problem is not None:
        raise _WrongTextError(problem, node.start_mark.line + 1)


def _key(key: object) -> object:
    return str(key) if isinstance(key, Unquoted) else key


def load_yaml(text: str, source: str) -> object:
    """Parse YAML.

    Args:
        text: the document.
        source: the file's name, for messages.

    Returns:
        Mappings, lists, texts, unquoted values, None, and the results of explicit tags.

    Raises:
        SchemaError: if it is no YAML or gives a key twice; it shows no values.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 -- a subclass of SafeLoader
    except _WrongTextError as error:
        raise SchemaError(f"{source} line {error.line}: {error}") from error
    except _TooManyValuesError as error:
        raise SchemaError(
            f"{source}: has more than {_MOST_VALUES} values where each alias stands for a copy of "
            "its anchor; write fewer"
        ) from error
    except yaml.MarkedYAMLError as error:
        line, slip = describe_slip(error, text)
        where = source if line is None else f"{source} line {line}"
        raise SchemaError(f"{where}: {slip}") from error
    except yaml.reader.ReaderError as error:
        raise SchemaError(
            f"{source}: is no YAML: holds the control character {error.character!r}; remove it"
        ) from error
    except _PYYAML_ERRORS as error:
        raise SchemaError(
            f"{source}: is no YAML: holds a number or date that can't be read; put text in quotes"
        ) from error
    except RecursionError as error:
        raise SchemaError(f"{source}: is nested too deeply; expected three levels") from error


def load_foreign_yaml(content: bytes) -> object:
    """Parse another program's YAML, in the types that YAML guesses.

    Args:
        content: the document.

    Raises:
        ValueError: if it is no YAML, or has more values than any policy needs, once its aliases
            are written out.
    """
    try:
        return yaml.load(content, Loader=_LimitedLoader)  # noqa: S506 -- a subclass of SafeLoader
    except (yaml.YAMLError, _TooManyValuesError, RecursionError, *_PYYAML_ERRORS) as error:
        raise ValueError("no YAML that a policy needs") from error
