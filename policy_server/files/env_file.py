"""The file `.env`: its text, and its lines that hold a setting and can't be read as one.

python-dotenv passes over what it can't read with no more than a warning, and a server would start
without a key that its file has.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Collection
from io import StringIO, TextIOWrapper
from pathlib import Path

from dotenv import dotenv_values
from dotenv.parser import Binding, parse_stream

from policy_server.errors import SettingsError
from policy_server.files.regular import open_file

__all__ = ["check_lines", "read_env_file", "variables_of"]

_EXPECTED = (
    "expected NAME=value on a line of its own; a value that begins with a quote ends with the same "
    "one, and no other text but a comment stands behind it"
)


def read_env_file(path: Path) -> str:
    """Return the text of a file of variables; without the file there is none.

    The null device, by which containers hide a file, is empty. A folder of that name may be one of
    Python's virtual environments.

    Args:
        path: the file.

    Raises:
        OSError: if it can't be read, or is no file: a folder, a named pipe, a link that leads
            nowhere.
        UnicodeDecodeError: if it is no text in UTF-8.
    """
    if not path.exists():
        if path.is_symlink():
            raise _no_file(path, "a link that leads nowhere")
        return ""
    if path.samefile(os.devnull) or (path / "pyvenv.cfg").exists():
        return ""
    if path.is_dir():
        raise _no_file(path, "a folder")
    with TextIOWrapper(open_file(path), encoding="utf-8") as file:
        return file.read()


def check_lines(text: str, prefix: str, names: Collection[str]) -> None:
    """Refuse lines that hold a setting and are not read as one; other programs' lines pass.

    Args:
        text: the file's text.
        prefix: the start of the settings' names, such as POLICY_SERVER_.
        names: the settings' names in upper case. No other part of a line is shown: it may be a key.

    Raises:
        SettingsError: naming the line's number, and the setting if it is one.
    """
    named = re.compile(rf"\b{prefix}\w*", re.IGNORECASE)
    swallowed = re.compile(rf"\n\s*(?:export\s+)?({prefix}\w*)\s*=", re.IGNORECASE)
    for binding in parse_stream(StringIO(text)):
        found = _misread(binding, named, swallowed)
        if found is not None:
            # python-dotenv counts the empty lines before a line as its first ones.
            whole = binding.original.string
            empty = whole[: len(whole) - len(whole.lstrip())].count("\n")
            name = f"{found.upper()} " if found.upper() in names else ""
            raise SettingsError(
                f"line {binding.original.line + empty}: {name}can't be read; {_EXPECTED}"
            )


def variables_of(text: str) -> dict[str, str | None]:
    """Return the values of a file's variables by name, without the lines that can't be read.

    They are as they are written: `${NAME}` is no other variable's value, since a key may hold it.

    Args:
        text: the file's text.
    """
    # python-dotenv prints a warning of each of the others.
    read = (item.original.string for item in parse_stream(StringIO(text)) if not item.error)
    return dotenv_values(stream=StringIO("".join(read)), interpolate=False)


def _misread(binding: Binding, named: re.Pattern[str], swallowed: re.Pattern[str]) -> str | None:
    """Return the name of a setting that stands in a line and is not read from it."""
    line = binding.original.string.strip()
    if binding.error:
        found = named.search(line)
        return found[0] if found else None
    key = named.search(binding.key or "")
    if key is not None and (binding.value is None or key.start() > 0):
        return key[0]
    inner = swallowed.search(line)
    return inner[1] if inner else None


def _no_file(path: Path, kind: str) -> OSError:
    return OSError(errno.EINVAL, f"it is {kind}; expected a file", str(path))
