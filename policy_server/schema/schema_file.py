"""A schema.yaml as a whole: one policy or several, with the key and prefix of the server."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from policy_server.access_keys import AccessKey
from policy_server.errors import SchemaError
from policy_server.schema.agent_policies import AgentPolicies, agent_policies
from policy_server.schema.fields import ServerSchema
from policy_server.schema.sections import parse_document, policy_schema, read_schema_text
from policy_server.schema.yaml_document import Document, PolicyEntry, VersionEntry, show

__all__ = [
    "DEFAULT_POLICY",
    "PolicySection",
    "SchemaFile",
    "VersionSection",
    "can_stand_in_an_address",
    "parse_schema",
    "parse_schema_file",
    "read_schema",
    "read_schema_file",
]

DEFAULT_POLICY = "default"
"""The name of the policy of a file that names none."""

_POLICY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_ALL_TRAFFIC = 100.0
# The parameters that belong to the server, whatever policies it has.
_OF_SERVER = ("api_key", "api_keys", "url_path")
_TRAFFIC_TOLERANCE = 1e-6
# As for POLICY_SERVER_NUM_REPLICAS.
_MOST_REPLICAS = 10_000


@dataclass(frozen=True)
class VersionSection:
    """One entry under a policy's `versions`.

    Attributes:
        name: the version's name.
        model: the path of its zip or folder, or its address.
        traffic: the share of the questions that it answers, in per cent; 0 for a shadow.
        is_shadow: whether it gets copies of the questions, and answers nobody.
    """

    name: str
    model: str
    traffic: float
    is_shadow: bool = False


@dataclass(frozen=True)
class PolicySection:
    """The part of schema.yaml about one policy.

    Attributes:
        name: the policy's name.
        schema: its observations, actions and parameters.
        model: the path of its zip or folder, or its address; None for the policy that lies in the
            server's folder.
        versions: those that share its traffic; empty where `model` alone is served.
        num_replicas: its replicas; None for the setting of all policies.
        max_replicas: the most replicas under load; None for the setting of all policies.
        replica_cpus: the CPUs of a replica; None for the setting of all policies.
    """

    name: str
    schema: ServerSchema
    model: str | None = None
    versions: tuple[VersionSection, ...] = ()
    num_replicas: int | None = None
    max_replicas: int | None = None
    replica_cpus: float | None = None


@dataclass(frozen=True)
class SchemaFile:
    """A whole schema.yaml.

    Attributes:
        source: the file's name, for messages.
        policies: at least one.
        default: the name of the policy that answers where a request names none.
        api_key: the access key; None where the environment has to give it.
        root_path: the prefix that a reverse proxy strips, as ASGI has it; empty for none.
        is_named: whether the file has `policies:`; without, it describes the one in the server's
            folder.
        agents: the policies of a team's agents; None where there is no team.
        api_keys: the keys with a name and scopes.
    """

    source: str
    policies: tuple[PolicySection, ...]
    default: str
    api_key: str | None = field(repr=False)
    root_path: str
    is_named: bool
    agents: AgentPolicies | None = None
    api_keys: Sequence[AccessKey] = ()

    def __iter__(self) -> Iterator[PolicySection]:
        """Iterate over the policies in their order."""
        return iter(self.policies)

    def choose(self, name: str | None) -> PolicySection:
        """Return the policy of a name.

        Args:
            name: the policy's name; None for the only one.

        Raises:
            SchemaError: if there is none of that name, or a name is needed.
        """
        names = ", ".join(item.name for item in self)
        if name is None:
            if len(self.policies) > 1:
                raise SchemaError(
                    f"{self.source}: has {len(self.policies)} policies ({names}); name one with "
                    "--policy"
                )
            return self.policies[0]
        found = next((item for item in self if item.name == name), None)
        if found is None:
            raise SchemaError(f"{self.source}: has no policy {name!r}; expected one of {names}")
        return found


def can_stand_in_an_address(name: str) -> bool:
    """Return whether a text can name a policy or a version, since both stand in addresses.

    Args:
        name: the text.
    """
    return _POLICY_NAME.fullmatch(name) is not None


def read_schema_file(path: Path) -> SchemaFile:
    """Read a schema.yaml of one policy or several.

    Args:
        path: the file.

    Raises:
        SchemaError: if it is missing, unreadable or wrong, in one line.
    """
    return parse_schema_file(read_schema_text(path), source=path.name)


def read_schema(path: Path, policy: str | None = None) -> ServerSchema:
    """Read the part of a schema.yaml about one policy.

    Args:
        path: the file.
        policy: the policy's name; None for the only one.

    Raises:
        SchemaError: if the file is missing, unreadable or wrong, or has no such policy, in one
            line.
    """
    return read_schema_file(path).choose(policy).schema


def parse_schema(text: str, *, source: str = "schema.yaml") -> ServerSchema:
    """Parse the text of a schema.yaml of one policy.

    Args:
        text: the YAML document.
        source: the file's name, for messages.

    Raises:
        SchemaError: if it is wrong, in one line.
    """
    return parse_schema_file(text, source=source).choose(None).schema


def parse_schema_file(text: str, *, source: str = "schema.yaml") -> SchemaFile:
    """Parse the text of a schema.yaml of one policy or several.

    Args:
        text: the YAML document.
        source: the file's name, for messages.

    Returns:
        Its contents. Each policy's schema has the server's key and prefix.

    Raises:
        SchemaError: if it is wrong, in one line.
    """
    parsed = parse_document(text, source)
    if "policies" not in parsed.model_fields_set:
        return _of_one_policy(parsed, source)
    _refuse_sections_beside(parsed, source)
    if not parsed.policies:
        raise SchemaError(
            f"{source}: policies: is empty; name at least one, or leave the section out to serve "
            "the policy in the server's folder"
        )
    server = policy_schema(parsed.model_copy(update={"policies": None}), source)
    policies = tuple(_policy(key, entry, server) for key, entry in parsed.policies.items())
    names = [item.name for item in policies]
    default = names[0] if parsed.default is None else parsed.default
    if default not in names:
        raise SchemaError(
            f"{source}: default: has no policy {show(default)}; expected one of {', '.join(names)}"
        )
    return SchemaFile(
        source,
        policies,
        default,
        server.api_key,
        server.root_path,
        is_named=True,
        agents=agent_policies(parsed.multi_agent, names, source),
        api_keys=server.api_keys,
    )


def _of_one_policy(parsed: Document, source: str) -> SchemaFile:
    if parsed.default is not None:
        raise SchemaError(
            f"{source}: default: is for several policies; remove it, or add policies:"
        )
    schema = policy_schema(parsed, source)
    policy = PolicySection(DEFAULT_POLICY, schema)
    return SchemaFile(
        source,
        (policy,),
        DEFAULT_POLICY,
        schema.api_key,
        schema.root_path,
        is_named=False,
        agents=agent_policies(parsed.multi_agent, [DEFAULT_POLICY], source),
        api_keys=schema.api_keys,
    )


def _refuse_sections_beside(parsed: Document, source: str) -> None:
    """Refuse sections about one policy beside `policies`."""
    own = {"policies", "default", "multi_agent", "parameters"}
    others = sorted(parsed.model_fields_set - own)
    if others:
        raise SchemaError(
            f"{source}: {others[0]}: stands beside policies; move it to the policy that it is about"
        )
    if parsed.parameters is not None:
        others = sorted(parsed.parameters.model_fields_set - set(_OF_SERVER))
        if others:
            raise SchemaError(
                f"{source}: parameters.{others[0]}: stands beside policies; move it to the "
                "parameters of the policy that it is about"
            )


def _policy(key: object, entry: PolicyEntry, server: ServerSchema) -> PolicySection:
    source = server.source
    if not isinstance(key, str) or not can_stand_in_an_address(key):
        raise SchemaError(
            f"{source}: policies: the name {show(key)} can't stand in an address; use up to 63 "
            "letters, digits, '-' and '_', beginning with a letter or digit"
        )
    where = f"{source}: policies.{key}"
    if entry.parameters is not None:
        for name in _OF_SERVER:
            if name in entry.parameters.model_fields_set:
                raise SchemaError(
                    f"{where}: parameters.{name}: belongs to the server; move it to the parameters "
                    "at the top"
                )
    if (entry.model is None) == (entry.versions is None):
        problem = "is missing" if entry.model is None else "stands beside versions"
        raise SchemaError(
            f"{where}: model: {problem}; give a policy either its model (a zip, a folder or an "
            "address) or versions"
        )
    _check_replicas(entry, where)
    schema = replace(
        policy_schema(entry, where),
        api_key=server.api_key,
        api_keys=server.api_keys,
        url_path=server.url_path,
    )
    return PolicySection(
        key,
        schema,
        entry.model,
        _versions(entry, where),
        entry.num_replicas,
        entry.max_replicas,
        None if entry.replica_cpus is None else float(entry.replica_cpus),
    )


def _check_replicas(entry: PolicyEntry, where: str) -> None:
    for name, least in (("num_replicas", 1), ("max_replicas", 0), ("replica_cpus", 0)):
        value = getattr(entry, name)
        if value is not None and value < least:
            raise SchemaError(f"{where}: {name}: expected {least} or more, got {show(value)}")
        if value is not None and value > _MOST_REPLICAS:
            raise SchemaError(
                f"{where}: {name}: expected {_MOST_REPLICAS} or less, got {show(value)}"
            )
    fewest, most = entry.num_replicas or 1, entry.max_replicas or 0
    if 0 < most < fewest:
        raise SchemaError(
            f"{where}: max_replicas: expected 0, or at least num_replicas, which is {fewest}, got "
            f"{most}"
        )


def _versions(entry: PolicyEntry, where: str) -> tuple[VersionSection, ...]:
    if entry.versions is None:
        return ()
    if not entry.versions:
        raise SchemaError(f"{where}: versions: is empty; name at least one, or give model instead")
    for key, version in entry.versions.items():
        _check_version(key, version, f"{where}: versions")
    answering = {key: item for key, item in entry.versions.items() if not item.shadow}
    stated = sum(float(item.traffic) for item in answering.values() if item.traffic is not None)
    silent = [key for key, item in answering.items() if item.traffic is None]
    if not answering:
        raise SchemaError(f"{where}: versions: all are shadows; one has to answer")
    if len(silent) > 1:
        raise SchemaError(
            f"{where}: versions: {', '.join(silent)} have no traffic; give all but one their per "
            "cent"
        )
    rest = _ALL_TRAFFIC - stated
    if rest < -_TRAFFIC_TOLERANCE or (not silent and rest > _TRAFFIC_TOLERANCE):
        raise SchemaError(
            f"{where}: versions: the traffic is {stated:g} per cent in all; expected 100"
        )
    return tuple(
        VersionSection(
            key,
            item.model,
            0.0 if item.shadow else max(rest, 0.0) if item.traffic is None else float(item.traffic),
            is_shadow=item.shadow,
        )
        for key, item in entry.versions.items()
    )


def _check_version(key: object, version: VersionEntry, where: str) -> None:
    if not isinstance(key, str) or not can_stand_in_an_address(key):
        raise SchemaError(
            f"{where}: the name {show(key)} can't be used; use up to 63 letters, digits, '-' and "
            "'_', beginning with a letter or digit"
        )
    if version.shadow and version.traffic is not None:
        raise SchemaError(
            f"{where}.{key}.traffic: is for versions that answer, and a shadow does not; remove it"
        )
    if version.traffic is not None and not 0 <= version.traffic <= _ALL_TRAFFIC:
        raise SchemaError(
            f"{where}.{key}.traffic: expected per cent from 0 to 100, got {show(version.traffic)}"
        )
