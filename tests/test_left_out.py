"""Packages that are kept out of a library."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path

import pytest

from policy_server.left_out import without_packages


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of a package that can be imported and is not yet."""
    name = "package_to_leave_out"
    (tmp_path / f"{name}.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return name


def test_package_is_not_found_in_the_block_and_is_after_it(package: str) -> None:
    with without_packages("another", package), pytest.raises(ModuleNotFoundError) as refused:
        import_module(package)

    assert refused.value.name == package
    assert import_module(package).__name__ == package


def test_other_threads_import_the_package_meanwhile(package: str) -> None:
    with without_packages(package), ThreadPoolExecutor() as executor:
        found = executor.submit(import_module, package).result()

    assert found.__name__ == package


def test_package_that_is_there_already_stays(package: str) -> None:
    known = import_module(package)

    with without_packages(package):
        assert import_module(package) is known
