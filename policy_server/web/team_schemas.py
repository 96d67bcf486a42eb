"""The part of the OpenAPI document about teams: observations and answers by agent.

JSON Schema tells the type of an agent by its id, or by a regular expression of ids, as
`multi_agent` does. But all expressions that match count there, and not the first: so each of them
leaves out the ids of the rules before it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from policy_server.policy import AnswerKind
from policy_server.schema import LONGEST_AGENT_ID
from policy_server.serving import PolicySlot
from policy_server.serving.team import Team
from policy_server.web.openapi_schemas import REWARD, TypeNames
from policy_server.web.route_table import AnswerRoute

__all__ = ["TeamSchemas"]

Document = dict[str, Any]

_ANSWERS = {
    "predict": "Prediction",
    "predict_deterministic": "Prediction",
    "distribution": "Distribution",
}
_STEP = "The number of the team's step in its episode, from 0"
_VERSIONS = "The version that answered, for each policy: `hunter=v1, prey=v2`"
_MEMORY = "`none`: the answers are those of an episode's first step, since no memory belongs to it"
_ANY = "[\\s\\S]*"
# Python's `re.escape` escapes more, which ECMA-262, the language of JSON Schema, refuses.
_SYNTAX = re.compile(r"[\^$\\.*+?()\[\]{}|]")
_ID: Document = {"maxLength": LONGEST_AGENT_ID}


class TeamSchemas:
    """The types of a team's bodies and answers, and their places in the document."""

    def __init__(self, team: Team, namespaces: Mapping[str, str], *, max_agents: int) -> None:
        """Own nothing: the types follow from the policies'.

        Args:
            team: the policies of the agents; exact once they are loaded.
            namespaces: the namespace of each policy's types, by its name; see `TypeNames`.
            max_agents: the most agents in a step.
        """
        self._team = team
        self._names = {name: TypeNames(namespaces[name]) for name in team.slots}
        self._max_agents = max_agents

    def schemas(self) -> Document:
        """Return the types, by name."""
        types = {
            "RawObservationsByAgent": self._by_agent(self._raw),
            "PredictionsByAgent": self._by_agent(self._answer("Prediction")),
            "DistributionsByAgent": self._by_agent(self._answer("Distribution")),
        }
        if self._team.has_named_observations:
            types["ObservationsByAgent"] = self._by_agent(self._observation)
        for form in ("Raw", "") if self._states_steps else ():
            inner = self._raw if form else self._observation
            if form or self._team.has_named_observations:
                types[f"{form}EpisodeObservationsByAgent"] = self._by_agent(self._stated(inner))
        return {name: {**schema, "title": name} for name, schema in types.items()}

    def describe_reset(self, reset: Document) -> Document:
        """Return the body of a reset, whose agents have to be the team's.

        Args:
            reset: its type as FastAPI states it, which stays as it is.
        """
        exact, patterns = self._agents()
        kinds: list[Document] = [{"pattern": expression} for expression, _ in patterns]
        kinds += [{"enum": sorted(exact)}] if exact else []
        agents = {
            **reset["properties"]["agents"],
            "anyOf": [
                {"type": "array", "items": {"type": "string", **_ID, "anyOf": kinds}},
                {"type": "null"},
            ],
        }
        return {**reset, "properties": {**reset["properties"], "agents": agents}}

    def describe(
        self,
        operation: Document,
        route: AnswerRoute,
        examples: Mapping[str, Mapping[AnswerKind, Any]],
    ) -> None:
        """Describe the body and the answer of a team's step.

        Args:
            operation: of FastAPI's document, which is changed.
            route: a route of the team.
            examples: an answer of each kind, by policy.
        """
        is_step = route.transport == "team_session"
        episode = "Episode" if is_step and self._states_steps else ""
        name = f"{'Raw' if route.is_raw else ''}{episode}ObservationsByAgent"
        body = {"schema": _reference(name), "example": self._example(is_raw=route.is_raw)}
        operation["requestBody"] = {"required": True, "content": {"application/json": body}}
        answer: Document = {"schema": _reference(f"{_ANSWERS[route.kind]}sByAgent")}
        known = {
            policy: found[route.kind] for policy, found in examples.items() if route.kind in found
        }
        if known.keys() >= self._team.slots.keys():
            answer["example"] = {
                agent: known[slot.name] for agent, slot in self._example_agents().items()
            }
        text = {"type": "string"}
        headers: Document = {"x-policy-version": {"description": _VERSIONS, "schema": text}}
        if is_step:
            headers["x-step"] = {"description": _STEP, "schema": {"type": "integer"}}
        elif any(_has_memory(slot) for slot in self._team.slots.values()):
            headers["x-policy-memory"] = {"description": _MEMORY, "schema": {"const": "none"}}
        operation["responses"]["200"] = {
            "description": "The answers of the policies, by agent",
            "headers": headers,
            "content": {"application/json": answer},
        }

    def _by_agent(self, type_of: Callable[[PolicySlot], Document]) -> Document:
        exact, patterns = self._agents()
        known = {agent: type_of(slot) for agent, slot in exact.items()}
        matched = {expression: type_of(slot) for expression, slot in patterns}
        return {
            "type": "object",
            **({"properties": known} if known else {}),
            **({"patternProperties": matched} if matched else {}),
            "additionalProperties": False,
            "propertyNames": _ID,
            "maxProperties": self._max_agents,
        }

    def _agents(self) -> tuple[dict[str, PolicySlot], list[tuple[str, PolicySlot]]]:
        """Return the policies by an agent's id, and by regular expressions of all other ids."""
        slots, rules = self._team.slots, self._team.rules
        known = {rule: slots[policy] for rule, policy in rules.items() if "*" not in rule}
        exact = [_literal(rule) for rule in known]
        patterns: list[tuple[str, PolicySlot]] = []
        before: list[str] = []
        for rule, policy in rules.items():
            if "*" in rule:
                expression = _ANY.join(map(_literal, rule.split("*")))
                others = "|".join([*exact, *before])
                but = f"(?!(?:{others})$)" if others else ""
                patterns.append((f"^{but}{expression}$", slots[policy]))
                before.append(expression)
        return known, patterns

    def _raw(self, slot: PolicySlot) -> Document:
        return self._names[slot.name].reference("RawObservation")

    def _observation(self, slot: PolicySlot) -> Document:
        is_flat = slot.schema.observations is None
        return self._raw(slot) if is_flat else self._names[slot.name].reference("Observation")

    def _answer(self, name: str) -> Callable[[PolicySlot], Document]:
        return lambda slot: self._names[slot.name].reference(name)

    @property
    def _states_steps(self) -> bool:
        """Return whether a policy takes the action or the reward of the step before."""
        return any(map(_takes_previous_step, self._team.slots.values()))

    @staticmethod
    def _stated(inner: Callable[[PolicySlot], Document]) -> Callable[[PolicySlot], Document]:
        def type_of(slot: PolicySlot) -> Document:
            observation = inner(slot)
            if not _takes_previous_step(slot):
                return observation
            stated = {
                "type": "object",
                "properties": {
                    "observation": observation,
                    "previous_reward": REWARD,
                    "previous_action": {"type": "array", "items": {}},
                },
                "required": ["observation"],
                "additionalProperties": False,
            }
            return {"anyOf": [observation, stated]}

        return type_of

    def _example_agents(self) -> dict[str, PolicySlot]:
        """Return an agent of each rule, where one is found at once."""
        agents = {}
        for rule, policy in self._team.rules.items():
            agent = rule.replace("*", "1")
            slot = self._team.slots[policy]
            if self._team.slot_of(agent) is slot:
                agents[agent] = slot
        return agents

    def _example(self, *, is_raw: bool) -> Document:
        return {
            agent: {"obs": slot.space.raw_example(slot.width)}
            if is_raw or slot.space.example is None
            else slot.space.example
            for agent, slot in self._example_agents().items()
        }


def _literal(text: str) -> str:
    """Return the regular expression of exactly this text."""
    return _SYNTAX.sub(r"\\\g<0>", text)


def _reference(name: str) -> Document:
    return {"$ref": f"#/components/schemas/{name}"}


def _has_memory(slot: PolicySlot) -> bool:
    return slot.signature is not None and bool(slot.signature.memory)


def _takes_previous_step(slot: PolicySlot) -> bool:
    return slot.live is not None and slot.live.previous_step.is_taken
