"""CONTRIBUTING.md names each inside of a library that the code uses, and no other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import TypeGuard

import pytest

from policy_server.http_server.protocols import PROTOCOLS, ServedProtocol
from tests.support.documents import names, rows, section
from tests.support.folders import ROOT

PACKAGE = ROOT / "policy_server"
TABLE = rows(section(ROOT / "CONTRIBUTING.md", "Third parties' insides"))
# What these have below their top is theirs, whatever its name.
INNER_PACKAGES = (
    "tensorflow.core",
    "tensorflow.python",
    "uvicorn.protocols",
    "uvicorn.supervisors",
)
_PRIVATE_PLACE = re.compile(r"\w+(\.\w+)*\._[a-z]\w*(\.\w+)*")
OURS = ("__future__", "policy_server")


def documented(module: str) -> set[str]:
    """Return the insides that the table names for a module."""
    return {name for row in TABLE if row[0] == f"`{module}`" for name in names(row[2])}


def insides_of(module: str) -> set[str]:
    """Return the insides of other libraries that a module's text uses, found by its syntax."""
    nodes = list(ast.walk(ast.parse((PACKAGE / module).read_text(encoding="utf-8"))))
    found = {name for node in nodes for name in _names_in(node)}
    members = [node for node in nodes if isinstance(node, ast.Attribute)]
    defined = {getattr(node, "name", None) for node in nodes} | {
        node.attr for node in members if _is_among_names(node.value, "self", "cls")
    }
    found |= {node.attr for node in members if _is_foreign(node, defined)}
    return {_as_documented(name) for name in found}


def _names_in(node: ast.AST) -> Iterator[str]:
    """Give private modules and arguments that a node names."""
    if isinstance(node, ast.Import):
        yield from (item.name for item in node.names if _is_inner(item.name))
    elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
        yield from (name for name in [node.module] if _is_inner(name))
    elif isinstance(node, ast.keyword) and node.arg is not None and _is_private(node.arg):
        yield node.arg
    elif isinstance(node, ast.Constant) and _is_place(node.value):
        yield node.value


def _is_place(value: object) -> TypeGuard[str]:
    """Return whether a constant is the name of a private module, or of its logger."""
    return isinstance(value, str) and bool(_PRIVATE_PLACE.fullmatch(value)) and _is_inner(value)


def _is_foreign(member: ast.Attribute, defined: set[str | None]) -> bool:
    """Return whether a private member is a library's: `super()._name`, or defined nowhere here."""
    if not _is_private(member.attr) or _is_among_names(member.value, "self", "cls"):
        return False
    is_inherited = isinstance(member.value, ast.Call) and _is_among_names(
        member.value.func, "super"
    )
    return is_inherited or member.attr not in defined


def _is_among_names(owner: ast.expr, *known: str) -> bool:
    return isinstance(owner, ast.Name) and owner.id in known


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def _is_inner(module: str) -> bool:
    if module.split(".")[0] in OURS:
        return False
    return module.startswith(INNER_PACKAGES) or any(map(_is_private, module.split(".")))


def _as_documented(name: str) -> str:
    """Return a module of TensorFlow by the package that it lies in: there are many."""
    return ".".join(name.split(".")[:2]) if name.startswith("tensorflow.") else name


MODULES = [path.relative_to(PACKAGE).as_posix() for path in sorted(PACKAGE.rglob("*.py"))]
USERS = [module for module in MODULES if insides_of(module) or documented(module)]


def test_modules_of_each_library_are_found() -> None:
    libraries = {name.split(".")[0] for module in USERS for name in insides_of(module)}

    assert libraries >= {"numpy", "ray", "tensorflow", "uvicorn", "_init", "_should_upgrade"}


@pytest.mark.parametrize("module", USERS)
def test_every_inside_that_a_module_uses_is_in_the_table(module: str) -> None:
    assert insides_of(module) <= documented(module)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row[0].strip('`')} {row[1]}")
def test_every_inside_in_the_table_is_used(row: list[str]) -> None:
    module, _, insides, without = row
    paths = {module.strip("`")}
    if "http_server" in module:
        # It has the names that each protocol is held against.
        paths.add("http_server/protocols.py")
    words = {word for path in paths for word in words_of(path)}

    assert without
    assert [name for name in names(insides) if not _is_among(name, words)] == []


def words_of(module: str) -> set[str]:
    """Return the identifiers, modules and whole texts of a module's syntax."""
    fields = ("arg", "attr", "id", "module", "name", "value")
    tree = ast.parse((PACKAGE / module).read_text(encoding="utf-8"))
    found = (getattr(node, field, None) for node in ast.walk(tree) for field in fields)
    return {word for word in found if isinstance(word, str)}


def _is_among(name: str, words: set[str]) -> bool:
    return any(
        word in (name, name.rpartition(".")[2]) or word.startswith(f"{name}.") for word in words
    )


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.served[1])
def test_table_names_all_that_a_protocol_is_held_against(protocol: ServedProtocol) -> None:
    module = protocol.served[0].removeprefix("policy_server.").replace(".", "/") + ".py"

    assert {*protocol.inner_names, *protocol.replaced} <= documented(module)
