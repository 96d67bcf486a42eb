"""Docstrings name their subject, and CONTRIBUTING.md's glossary names the nouns of the code."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.support.documents import names, rows, section
from tests.support.folders import ROOT

MODULES = sorted((ROOT / "policy_server").rglob("*.py"))
GLOSSARY = rows(section(ROOT / "CONTRIBUTING.md", "Words"))
# A riddle in place of a noun: "Return what answers", "Keep the parts", "What is kept".
RIDDLE = re.compile(r"(Keep (what|the)|(Return|Yield|Give) (what|who)|What|Who|Whatever|Whoever)\b")


def docstrings_of(source: str) -> list[str]:
    """Return the docstrings of a module, of its classes and of its functions."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [
        ast.get_docstring(node) for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)
    ]
    return [text for text in found if text is not None]


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_begin_with_a_noun_and_say_nothing_likewise(module: Path) -> None:
    docstrings = docstrings_of(module.read_text(encoding="utf-8"))

    assert docstrings, "a module has a docstring"
    assert [text for text in docstrings if RIDDLE.match(text)] == []
    assert [text for text in docstrings if re.search(r"\blikewise\b", text, re.IGNORECASE)] == []


@pytest.mark.parametrize(
    "docstring",
    ["Return what answers.", "What is kept.", "Keep the parts.", "Who asks."],
)
def test_riddle_is_found(docstring: str) -> None:
    assert RIDDLE.match(docstring)


def test_glossary_has_at_most_twenty_nouns() -> None:
    nouns = [cells[0] for cells in GLOSSARY]

    assert 0 < len(nouns) <= 20
    assert len(set(nouns)) == len(nouns)


@pytest.mark.parametrize("cells", GLOSSARY, ids=lambda cells: cells[0])
def test_noun_of_the_glossary_is_a_name_in_the_code(cells: list[str]) -> None:
    (name,) = names(cells[2])
    code = "\n".join(path.read_text(encoding="utf-8") for path in MODULES)

    assert re.search(rf"^ *(class|def) {name}\b|^ *{name}: ", code, re.MULTILINE)
