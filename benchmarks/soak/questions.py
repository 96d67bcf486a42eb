"""Scenarios: single observations, batches and teams, by every route and in every encoding."""

from __future__ import annotations

import gzip
import io
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import numpy as np
import orjson

from benchmarks.soak.expected import KINDS, SEEDED, Case
from benchmarks.soak.home import CHANGED, flat
from benchmarks.soak.raw import connected, encode_request
from benchmarks.soak.traffic import Outcome, Trouble, Visitor

__all__ = [
    "ask_all_agents",
    "ask_batch",
    "ask_many_at_once",
    "ask_one",
    "draw_one",
    "prefix_of",
    "read_pages",
    "scrape",
    "wanted_of",
]

NPY = {"content-type": "application/x-npy"}
_MOST_ROWS = 200
_MOST_AT_ONCE = 50
_PAGES = (
    *("/", "/livez", "/readyz", "/schema", "/policies", "/openapi.json", "/docs", "/redoc"),
    *("/policies/conveyor/schema", "/policies/hunter/schema/"),
)


def prefix_of(visitor: Visitor, policy: str) -> str:
    """Return what stands ahead of a policy's routes; the default policy has two ways."""
    is_short = policy == CHANGED and visitor.chance.random() < 0.5
    return "" if is_short else f"/policies/{quote(policy)}"


def wanted_of(case: Case, kind: str, outcome: Outcome) -> Any:  # noqa: ANN401 -- JSON
    """Return the right answer by the version that the answer names.

    Args:
        case: the observation.
        kind: the route.
        outcome: the answer.
    """
    is_other = case.policy == CHANGED and outcome.headers["x-policy-version"].startswith("other")
    return (case.others if is_other else case.answers)[kind]


async def ask_one(visitor: Visitor) -> None:
    """Ask for one observation; the answer has to be the policy's own."""
    chance, case = visitor.chance, visitor.case()
    kind = chance.choice((*KINDS, SEEDED))
    is_named = case.is_named and chance.random() < 0.7
    path = f"{prefix_of(visitor, case.policy)}/{kind}{'' if is_named else '_raw'}"
    path += "/" * (chance.random() < 0.1)
    path += f"?seed={case.seed}" if kind == SEEDED else ""
    body, headers = _encoded(visitor, case, is_named=is_named)
    outcome = await visitor.ask("POST", path, body, headers=headers)
    visitor.compare(outcome.json(), [wanted_of(case, kind, outcome)], path)


def _encoded(visitor: Visitor, case: Case, *, is_named: bool) -> tuple[bytes, Mapping[str, str]]:
    """Return a body and its headers: JSON, packed JSON, or an array."""
    way = visitor.chance.random()
    if not is_named and way < 0.2:
        return _npy(np.array(flat(case.observation), np.float32)), NPY
    body = orjson.dumps(case.observation if is_named else case.raw)
    headers = {"content-type": "application/json"}
    if way > 0.9:
        return gzip.compress(body), {**headers, "content-encoding": "gzip"}
    if way > 0.8:
        headers["x-episode-id"] = f"episode {visitor.chance.randrange(1_000_000)}"
    return body, headers


async def draw_one(visitor: Visitor) -> None:
    """Ask for a draw; of one action, its probability has to be that of the distribution.

    Other draws are held by their status alone here, and by their seed in `ask_one`.
    """
    case = visitor.case()
    outcome = await visitor.ask("POST", f"/policies/{case.policy}/predict_raw", case.raw)
    answer = outcome.json()
    [component] = wanted_of(case, "distribution", outcome)["components"]
    if component["kind"] == "categorical":
        [action] = answer["actions"]
        if action not in range(len(component["probabilities"])):
            raise Trouble(f"a draw: no such action: {action}")
        wanted = component["probabilities"][action]
        visitor.compare(answer["probability"], [wanted], "a draw")


