"""Mistakes in a command line, in the words of the documentation rather than fire's."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, get_type_hints

from policy_server.errors import UsageError

__all__ = ["check_values", "explain", "named_method"]

Methods = Mapping[str, Callable[..., Any]]

_UNKNOWN = "Could not consume arg: "
_MISSING = "The function received no value for the required argument: "


def named_method(methods: Methods, arguments: Sequence[str]) -> Callable[..., Any] | None:
    """Return the command that the first argument names, if there is one of that name.

    Args:
        methods: the commands by name.
        arguments: the words that the user typed.
    """
    return methods.get(arguments[0].replace("-", "_")) if arguments else None


def check_values(method: Callable[..., Any], arguments: Sequence[str]) -> None:
    """Refuse an option whose value is missing, which fire would take for a flag.

    Args:
        method: the command.
        arguments: the words that the user typed behind its name.

    Raises:
        UsageError: naming the option.
    """
    hints = get_type_hints(method)
    taking = {option for option in _options(method) if hints[_python_name(option)] is not bool}
    for argument, following in zip(arguments, [*arguments[1:], "--"], strict=False):
        if argument.replace("_", "-") in taking and following.startswith("--"):
            raise UsageError(f"{argument.replace('_', '-')}: expected a value, got none")


def explain(message: str, methods: Methods, arguments: Sequence[str]) -> UsageError:
    """Return fire's finding as an error in our words.

    Args:
        message: fire's message, or that of a value that can't be used.
        methods: the commands by name.
        arguments: the words that the user typed.
    """
    method = named_method(methods, arguments)
    if message.startswith(_MISSING):
        name = message.removeprefix(_MISSING).upper().replace("_", "-")
        return UsageError(f"{name}: is missing")
    if not message.startswith(_UNKNOWN):
        return UsageError(message)
    given = message.removeprefix(_UNKNOWN)
    if method is None:
        expected = f"expected one of {', '.join(methods)}"
        return UsageError(f"{given}: is no command; {_meant(given, methods) or expected}")
    if not given.startswith("-"):
        return UsageError(f"{given}: is one argument too many")
    name, options = given.partition("=")[0], _options(method)
    expected = f"expected one of {', '.join(options)}" if options else "it takes none"
    meant = _meant(name, options) or expected
    return UsageError(f"{name}: is no option of {method.__name__}; {meant}")


def _options(method: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(method).parameters.values()
    return [
        f"--{item.name.replace('_', '-')}"
        for item in parameters
        if item.kind is inspect.Parameter.KEYWORD_ONLY
    ]


def _python_name(option: str) -> str:
    return option.removeprefix("--").replace("-", "_")


def _meant(given: str, known: Iterable[str]) -> str | None:
    close = difflib.get_close_matches(given.replace("_", "-"), known, n=1)
    close = close or difflib.get_close_matches(given.replace("-", "_"), known, n=1)
    return f"did you mean {close[0]}?" if close else None
