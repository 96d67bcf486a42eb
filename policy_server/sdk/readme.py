"""The README of an SDK: how it is installed, and an example with this policy's own observation."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from policy_server.errors import SdkError
from policy_server.sdk.examples import EXAMPLES
from policy_server.sdk.languages import Language
from policy_server.sdk.literals import literal
from policy_server.sdk.names import NAMINGS, observation_names
from policy_server.sdk.openapi_document import Document, has_memory
from policy_server.sdk.programs import PROGRAMS

__all__ = ["observation_model", "render_readme"]

_NAME = re.compile(r"`\w+`|\w+")

_README = """# {title} client of Policy Server

Version {version}, generated from the OpenAPI document of the server by openapi-generator. Client
and server belong together: a policy with other observations or actions needs a new client.

## Install

{install}

## Example

{intro} It takes the access key from the environment, and the server's
address if it stands there.

```{fence}
{example}
```

`PolicyApi` has one method for each route: `predict` draws an action, `predict_deterministic` gives
the policy's mode, `distribution` the exact distribution of the actions; each has a twin for flat
observations, whose name ends in `{raw}`. They are spelled as is usual in {title}.
The `actions` of this policy are {actions}.

The example waits ten seconds for an answer. One whose connection was lost is asked again: a
prediction changes nothing on the server, and a step of a session is known by its number.

Where the server answers an error (401 for a wrong key, 422 for a wrong observation), a method
{error}. The body is `{{"detail": ...}}`.

## Episodes

`SessionsApi` keeps the memory of a policy from step to step: `begin_session` gives a session,
`session_predict` and its siblings make a step, `reset_session` begins the next episode, and
`end_session` ends it. `Episode` numbers the steps of the session that `begin_session`,
`reset_session` or `get_session` gave: one that is sent again with its number is not made twice. A
step that fails keeps its number: ask the same once more. Another question with the number of a
step that was made is answered 409.

{memory}
"""

_ASKS_ONCE = "This asks for one action."
_ASKS_EPISODE = "This asks for three actions of an episode."
_HAS_MEMORY = """Outside of a session an answer of this policy is that of an episode's first step,
unless the program carries the memory itself: with the argument `x-state` (`new` for the first step)
an answer has a header of that name, which is the argument of the next step. {headers}."""
_HAS_NO_MEMORY = "This policy has no memory: a session only numbers its steps."


def observation_model(document: Document) -> str:
    """Return the name of the model that the example sends.

    Args:
        document: the OpenAPI document of the SDK.
    """
    return "Observation" if "/predict" in document["paths"] else "RawObservation"


def render_readme(document: Document, language: Language, source: str) -> str:
    """Return the README.

    Args:
        document: the OpenAPI document of the SDK.
        language: of the SDK.
        source: the generated file of `observation_model`.

    Raises:
        SdkError: if a property of the example is not in it.
    """
    model = observation_model(document)
    schema = document["components"]["schemas"][model]
    observation: dict[str, Any] = schema["examples"][0]
    names = observation_names(document, language.name)
    shown = {names[name] for name in schema["properties"]}
    missing = sorted(shown - set(_NAME.findall(source)))
    if missing:
        raise SdkError(
            f"{language.title}: expected the property {missing[0]} in {model}, found none; is "
            "another version of openapi-generator-cli installed?"
        )
    required = schema.get("required", ())
    kinds = [_kind(schema["properties"][name]) for name in observation]
    values = [
        literal(language.name, value, kind, is_optional=name not in required)
        for (name, value), kind in zip(observation.items(), kinds, strict=True)
    ]
    example = EXAMPLES[language.name]
    raw = language.raw if model == "RawObservation" else ""
    words = {
        "%properties%": _properties(language, [names[name] for name in observation], values),
        "%model%": model,
        "%argument%": model[0].lower() + model[1:],
        "%url%": document["servers"][0]["url"],
        "%raw%": raw and f"_{raw}",
        "%Raw%": raw.title(),
        "%version%": document["info"]["version"],
    }
    remembers = has_memory(document)
    program = PROGRAMS[language.name]
    asking = program.episode if remembers else program.predict
    text = program.text.replace("%imports%", asking.imports).replace("%calls%", asking.calls)
    return _README.format(
        title=language.title,
        version=document["info"]["version"],
        install=_fill(example.install, words),
        intro=example.intro + (_ASKS_EPISODE if remembers else _ASKS_ONCE),
        fence=example.fence,
        example=_fill(text, words).strip("\n"),
        raw=language.raw,
        error=example.error,
        actions=_describe_actions(document),
        memory=_HAS_MEMORY.format(headers=example.headers) if remembers else _HAS_NO_MEMORY,
    )


def _fill(text: str, words: Mapping[str, str]) -> str:
    for mark, word in words.items():
        text = text.replace(mark, word)
    return text


def _kind(schema: Document) -> str:
    """Return `boolean`, `integer` or `number`: of the value, or of a list's items."""
    while "items" in schema:
        schema = schema["items"]
    return str(schema["type"])


def _describe_actions(document: Document) -> str:
    items = document["components"]["schemas"]["Prediction"]["properties"]["actions"]["items"]
    return {"integer": "integers", "number": "floating-point numbers"}.get(
        items.get("type"), "numbers, or lists of numbers where the action has a vector"
    )


def _properties(language: Language, names: Sequence[str], values: Sequence[str]) -> str:
    """Return one line a property, in the way that the language names them."""
    before, between, after, last = _FORMS[language.name]
    argument = NAMINGS[language.name].argument
    lines = [
        f"{before}{argument(name)}{between}{value}"
        for name, value in zip(names, values, strict=True)
    ]
    return (after + "\n").join(lines) + last


# Before a name, between name and value, after a value, after the last one.
_FORMS = {
    "python": ("    ", "=", ",", ","),
    "java": ("            .", "(", ")", ")"),
    "scala": ("    ", " = ", ",", ""),
    "r": ("  `", "` = ", ",", ""),
    "typescript": ("    ", ": ", ",", ","),
    "csharp": ("    ", ": ", ",", ""),
    "go": ("\t\t", ": ", ",", ","),
    "kotlin": ("        ", " = ", ",", ","),
}
