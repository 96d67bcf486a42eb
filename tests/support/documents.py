"""Pages of the documentation, taken apart."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["code_blocks", "names", "rows", "section", "without_code"]


def section(page: Path, title: str) -> str:
    """Return what stands under a heading, up to the next one of any level."""
    text = without_code(page.read_text(encoding="utf-8"))
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
    assert found is not None, f"{page.name} has no section '{title}'"
    return found[1]


def rows(text: str) -> list[list[str]]:
    """Return the cells of all tables, without their headings."""
    lines = [line.strip() for line in text.splitlines()]
    tables = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for index, line in enumerate(lines)
        if line.startswith("|") and not (lines[index + 1 :] or [""])[0].startswith("| ---")
    ]
    return [cells for cells in tables if not cells[0].startswith("---")]


def names(text: str) -> list[str]:
    """Return what stands in backticks."""
    return re.findall(r"`([^`]+)`", text)


def code_blocks(page: Path, language: str) -> list[str]:
    """Return the fenced blocks of a language."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^ *```{language}\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)


def without_code(text: str) -> str:
    """Remove fenced blocks: a comment there looks like a heading."""
    return re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)
