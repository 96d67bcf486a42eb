"""The rooms of policy_server: a name says which module is meant."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

ROOMS = Path(__file__).parents[1] / "policy_server"


def test_no_two_modules_have_one_name() -> None:
    modules = [path.stem for path in ROOMS.rglob("*.py") if path.stem != "__init__"]
    packages = [path.parent.name for path in ROOMS.rglob("*/__init__.py")]

    counted = Counter(modules + packages)

    assert len(counted) > 100
    assert [name for name, count in counted.items() if count > 1] == []
