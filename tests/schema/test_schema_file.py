"""schema.yaml of several policies: what belongs to each, what to the server, and mistakes."""

# A table of mistakes, one a line.
# ruff: noqa: E501

from __future__ import annotations

import pytest

from policy_server.errors import SchemaError
from policy_server.schema import parse_schema, parse_schema_file

SEVERAL = """
policies:
  door:
    model: door.zip
    observations: {distance: {type: float}}
    parameters: {discrete: True}
  lift:
    model: s3://policies/lift.zip
    num_replicas: 2
    replica_cpus: 0.5
default: lift
parameters: {api_key: secret, url_path: app}
"""


def test_each_policy_has_its_own_sections_and_the_servers_key() -> None:
    file = parse_schema_file(SEVERAL)

    door, lift = file
    assert (file.is_named, file.default, file.api_key, file.root_path) == (
        True,
        "lift",
        "secret",
        "/app",
    )
    assert (door.name, door.model, door.schema.width, door.schema.discrete) == (
        "door",
        "door.zip",
        1,
        True,
    )
    assert (lift.model, lift.schema.observations) == ("s3://policies/lift.zip", None)
    assert (lift.num_replicas, lift.max_replicas, lift.replica_cpus) == (2, None, 0.5)
    assert {item.schema.api_key for item in file} == {"secret"}
    assert {item.schema.root_path for item in file} == {"/app"}


def test_default_is_the_first_policy() -> None:
    file = parse_schema_file("policies: {b: {model: b.zip}, a: {model: a.zip}}")

    assert file.default == "b"


def test_file_of_one_policy_names_it_default() -> None:
    file = parse_schema_file("parameters: {api_key: k, url_path: app}")

    (policy,) = file
    assert (policy.name, policy.model, file.is_named) == ("default", None, False)
    assert (file.api_key, file.root_path) == ("k", "/app")


def test_policy_is_chosen_by_its_name() -> None:
    file = parse_schema_file(SEVERAL)

    assert file.choose("door").model == "door.zip"
    with pytest.raises(SchemaError, match=r"has 2 policies \(door, lift\); name one with --policy"):
        file.choose(None)
    with pytest.raises(SchemaError, match="has no policy 'gate'; expected one of door, lift"):
        file.choose("gate")
    with pytest.raises(SchemaError, match="name one with --policy"):
        parse_schema(SEVERAL)


