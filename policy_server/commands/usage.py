"""Mistakes in a command line, in the words of the documentation rather than fire's."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, get_type_hints

from policy_server.errors import UsageError

__all__ = ["explain", "named_method", "spelled_out", "unknown_command"]

Methods = Mapping[str, Callable[..., Any]]

_MISSING = "The function received no value for the required argument: "


def named_method(methods: Methods, arguments: Sequence[str]) -> Callable[..., Any] | None:
    """Return the command that the first argument names, if there is one of that name.

    Args:
        methods: the commands by name.
        arguments: the words that the user typed.
    """
    return methods.get(arguments[0].replace("-", "_")) if arguments else None


def spelled_out(method: Callable[..., Any], arguments: Sequence[str]) -> list[str]:
    """Give each argument its name, so that fire can't take it for anything else.

    Fire has a syntax that the documentation doesn't: `--noname`, `-n`, a member of the command's
    result, its own options behind `--`; and it takes a value that begins with - for an option.

    Args:
        method: the command.
        arguments: the words that the user typed behind its name; those behind `--` are no options.
            An argument that has a place may be given by its name too, as `--observation`.

    Returns:
        Words of the form `--name=value`.

    Raises:
        UsageError: naming the first word that the command doesn't take, or an option whose value is
            missing.
    """
    hints, words = get_type_hints(method), iter(arguments)
    named, placed = dict[str, str](), list[str]()
    for word in words:
        if word == "--":
            placed.extend(words)
        elif word == "-" or not word.startswith("-"):
            placed.append(word)
        else:
            option, equals, value = word.partition("=")
            name = _python_name(option)
            if not option.startswith("--") or name not in hints or name == "return":
                raise _unknown_option(option, method)
            if not equals:
                value = "True" if hints[name] is bool else _value_of(option, words)
            named[name] = value
    places = [name for name in _places(method) if name not in named]
    if len(placed) > len(places):
        raise UsageError(f"{placed[len(places)]}: is one argument too many")
    named |= zip(places, placed, strict=False)
    return [f"--{name}={value}" for name, value in named.items()]


def unknown_command(name: str, methods: Methods) -> UsageError:
    """Return the error about a command that there is not.

    Args:
        name: the word that the user typed.
        methods: the commands by name.
    """
    expected = f"expected one of {', '.join(methods)}"
    return UsageError(f"{name}: is no command; {_meant(name, methods) or expected}")


def explain(message: str) -> UsageError:
    """Return fire's finding as an error in our words.

    Args:
        message: fire's message, or that of a value that can't be used.
    """
    if message.startswith(_MISSING):
        name = message.removeprefix(_MISSING).upper().replace("_", "-")
        return UsageError(f"{name}: is missing")
    return UsageError(message)


def _unknown_option(name: str, method: Callable[..., Any]) -> UsageError:
    options = _options(method)
    expected = f"expected one of {', '.join(options)}" if options else "it takes none"
    return UsageError(
        f"{name}: is no option of {method.__name__}; {_meant(name, options) or expected}"
    )


def _value_of(option: str, following: Iterator[str]) -> str:
    value = next(following, "--")
    if value.startswith("--"):
        raise UsageError(f"{option.replace('_', '-')}: expected a value, got none")
    return value


def _places(method: Callable[..., Any]) -> list[str]:
    """Return the names of the arguments that are given by their place."""
    parameters = list(inspect.signature(method).parameters.values())
    # The first is the object of the commands.
    return [item.name for item in parameters[1:] if item.kind is not inspect.Parameter.KEYWORD_ONLY]


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