async def ask_batch(visitor: Visitor) -> None:
    """Ask for many observations at once; each row has to be answered as it would be alone."""
    chance, first = visitor.chance, visitor.case()
    own = [case for case in visitor.expected.cases if case.policy == first.policy]
    cases = chance.choices(own, k=chance.randint(1, _MOST_ROWS))
    is_named = first.is_named and chance.random() < 0.5
    name = "predict_deterministic" if is_named else "predict_deterministic_raw"
    path = f"{prefix_of(visitor, first.policy)}/{name}/batch"
    way = chance.choice(("rows", "columns", "array", "packed"))
    rows: list[Any] = [case.observation if is_named else case.raw for case in cases]
    headers: dict[str, str] = {}
    if way == "array":
        body, headers = _npy(np.array([flat(case.observation) for case in cases], "f4")), {**NPY}
    elif way == "columns":
        body = orjson.dumps({key: [row[key] for row in rows] for key in rows[0]})
    else:
        body = orjson.dumps(rows)
    if way == "packed":
        body, headers = gzip.compress(body), {"content-encoding": "gzip"}
    is_table = chance.random() < 0.3
    if is_table:
        headers["accept"] = NPY["content-type"]
    outcome = await visitor.ask("POST", path, body, headers=headers)
    wanted = [wanted_of(case, "predict_deterministic", outcome) for case in cases]
    if is_table:
        _compare_table(outcome, wanted, path)
    else:
        columns = {key: [each[key] for each in wanted] for key in wanted[0]}
        visitor.compare(outcome.json(), [columns], path)


def _compare_table(outcome: Outcome, wanted: list[Any], path: str) -> None:
    table = np.load(io.BytesIO(outcome.body), allow_pickle=False)
    right = np.array([[*each["actions"], each["probability"]] for each in wanted], np.float32)
    if table.shape != right.shape or not np.allclose(table, right, rtol=1e-4, atol=1e-4):
        raise Trouble(f"{path}: wrong table: expected {right.tolist()}, got {table.tolist()}")


async def ask_many_at_once(visitor: Visitor) -> None:
    """Send many requests on one connection before reading the first answer."""
    chance = visitor.chance
    cases = [visitor.case(is_named=True) for _ in range(chance.randint(2, _MOST_AT_ONCE))]
    sent = [
        encode_request(
            f"/policies/{case.policy}/predict_deterministic", orjson.dumps(case.observation)
        )
        for case in cases
    ]
    async with connected(visitor.port) as link:
        await link.send(b"".join(sent))
        for case in cases:
            outcome = await link.answer()
            visitor.hold(outcome, 200, "one of many")
            wanted = wanted_of(case, "predict_deterministic", outcome)
            visitor.compare(outcome.json(), [wanted], "one of many")


async def ask_all_agents(visitor: Visitor) -> None:
    """Ask for all agents of the team at once."""
    episode = visitor.chance.choice(visitor.expected.teams)
    outcome = await visitor.ask("POST", "/predict_deterministic/agents", episode.bodies[0])
    visitor.compare(outcome.json(), [episode.answers[0]], "/predict_deterministic/agents")


async def read_pages(visitor: Visitor) -> None:
    """Read a page or a document, or ask for a client library."""
    page = visitor.chance.choice((*_PAGES, "HEAD", "clients"))
    if page == "HEAD":
        await visitor.ask("HEAD", "/readyz")
    elif page != "clients":
        outcome = await visitor.ask("GET", page)
        if not outcome.body:
            raise Trouble(f"{page}: is empty")
    else:
        first = await visitor.ask("GET", "/clients/python")
        await visitor.ask(
            "GET",
            "/clients/python",
            status=304,
            headers={"if-none-match": first.headers["etag"]},
        )


async def scrape(visitor: Visitor) -> None:
    """Read the metrics as Prometheus does, on a connection of its own."""
    async with connected(visitor.metrics_port) as link:
        await link.send(encode_request("/metrics", method="GET", headers={"connection": "close"}))
        page = await link.receive(1 << 16)
        if b" 200 " not in page.split(b"\r\n", 1)[0]:
            raise Trouble(f"/metrics: got {page[:100]!r}")
        await link.ended()
    visitor.counts.answered[visitor.name] += 1


def _npy(array: np.typing.NDArray[np.float32]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()
