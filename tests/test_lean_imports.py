"""Imports of libraries without what a server does not need of them."""

from __future__ import annotations

import gc
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict

from policy_server.lean_imports import built_when_used, without_collections, without_packages


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


def test_model_that_is_built_when_used_validates_and_the_next_one_is_built_at_once() -> None:
    with built_when_used():

        class Deferred(BaseModel):
            model_config = ConfigDict(extra="forbid")
            count: int

    class Ordinary(BaseModel):
        count: int

    kinds = [type(model.__pydantic_validator__).__name__ for model in (Deferred, Ordinary)]
    assert kinds == ["MockValSer", "SchemaValidator"]
    assert Deferred(count=2).count == 2
    with pytest.raises(ValueError, match="extra"):
        Deferred.model_validate({"count": 2, "more": 1})


@pytest.mark.parametrize("was_on", [True, False])
def test_collections_are_off_in_the_block_and_as_before_after_it(*, was_on: bool) -> None:
    (gc.enable if was_on else gc.disable)()
    try:
        with without_collections():
            assert not gc.isenabled()
        assert gc.isenabled() == was_on
    finally:
        gc.enable()
