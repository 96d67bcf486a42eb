"""Help from docstrings, printed at once: fire's hides positional arguments and starts a pager."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fire import docstrings

__all__ = ["command_help", "overview", "usage"]

_WIDTH = 100
_NO_BREAK = "\N{NO-BREAK SPACE}"


def overview(program: str, commands: type, methods: Mapping[str, Callable[..., Any]]) -> str:
    """Return the help of the program: its purpose and its commands.

    Args:
        program: the program's name, such as `python generate.py`.
        commands: has the docstring.
        methods: the commands by name.
    """
    about = docstrings.parse(inspect.getdoc(commands))
    rows = [
        (name, docstrings.parse(inspect.getdoc(method)).summary) for name, method in methods.items()
    ]
    return "\n".join(
        [
            f"{program} COMMAND [ARGUMENTS]",
            "",
            about.summary,
            "",
            *_table(rows),
            "",
            *textwrap.wrap(" ".join(about.description.split()), _WIDTH),
            f"What a command takes: {program} COMMAND --help",
            "",
        ]
    )


def command_help(program: str, method: Callable[..., Any]) -> str:
    """Return the help of a command: its purpose and its arguments.

    Args:
        program: the program's name, such as `python generate.py`.
        method: the command.
    """
    about = docstrings.parse(inspect.getdoc(method))
    parameters = [
        item for item in inspect.signature(method).parameters.values() if item.name != "self"
    ]
    described = {item.name: " ".join(item.description.split()) for item in about.args or ()}
    rows = [(_title(item), described[item.name] + _default(item)) for item in parameters]
    paragraphs = [about.summary, *(about.description or "").split("\n\n")]
    text = [line for part in paragraphs if part for line in ("", *textwrap.wrap(part, _WIDTH))]
    return "\n".join([*usage(program, method), *text, *(["", *_table(rows)] if rows else []), ""])


def usage(program: str, method: Callable[..., Any]) -> list[str]:
    """Return how a command is written, with its arguments.

    Args:
        program: the program's name, such as `python generate.py`.
        method: the command.
    """
    parameters = inspect.signature(method).parameters.values()
    words = [_word(item) for item in parameters if item.name != "self"]
    lines = textwrap.wrap(
        " ".join([program, method.__name__, *words]),
        _WIDTH,
        subsequent_indent="    ",
        break_on_hyphens=False,
    )
    return [line.replace(_NO_BREAK, " ") for line in lines]


def _is_option(item: inspect.Parameter) -> bool:
    return item.kind is inspect.Parameter.KEYWORD_ONLY


def _title(item: inspect.Parameter) -> str:
    name = item.name.replace("_", "-")
    if not _is_option(item):
        return name.upper()
    return f"--{name}" if item.default is False else f"--{name} {name.upper().split('-')[-1]}"


def _word(item: inspect.Parameter) -> str:
    title = _title(item)
    return (
        title if item.default is inspect.Parameter.empty else f"[{title.replace(' ', _NO_BREAK)}]"
    )


def _default(item: inspect.Parameter) -> str:
    if item.default is False or item.default in (inspect.Parameter.empty, None):
        return ""
    return f" (default: {item.default})"


def _table(rows: Sequence[tuple[str, str]]) -> list[str]:
    column = max(len(name) for name, _ in rows) + 4
    lines = []
    for name, text in rows:
        wrapped = textwrap.wrap(text, _WIDTH - column)
        lines.append(f"  {name:<{column - 2}}{wrapped[0]}")
        lines += [" " * column + line for line in wrapped[1:]]
    return lines
