"""The name of each observation in each language.

openapi-generator turns `T` and `t`, or `a_b` and `aB`, into one name where a language spells its
names in one way, and knows some of the words that can't be used. Here each observation gets a name
of its own, which the generator then takes as it is (its `nameMappings`).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from policy_server.sdk.openapi_document import Document
from policy_server.sdk.words import (
    CSHARP_WORDS,
    GO_WORDS,
    JAVA_WORDS,
    KOTLIN_WORDS,
    PYTHON_WORDS,
    R_WORDS,
    SCALA_KEYWORDS,
    SCALA_WORDS,
    TYPESCRIPT_WORDS,
)

__all__ = ["NAMINGS", "Naming", "names_by_model", "observation_names", "property_names"]

# `hasUp` is has and Up, `HPLevel` is HP and Level, `team_0` is team and 0.
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|_+")
_WITHOUT_WORDS = "field"
# The end of the title of each model that is sent: a policy's name stands before it.
_SENT = "Observation"


@dataclass(frozen=True)
class Naming:
    """How a language spells the names of a model's properties.

    Attributes:
        spell: spells a name as the language does.
        reserved: names that the language, or the code of a generated model, needs for itself.
        rename: makes a reserved name usable.
        number: makes the n-th of several equal names different.
        key: gives two names the same key if the language takes them for one.
        accessors: the generator's names of the methods of the property `{}`.
        argument: a property's name as an argument of the model's constructor.
    """

    spell: Callable[[str], str]
    reserved: frozenset[str]
    rename: Callable[[str], str]
    number: Callable[[str, int], str]
    key: Callable[[str], str] = str
    accessors: tuple[str, ...] = ()
    argument: Callable[[str], str] = str

    def candidates(self, name: str) -> Iterator[str]:
        """Yield the names that a property may get, the best one first.

        Args:
            name: the observation's, in schema.yaml.
        """
        first = self.spell(name)
        if first in self.reserved:
            first = self.rename(first)
        yield first
        for number in itertools.count(2):
            yield self.number(first, number)

    def keys(self, candidate: str) -> set[str]:
        """Return the keys of everything that the generator names after a property.

        Args:
            candidate: the property's name.
        """
        return {self.key(form.format(candidate)) for form in ("{}", *self.accessors)}


def property_names(
    names: Sequence[str], naming: Naming, *, others: Collection[str] = ()
) -> dict[str, str]:
    """Return a name for each observation, all of them different.

    An observation that is spelled as the language spells it keeps its name; the others get theirs
    in the order of schema.yaml.

    Example:
        In Python `hasUp` becomes `has_up`; of `T` and `t`, `t` keeps its name and `T` is `t_2`.

    Args:
        names: of the observations, in schema.yaml's order.
        naming: of the language.
        others: names of other models' properties. The generator names a property alike in all
            models, and `actions` keeps its name.
    """
    chosen: dict[str, str] = {}
    taken: set[str] = set()

    def rank(name: str) -> tuple[bool, bool]:
        return name not in others, next(naming.candidates(name)) != name

    for name in sorted(dict.fromkeys((*others, *names)), key=rank):
        candidate = next(
            item for item in naming.candidates(name) if taken.isdisjoint(naming.keys(item))
        )
        chosen[name] = candidate
        taken |= naming.keys(candidate)
    return {name: chosen[name] for name in names}


def _words(name: str) -> list[str]:
    words = [word for word in _HUMP.split(name) if word]
    if not words or words[0][0].isdigit():
        words.insert(0, _WITHOUT_WORDS)
    return words


def _snake_case(name: str) -> str:
    return "_".join(_words(name)).lower()


def _pascal_case(name: str) -> str:
    return "".join(word[0].upper() + word[1:].lower() for word in _words(name))


def _camel_case(name: str) -> str:
    return _small(_pascal_case(name))


def _small(name: str) -> str:
    return name[0].lower() + name[1:]


def _without_underscores(name: str) -> str:
    return name.replace("_", "").lower()


def _own(name: str) -> str:
    return name


def _scala(name: str) -> str:
    # `team_:` would be an operator.
    return f"`{name}`" if name in SCALA_KEYWORDS or name.endswith("_") else name


def _snake_number(name: str, number: int) -> str:
    return f"{name.rstrip('_')}_{number}"


def _camel_number(name: str, number: int) -> str:
    return f"{name}{number}"


def _camel_value(name: str) -> str:
    return f"{name}Value"


def _snake_value(name: str) -> str:
    return f"{name.strip('_')}_value"


def _original(reserved: frozenset[str], spell: Callable[[str], str] = _own) -> Naming:
    return Naming(spell, reserved, _snake_value, _snake_number)


def _humps(
    spell: Callable[[str], str],
    reserved: frozenset[str],
    accessors: tuple[str, ...] = (),
    argument: Callable[[str], str] = str,
) -> Naming:
    return Naming(
        spell, reserved, _camel_value, _camel_number, _without_underscores, accessors, argument
    )


NAMINGS: Mapping[str, Naming] = {
    "python": Naming(_snake_case, PYTHON_WORDS, lambda name: f"{name}_", _snake_number),
    "java": _humps(_camel_case, JAVA_WORDS, ("set{}", "add{}Item")),
    "scala": _original(SCALA_WORDS, _scala),
    "r": _original(R_WORDS),
    "typescript": _original(TYPESCRIPT_WORDS),
    "csharp": _humps(_pascal_case, CSHARP_WORDS, argument=_small),
    "go": _humps(_pascal_case, GO_WORDS, ("Get{}", "Get{}Ok", "Set{}", "Has{}")),
    "kotlin": _humps(_camel_case, KOTLIN_WORDS),
}


def observation_names(document: Document, language: str) -> dict[str, str]:
    """Return the name of each property of the models that are sent, in the document's order.

    The generator names a property alike in all models, those of all policies.

    Args:
        document: the OpenAPI document of the SDK.
        language: of the SDK.
    """
    schemas: Document = document["components"].get("schemas", {})
    sent: dict[str, None] = {}
    others: set[str] = set()
    for title, schema in schemas.items():
        properties = schema.get("properties", {})
        if title.endswith(_SENT):
            sent |= dict.fromkeys(properties)
        elif _SENT not in title:
            others |= set(properties)
    return property_names(list(sent), NAMINGS[language], others=sorted(others))


def names_by_model(document: Document, language: str) -> dict[str, dict[str, str]]:
    """Return the name of each property of each model that is sent.

    Args:
        document: the OpenAPI document of the SDK.
        language: of the SDK.
    """
    names = observation_names(document, language)
    return {
        title: {name: names[name] for name in schema.get("properties", {})}
        for title, schema in document["components"].get("schemas", {}).items()
        if title.endswith(_SENT)
    }
