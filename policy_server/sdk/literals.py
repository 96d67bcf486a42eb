"""Literals of an observation's values in each language, for the programs of READMEs."""

from __future__ import annotations

import json
from collections.abc import Callable

from policy_server.sdk.languages import LanguageName

__all__ = ["literal"]

# Lists of more items that are all alike are written as a repetition. A text of items that is longer
# than this is too much for Java's compiler without their type.
_MOST_WRITTEN_OUT = 8
_LONG = 200


def literal(language: LanguageName, value: object, kind: str, *, is_optional: bool = False) -> str:
    """Return the literal of a property's value.

    Args:
        language: the language.
        value: a number, a truth value, or nested lists of them.
        kind: the JSON type of the innermost items.
        is_optional: whether the property may be missing.
    """
    text = _LITERALS[language](value, kind)
    return f"Some({text})" if is_optional and language == "scala" else text


def _write(
    value: object,
    kind: str,
    *,
    integer: str,
    lists: Callable[[str, int, str], str],
    repeated: Callable[[str, int, str, int], str] | None = None,
) -> str:
    """Return a literal.

    Args:
        value: a number, a truth value, or nested lists of them.
        kind: the JSON type of the innermost items.
        integer: the ending of an integer.
        lists: makes a list's literal of the kind, the number of levels and the items.
        repeated: makes that of a list whose items are all alike, such as an empty image's, of the
            kind, the number of levels, an item and how many they are; None for a language that has
            no short form. Java's compiler takes minutes for an image that is written out.
    """
    if isinstance(value, list):
        items = [
            _write(item, kind, integer=integer, lists=lists, repeated=repeated) for item in value
        ]
        if repeated is not None and len(items) > _MOST_WRITTEN_OUT and len(set(items)) == 1:
            return repeated(kind, _levels(value), items[0], len(items))
        return lists(kind, _levels(value), ", ".join(items))
    if kind == "integer":
        return f"{value}{integer}"
    return json.dumps(float(str(value)) if kind == "number" else value)


def _levels(value: object) -> int:
    return 1 + max(map(_levels, value), default=0) if isinstance(value, list) else 0


def _python(value: object, kind: str) -> str:
    text = _write(
        value,
        kind,
        integer="",
        lists=lambda _kind, _levels, items: f"[{items}]",
        repeated=lambda _kind, _levels, item, count: f"[{item}] * {count}",
    )
    return text.replace("true", "True").replace("false", "False")


def _java(value: object, kind: str) -> str:
    types = {"integer": "Long", "number": "Double", "boolean": "Boolean"}

    def lists(kind: str, levels: int, items: str) -> str:
        # With the type said, the compiler need not find it from all items of all levels.
        inner = f"{'List<' * (levels - 1)}{types[kind]}{'>' * (levels - 1)}"
        return f"List.<{inner}>of({items})" if len(items) > _LONG else f"List.of({items})"

    return _write(
        value,
        kind,
        integer="L",
        lists=lists,
        repeated=lambda _kind, _levels, item, count: (
            f"java.util.Collections.nCopies({count}, {item})"
        ),
    )


def _scala(value: object, kind: str) -> str:
    return _write(
        value,
        kind,
        integer="L",
        lists=lambda _kind, _levels, items: f"Seq({items})",
        repeated=lambda _kind, _levels, item, count: f"Seq.fill({count})({item})",
    )


def _r(value: object, kind: str) -> str:
    text = _write(
        value,
        kind,
        integer="",
        lists=lambda _kind, _levels, items: f"list({items})",
        repeated=lambda _kind, _levels, item, count: f"rep(list({item}), {count})",
    )
    return text.replace("true", "TRUE").replace("false", "FALSE")


def _typescript(value: object, kind: str) -> str:
    return _write(
        value,
        kind,
        integer="",
        lists=lambda _kind, _levels, items: f"[{items}]",
        repeated=lambda _kind, _levels, item, count: f"Array({count}).fill({item})",
    )


def _csharp(value: object, kind: str) -> str:
    types = {"integer": "long", "number": "double", "boolean": "bool"}

    def of(kind: str, levels: int) -> str:
        return f"new {'List<' * levels}{types[kind]}{'>' * levels}"

    return _write(
        value,
        kind,
        integer="",
        lists=lambda kind, levels, items: f"{of(kind, levels)} {{ {items} }}",
        repeated=lambda kind, levels, item, count: (
            f"{of(kind, levels)}(System.Linq.Enumerable.Repeat({item}, {count}))"
        ),
    )


def _go(value: object, kind: str) -> str:
    types = {"integer": "int64", "number": "float64", "boolean": "bool"}

    def lists(kind: str, levels: int, items: str) -> str:
        return f"{'[]' * levels}{types[kind]}{{{items}}}"

    return _write(value, kind, integer="", lists=lists)


def _kotlin(value: object, kind: str) -> str:
    return _write(
        value,
        kind,
        integer="L",
        lists=lambda _kind, _levels, items: f"listOf({items})",
        repeated=lambda _kind, _levels, item, count: f"List({count}) {{ {item} }}",
    )


_LITERALS = {
    "python": _python,
    "java": _java,
    "scala": _scala,
    "r": _r,
    "typescript": _typescript,
    "csharp": _csharp,
    "go": _go,
    "kotlin": _kotlin,
}
