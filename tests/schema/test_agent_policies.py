"""The section `multi_agent`: which rule an agent falls under, and mistakes."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy_server.errors import SchemaError
from policy_server.schema import AgentPolicies, parse_schema_file

POLICIES = "policies: {hunter: {model: h.zip}, prey: {model: p.zip}}\n"
PATTERNS = st.text("ab*", min_size=1, max_size=6).filter(lambda text: "*" in text)


def agents_of(section: str) -> AgentPolicies:
    """Return the policies of agents of a schema.yaml with this section."""
    agents = parse_schema_file(f"{POLICIES}multi_agent: {section}").agents
    assert agents is not None
    return agents


@pytest.mark.parametrize(
    ("agent", "policy"),
    [
        ("hunter_0", "prey"),
        ("hunter_1", "hunter"),
        ("hunter_", "hunter"),
        ("old_hunter", "prey"),
        ("the_prey_2_of_4", "prey"),
        ("0", "hunter"),
        ("hunter", None),
        ("Hunter_1", None),
        ("prey", None),
        ("", None),
    ],
)
def test_agent_has_the_policy_of_its_id_then_of_the_first_pattern(
    agent: str, policy: str | None
) -> None:
    agents = agents_of(
        "{hunter_*: hunter, hunter_0: prey, '*_hunter': prey, the_*_of_*: prey, 0: hunter}"
    )

    assert agents.policy_of(agent) == policy


def test_policies_stand_in_the_order_of_the_rules() -> None:
    agents = agents_of("{b: prey, a*: hunter, c: prey}")

    assert (agents.policies, agents.has_patterns) == (("prey", "hunter"), True)
    assert not agents_of("{b: prey}").has_patterns


def test_only_policy_of_a_file_is_named_default() -> None:
    file = parse_schema_file("multi_agent: {'*': default}")

    assert file.agents == AgentPolicies({"*": "default"})
    assert parse_schema_file("parameters: {discrete: True}").agents is None


@given(pattern=PATTERNS, agent=st.text("ab", max_size=8))
def test_pattern_matches_as_a_shells_does(pattern: str, agent: str) -> None:
    assert (AgentPolicies({pattern: "p"}).policy_of(agent) == "p") == fnmatchcase(agent, pattern)


@given(patterns=st.lists(PATTERNS, min_size=2, max_size=4, unique=True))
def test_each_pattern_that_is_taken_decides_about_some_agent(patterns: list[str]) -> None:
    section = "{" + ", ".join(f"'{pattern}': hunter" for pattern in patterns) + "}"
    try:
        agents = agents_of(section)
    except SchemaError as error:
        # The same by hand: an agent whose id has a letter of its own in place of each `*`.
        refused = re.search(r"multi_agent\.(.*): can never match, since '(.*)' above", str(error))
        assert refused is not None
        assert fnmatchcase(refused[1].replace("*", "c"), refused[2])
    else:
        first = {rule: place for place, rule in enumerate(agents.rules)}
        for pattern in patterns:
            agent = pattern.replace("*", "c")
            assert not any(
                fnmatchcase(agent, other) for other in patterns if first[other] < first[pattern]
            )


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("{}", "multi_agent: is empty; give each agent a policy, or leave the section out"),
        ("{a: wolf}", "multi_agent.a: has no policy 'wolf'; expected one of hunter, prey"),
        (
            "{hunter_*: hunter, hunter_1*: prey}",
            "multi_agent.hunter_1*: can never match, since 'hunter_*' above it matches each such "
            "agent; move it up, or remove it",
        ),
        (
            "{a*: hunter, a**: prey}",
            "multi_agent.a**: can never match, since 'a*' above it matches each such agent; move "
            "it up, or remove it",
        ),
        ("{a: hunter, a: prey}", "line 2: the key 'a' is given twice; remove one"),
        (
            "{'': hunter}",
            "multi_agent: the agent '' can't be used; expected its id, or a pattern of ids, of 1 "
            "to 128 characters",
        ),
        (
            "{a: {policy: hunter}}",
            "multi_agent.a: expected text, got a mapping; put it in quotes",
        ),
        (
            "hunter",
            "multi_agent: expected a mapping of agents, such as 'hunter_*: hunter', got 'hunter'",
        ),
        (
            "{*: hunter}",
            "line 2: is no YAML: put text that starts with * or ! or & in quotes",
        ),
    ],
)
def test_mistake_is_one_line(section: str, message: str) -> None:
    with pytest.raises(SchemaError) as refused:
        agents_of(section)

    assert refused.value.message.removeprefix("schema.yaml").lstrip(": ") == message


def test_mistake_beside_one_policy_names_it() -> None:
    with pytest.raises(SchemaError, match=r"multi_agent\.a: has no policy 'b'; expected one of d"):
        parse_schema_file("multi_agent: {a: b}")
