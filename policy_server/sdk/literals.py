"""Literals of an observation's values in each language, for the programs of READMEs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from policy_server.sdk.languages import LanguageName

__all__ = ["literal"]

# Lists of more items that are all alike are written as a repetition. A text of items that is longer
# than this is too much for Java's compiler without their type.
_MOST_WRITTEN_OUT = 8
_LONG = 200


@dataclass(frozen=True)
class _Form:
    """How a language writes values.

    Attributes:
        lists: a list of `{items}`, whose type is `{type}` where the language says it.
        repeated: a list of `{count}` times the `{item}`; empty where there is no short form.
        long_lists: a list of `{items}` of the type `{inner}` whose text is long; empty for `lists`.
        integer: the ending of an integer.
        words: true and false.
        types: the type of one value, by its JSON type.
        list_type: the type of a list of the type `{0}`.
    """

    lists: str
    repeated: str = ""
    long_lists: str = ""
    integer: str = ""
    words: tuple[str, str] = ("true", "false")
    types: Mapping[str, str] = field(default_factory=dict)
    list_type: str = "{0}"

    def of(self, value: object, kind: str) -> str:
        """Return the literal of a number, a truth value, or nested lists of them."""
        if isinstance(value, list):
            return self._of_list(value, kind)
        if kind == "integer":
            return f"{value}{self.integer}"
        if kind == "number":
            return json.dumps(float(str(value)))
        return self.words[0] if value else self.words[1]

    def _of_list(self, value: list[object], kind: str) -> str:
        items = [self.of(item, kind) for item in value]
        inner = self.types.get(kind, "")
        for _ in range(_levels(value) - 1):
            inner = self.list_type.format(inner)
        whole = self.list_type.format(inner)
        if self.repeated and len(items) > _MOST_WRITTEN_OUT and len(set(items)) == 1:
            return self.repeated.format(type=whole, item=items[0], count=len(items))
        text = ", ".join(items)
        form = self.long_lists if self.long_lists and len(text) > _LONG else self.lists
        return form.format(type=whole, inner=inner, items=text)


def literal(language: LanguageName, value: object, kind: str, *, is_optional: bool = False) -> str:
    """Return the literal of a property's value.

    Args:
        language: the language.
        value: a number, a truth value, or nested lists of them.
        kind: the JSON type of the innermost items.
        is_optional: whether the property may be missing.
    """
    text = _FORMS[language].of(value, kind)
    return f"Some({text})" if is_optional and language == "scala" else text


def _levels(value: object) -> int:
    return 1 + max(map(_levels, value), default=0) if isinstance(value, list) else 0


_FORMS: Mapping[str, _Form] = {
    "python": _Form("[{items}]", "[{item}] * {count}", words=("True", "False")),
    "java": _Form(
        "List.of({items})",
        "java.util.Collections.nCopies({count}, {item})",
        # With the type said, the compiler need not find it from all items of all levels.
        "List.<{inner}>of({items})",
        integer="L",
        types={"integer": "Long", "number": "Double", "boolean": "Boolean"},
        list_type="List<{0}>",
    ),
    "scala": _Form("Seq({items})", "Seq.fill({count})({item})", integer="L"),
    "r": _Form("list({items})", "rep(list({item}), {count})", words=("TRUE", "FALSE")),
    "typescript": _Form("[{items}]", "Array({count}).fill({item})"),
    "csharp": _Form(
        "new {type} {{ {items} }}",
        "new {type}(System.Linq.Enumerable.Repeat({item}, {count}))",
        types={"integer": "long", "number": "double", "boolean": "bool"},
        list_type="List<{0}>",
    ),
    "go": _Form(
        "{type}{{{items}}}",
        types={"integer": "int64", "number": "float64", "boolean": "bool"},
        list_type="[]{0}",
    ),
    "kotlin": _Form("listOf({items})", "List({count}) {{ {item} }}", integer="L"),
}
