"""The policies that come with the project: their texts and their environments."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from policy_server.commands.games import Environment, TeamEnvironment
from policy_server.errors import SettingsError
from policy_server.schema import public_schema, read_schema_file

__all__ = [
    "EXAMPLES",
    "example_introduction",
    "example_names",
    "find_example",
    "find_team_example",
    "make_environment",
]

EXAMPLES = Path(__file__).parent.parent / "examples"


def example_names() -> list[str]:
    """Return the names of the examples that can be served."""
    return sorted(
        path.parent.name
        for path in EXAMPLES.glob("*/schema.yaml")
        if (path.parent / "saved_model.zip").is_file()
    )


def example_introduction(name: str) -> tuple[str, str]:
    """Return the beginning of an example's README: its title and its first paragraph.

    Args:
        name: the example's.
    """
    try:
        text = (EXAMPLES / name / "README.md").read_text(encoding="utf-8")
    except OSError:
        return name, ""
    title, _, rest = text.partition("\n")
    return title.removeprefix("# ").strip(), " ".join(rest.strip().split("\n\n")[0].split())


def find_example(schema: Mapping[str, Any]) -> str | None:
    """Return the name of the example whose policy a server serves.

    Args:
        schema: the server's answer at /schema.

    Returns:
        The name; None where no example of one policy has the same observations and actions.
    """
    for name in example_names():
        file = read_schema_file(EXAMPLES / name / "schema.yaml")
        if not file.is_named and _shape(public_schema(file.choose(None).schema)) == _shape(schema):
            return name
    return None


def find_team_example(
    rules: Mapping[str, str], schemas: Mapping[str, Mapping[str, Any]]
) -> str | None:
    """Return the name of the example whose team a server serves.

    Args:
        rules: `multi_agent` of the server: the policies by agents, or patterns of agents.
        schemas: the server's answers at /schema, by policy.

    Returns:
        The name; None where no example has the same agents, observations and actions.
    """
    for name in example_names():
        file = read_schema_file(EXAMPLES / name / "schema.yaml")
        if file.agents is None or dict(file.agents.rules) != dict(rules):
            continue
        expected = {policy.name: _shape(public_schema(policy.schema)) for policy in file}
        if all(_shape(schema) == expected.get(policy) for policy, schema in schemas.items()):
            return name
    return None


def make_environment(name: str) -> Environment | TeamEnvironment:
    """Return a new environment of an example.

    Args:
        name: the example's.

    Raises:
        SettingsError: if it needs a package that is not installed.
    """
    try:
        module = importlib.import_module(f"examples.{name}.environment")
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"examples/{name}/environment.py: needs the package {error.name}; install what "
            "requirements-dev.txt lists"
        ) from error
    environment: Environment | TeamEnvironment = module.make_environment()
    return environment


def _shape(schema: Mapping[str, Any]) -> tuple[list[tuple[str, str]], list[str]]:
    observations = schema.get("observations", {})
    return [(name, item["type"]) for name, item in observations.items()], list(
        schema.get("actions", {})
    )
