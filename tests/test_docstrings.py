"""CONTRIBUTING.md's glossary names the nouns of the code."""

from __future__ import annotations

import re

import pytest

from tests.support.documents import names, rows, section
from tests.support.folders import ROOT

MODULES = sorted((ROOT / "policy_server").rglob("*.py"))
GLOSSARY = rows(section(ROOT / "CONTRIBUTING.md", "Words"))


def test_glossary_has_at_most_twenty_nouns() -> None:
    nouns = [cells[0] for cells in GLOSSARY]

    assert 0 < len(nouns) <= 20
    assert len(set(nouns)) == len(nouns)


@pytest.mark.parametrize("cells", GLOSSARY, ids=lambda cells: cells[0])
def test_noun_of_the_glossary_is_a_name_in_the_code(cells: list[str]) -> None:
    (name,) = names(cells[2])
    code = "\n".join(path.read_text(encoding="utf-8") for path in MODULES)

    assert re.search(rf"^ *(class|def) {name}\b|^ *{name}: ", code, re.MULTILINE)
