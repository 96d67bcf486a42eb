"""The rooms of policy_server: a name says which module is meant. Tests ask HTTP in one way."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

TESTS = Path(__file__).parent
ROOMS = TESTS.parent / "policy_server"
# A client of its own that is neither told whom to trust nor has another transport.
READS_CERTIFICATES = re.compile(
    r"httpx\.(?:get|post|put|delete|request|stream|Client|AsyncClient)\("
    r"(?![^()]*(?:\([^()]*\)[^()]*)*\b(?:verify|transport)=)"
)
MARK = r"mark\.(service|page)"


def test_no_two_modules_have_one_name() -> None:
    modules = [path.stem for path in ROOMS.rglob("*.py") if path.stem != "__init__"]
    packages = [path.parent.name for path in ROOMS.rglob("*/__init__.py")]

    counted = Counter(modules + packages)

    assert len(counted) > 100
    assert [name for name, count in counted.items() if count > 1] == []


def test_no_test_reads_the_authorities_certificates_for_a_client_of_its_own() -> None:
    own = [
        f"{path.relative_to(TESTS)}: {found[0]}"
        for path in sorted(TESTS.rglob("*.py"))
        if path.name not in ("asking.py", "test_house.py")
        for found in READS_CERTIFICATES.finditer(path.read_text())
    ]

    assert own == []


def test_marks_of_tests_that_start_servers_stand_in_their_own_modules() -> None:
    # `make test-servers` finds the modules by them.
    marked = [path for path in TESTS.rglob("*.py") if re.search(MARK, path.read_text())]

    assert len(marked) > 20
    assert [path for path in marked if not path.name.startswith("test_")] == []
    makefile = (TESTS.parent / "Makefile").read_text()
    assert f'"test_*.py" "{MARK}" tests)' in makefile
