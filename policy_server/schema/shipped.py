"""The examples' own schema.yaml files, to tell an unchanged copy, made for another policy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from policy_server.errors import SchemaError
from policy_server.files.regular import read_text
from policy_server.installation import command_for, examples_folder

__all__ = ["find_example_of", "named_as_example"]


def find_example_of(path: Path) -> str | None:
    """Return the name of the example whose schema.yaml a file is a copy of.

    Args:
        path: a schema.yaml; it need not exist.

    Returns:
        The example's name; None where the file is missing or is no such copy.
    """
    lines = _lines(path)
    if lines is None:
        return None
    shipped = sorted(examples_folder().glob("*/schema.yaml"))
    return next((file.parent.name for file in shipped if _lines(file) == lines), None)


@contextlib.contextmanager
def named_as_example(path: Path, *, draft: str = "schema --output schema.yaml") -> Iterator[None]:
    """Add to a refusal of a schema.yaml that the file is an example's, where it is.

    Args:
        path: the schema.yaml that the block compares with a policy.
        draft: the words of the command that drafts the policy's own.

    Raises:
        SchemaError: the block's own, with the remedy for a file that was made for another policy.
    """
    try:
        yield
    except SchemaError as error:
        example = find_example_of(path)
        if example is None:
            raise
        problem = error.message.partition("; ")[0]
        raise SchemaError(
            f"{problem}; this schema.yaml is the example's ({example}), unchanged: draft your "
            f"policy's own with `{command_for(draft)}`"
        ) from error


def _lines(path: Path) -> list[str] | None:
    """Return a file's lines, without their ends; None where the file can't be read."""
    try:
        return read_text(path).removeprefix("\ufeff").splitlines()
    except (OSError, ValueError):
        return None