MISTAKES = {
    "none": ("policies: {}", ": policies: is empty; name at least one, or leave the section out to serve the policy in the server's folder"),
    "no mapping": ("policies: [door]", ": policies: expected a mapping of names, such as 'door: {model: door.zip}', got ['door']"),
    "policy is no mapping": ("policies: {door: door.zip}", ": policies.door: expected a mapping, such as {model: door.zip}, got 'door.zip'"),
    "name": ("policies: {a/b: {model: m}}", ": policies: the name 'a/b' can't stand in an address; use up to 63 letters, digits, '-' and '_', beginning with a letter or digit"),
    "unknown key": ("policies: {door: {model: m, observation: {}}}", ": policies.door.observation: unknown key; did you mean 'observations'?"),
    "unknown key below": ("policies: {door: {model: m, observations: {a: {type: int, minitems: 3}}}}", ": policies.door.observations.a.minitems: unknown key; did you mean 'min_items'?"),
    "key of a policy": ("policies: {door: {model: m, parameters: {api_key: k}}}", ": policies.door: parameters.api_key: belongs to the server; move it to the parameters at the top"),
    "prefix of a policy": ("policies: {door: {model: m, parameters: {url_path: a}}}", ": policies.door: parameters.url_path: belongs to the server; move it to the parameters at the top"),
    "model in parameters": ("policies: {door: {model: m, parameters: {module: a}}}", ": policies.door.parameters.module: stands at the top of the policy, beside 'parameters'; move it there"),
    "observations beside": ("policies: {door: {model: m}}\nobservations: {a: {type: int}}", ": observations: stands beside policies; move it to the policy that it is about"),
    "parameter beside": ("policies: {door: {model: m}}\nparameters: {discrete: True}", ": parameters.discrete: stands beside policies; move it to the parameters of the policy that it is about"),
    "default": ("policies: {door: {model: m}}\ndefault: lift", ": default: has no policy 'lift'; expected one of door"),
    "default alone": ("default: lift", ": default: is for several policies; remove it, or add policies:"),
    "replicas": ("policies: {door: {model: m, num_replicas: 0}}", ": policies.door: num_replicas: expected 1 or more, got 0"),
    "many replicas": ("policies: {door: {model: m, num_replicas: 10001}}", ": policies.door: num_replicas: expected 10000 or less, got 10001"),
    "fewer under load": ("policies: {door: {model: m, num_replicas: 4, max_replicas: 2}}", ": policies.door: max_replicas: expected 0, or at least num_replicas, which is 4, got 2"),
    "cpus": ("policies: {door: {model: m, replica_cpus: -1}}", ": policies.door: replica_cpus: expected 0 or more, got -1"),
    "observation": ("policies: {door: {model: m, observations: {a: {type: int, min_items: 1}}}}", ": policies.door: observations.a.min_items: is for lists, the type is int; remove it or make the type List[int]"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistake_is_one_line(text: str, message: str) -> None:
    with pytest.raises(SchemaError) as caught:
        parse_schema_file(text)

    assert caught.value.message == f"schema.yaml{message}"


def test_versions_share_the_traffic() -> None:
    (policy,) = parse_schema_file(
        "policies: {door: {versions: {a: {model: a.zip, traffic: 70}, b: {model: b.zip}, "
        "c: {model: c.zip, shadow: True}}}}"
    )

    assert policy.model is None
    assert [(item.name, item.model, item.traffic, item.is_shadow) for item in policy.versions] == [
        ("a", "a.zip", 70.0, False),
        ("b", "b.zip", 30.0, False),
        ("c", "c.zip", 0.0, True),
    ]


WRONG_VERSIONS = {
    "none": ("{}", ": versions: is empty; name at least one, or give model instead"),
    "no mapping": ("[a]", ".versions: expected a mapping of names, such as 'v1: {model: door.zip, traffic: 90}', got ['a']"),
    "no model": ("{a: {traffic: 1}}", ".versions.a.model: is missing; expected a zip, a folder or an address"),
    "unknown key": ("{a: {model: m, trafic: 1}}", ".versions.a.trafic: unknown key; did you mean 'traffic'?"),
    "name": ("{a b: {model: m}}", ": versions: the name 'a b' can't be used; use up to 63 letters, digits, '-' and '_', beginning with a letter or digit"),
    "shadow with traffic": ("{a: {model: m}, b: {model: m, shadow: True, traffic: 1}}", ": versions.b.traffic: is for versions that answer, and a shadow does not; remove it"),
    "too much": ("{a: {model: m, traffic: 101}}", ": versions.a.traffic: expected per cent from 0 to 100, got 101"),
    "sum": ("{a: {model: m, traffic: 50}, b: {model: m, traffic: 40}}", ": versions: the traffic is 90 per cent in all; expected 100"),
    "more than all": ("{a: {model: m, traffic: 60}, b: {model: m, traffic: 60}}", ": versions: the traffic is 120 per cent in all; expected 100"),
    "two silent": ("{a: {model: m}, b: {model: m}}", ": versions: a, b have no traffic; give all but one their per cent"),
    "shadows alone": ("{a: {model: m, shadow: True}}", ": versions: all are shadows; one has to answer"),
}  # fmt: skip


@pytest.mark.parametrize(("versions", "message"), WRONG_VERSIONS.values(), ids=WRONG_VERSIONS)
def test_mistake_in_versions_is_one_line(versions: str, message: str) -> None:
    with pytest.raises(SchemaError) as caught:
        parse_schema_file(f"policies: {{door: {{versions: {versions}}}}}")

    assert caught.value.message == f"schema.yaml: policies.door{message}"


def test_policy_has_either_a_model_or_versions() -> None:
    text = "policies: {door: {model: m, versions: {a: {model: m}}}}"

    with pytest.raises(SchemaError, match="model: stands beside versions; give a policy either"):
        parse_schema_file(text)
    with pytest.raises(SchemaError, match="model: is missing; give a policy either its model"):
        parse_schema_file("policies: {door: {}}")
