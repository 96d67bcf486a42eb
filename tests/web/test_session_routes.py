"""Sessions over HTTP: memory from step to step, order, steps sent again, ends and limits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import orjson
import pytest

from policy_server.metrics import Metrics, MetricsExporter
from policy_server.schema import parse_schema
from policy_server.serving import PolicyRegistry, PolicySlot
from policy_server.serving.process_sessions import NoSessions
from policy_server.settings import Settings
from policy_server.web import create_app
from tests.support.fakes import (
    FakeBackend,
    integer_backend,
    opened,
    previous_backend,
    slot_of,
    summing_backend,
)
from tests.support.pages import summed
from tests.support.waiting import turns, until
from tests.support.web import (
    KEY,
    OBSERVATION,
    SCHEMA,
    assert_error,
    assert_invalid,
    client_of,
    running,
    serve,
)

PARSED = parse_schema(SCHEMA)
UNKNOWN = "0123456789abcdef"


def observed(cat: int) -> dict[str, float]:
    """Return an observation that adds a number to the memory of `summing_backend`."""
    return {"cat": cat, "mouse": 1.0}


async def begun(client: httpx.AsyncClient, **start: Any) -> str:  # noqa: ANN401 -- any start
    """Begin a session, and return its address."""
    answer = await client.post("/sessions", json=start)
    assert answer.status_code == 201, answer.text
    return f"/sessions/{answer.json()['session_id']}"


async def stepped(
    client: httpx.AsyncClient, session: str, cat: int, **headers: str
) -> httpx.Response:
    """Make a step, and return the answer."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    path = f"{session}/predict_deterministic"
    return await client.post(path, json=observed(cat), headers=named)


@asynccontextmanager
async def versions_of(
    backend: FakeBackend,
    metrics: Metrics | None = None,
    **settings: Any,  # noqa: ANN401 -- theirs
) -> AsyncIterator[tuple[httpx.AsyncClient, PolicySlot]]:
    """Serve a policy whose versions a test changes."""
    known, counted = Settings(**settings), metrics or Metrics()
    slot = slot_of(backend, PARSED, settings=known, metrics=counted)
    app = create_app(PolicyRegistry([slot]), known, api_key=KEY, metrics=counted)
    async with running(app), client_of(app) as client:
        yield client, slot


async def test_session_keeps_its_memory_from_step_to_step() -> None:
    async with serve(summing_backend()) as client:
        session = await begun(client)
        answers = [await stepped(client, session, 1) for _ in range(5)]
        shown = (await client.get(session)).json()

    assert [answer.json()["actions"] for answer in answers] == [[1], [2], [0], [1], [2]]
    assert [answer.headers["x-step"] for answer in answers] == ["0", "1", "2", "3", "4"]
    assert all("x-policy-memory" not in answer.headers for answer in answers)
    assert answers[0].headers["x-policy-version"]
    assert shown == {
        "session_id": session.rpartition("/")[2],
        "policy": "default",
        "version": answers[0].headers["x-policy-version"],
        "steps": 5,
        "seed": None,
        "episode_id": "",
    }


@pytest.mark.parametrize("kind", ["predict", "predict_deterministic", "distribution"])
@pytest.mark.parametrize("raw", ["", "_raw"])
async def test_every_kind_and_form_steps_the_memory(kind: str, raw: str) -> None:
    body = {"obs": [1.0, 0.0]} if raw else observed(1)
    async with serve(summing_backend()) as client:
        session = await begun(client)
        first = await client.post(f"{session}/{kind}{raw}", json=body)
        after = await stepped(client, session, 1)

    assert first.status_code == 200
    assert after.json()["actions"] == [2]
    assert after.headers["x-step"] == "1"


async def test_sessions_of_many_episodes_ride_in_one_call_and_keep_apart() -> None:
    backend = summing_backend()
    async with serve(backend) as client:
        sessions = [await begun(client) for _ in range(3)]
        del backend.batches[:]
        for _ in range(2):
            answers = await asyncio.gather(
                *(stepped(client, session, cat) for cat, session in enumerate(sessions))
            )

    assert backend.batches == [3, 3]
    assert [answer.json()["actions"] for answer in answers] == [[0], [2], [1]]


async def test_requests_on_one_session_are_answered_in_order() -> None:
    backend = summing_backend()
    async with serve(backend) as client:
        session = await begun(client)
        answers = await asyncio.gather(*(stepped(client, session, 1) for _ in range(6)))

    assert [answer.headers["x-step"] for answer in answers] == [str(step) for step in range(6)]
    assert [answer.json()["actions"] for answer in answers] == [[1], [2], [0]] * 2


async def test_policy_without_memory_has_sessions_too() -> None:
    async with serve(integer_backend()) as client:
        session = await begun(client, seed=3)
        answer = await client.post(f"{session}/predict", json=OBSERVATION)
        alone = await client.post("/predict?seed=3", json=OBSERVATION)

    assert answer.json() == alone.json()


async def test_seeded_session_draws_step_i_with_the_seed_plus_i() -> None:
    zero = {"cat": 3, "mouse": 1.0}
    async with serve(summing_backend()) as client:
        session = await begun(client, seed=7)
        answers = [(await client.post(f"{session}/predict", json=zero)).json() for _ in range(8)]
        alone = [
            (await client.post(f"/predict?seed={7 + step}", json=zero)).json() for step in range(8)
        ]
        own = await client.post(f"{session}/predict?seed=9", json=zero)

    assert answers == alone
    assert own.json() == alone[2]


@pytest.mark.parametrize("content_type", ["application/x-www-form-urlencoded", "text/plain", None])
async def test_options_of_a_session_are_json_whatever_the_content_type_says(
    content_type: str | None,
) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    async with serve(summing_backend()) as client:
        answer = await client.post("/sessions", content=b'{"seed": 7}', headers=headers)
        session = f"/sessions/{answer.json()['session_id']}"
        reset = await client.post(f"{session}/reset", content=b'{"seed": 8}', headers=headers)

    assert (answer.status_code, answer.json()["seed"]) == (201, 7)
    assert (reset.status_code, reset.json()["seed"]) == (200, 8)


async def test_options_of_a_session_that_are_no_json_are_refused() -> None:
    async with serve(summing_backend()) as client:
        utf16 = await client.post("/sessions", content='{"seed": 7}'.encode("utf-16"))
        no_text = await client.post("/sessions", content=b"\xff\xff")
        no_json = await client.post("/sessions", content=b"{")
        no_letter = await client.post("/sessions", content=b'{"episode_id": "\xff"}')
        nothing = await client.post("/sessions", content=b"null")
        marked = await client.post("/sessions", content=b'\xef\xbb\xbf{"seed": 7}')

    assert_error(utf16, 415, "the body is UTF-16")
    assert_error(no_text, 415, "no text in UTF-8")
    assert_invalid(no_json, "body")
    assert_invalid(no_letter, "body")
    assert (nothing.status_code, marked.status_code) == (201, 201)


async def test_reset_begins_another_episode() -> None:
    async with serve(summing_backend()) as client:
        session = await begun(client, seed=1, episode_id="first")
        await stepped(client, session, 1)
        reset = await client.post(f"{session}/reset")
        named = await client.post(f"{session}/reset", json={"seed": 4, "episode_id": "second"})
        answer = await stepped(client, session, 1)

    assert reset.status_code == 200
    assert (reset.json()["steps"], reset.json()["seed"]) == (0, 1)
    assert (named.json()["seed"], named.json()["episode_id"]) == (4, "second")
    assert (answer.json()["actions"], answer.headers["x-step"]) == ([1], "0")


async def test_step_that_is_sent_again_gets_its_answer_again() -> None:
    async with serve(summing_backend()) as client:
        session = await begun(client)
        path = f"{session}/predict"
        first, again = [
            await client.post(path, json=observed(1), headers={"x-step": "0"}) for _ in range(2)
        ]
        second = await stepped(client, session, 1, x_step="1")
        steps = (await client.get(session)).json()["steps"]

    # A draw without a seed would be another one.
    assert again.content == first.content
    assert (first.headers["x-step"], again.headers["x-step"]) == ("0", "0")
    assert second.json()["actions"] == [2]
    assert steps == 2


@pytest.mark.parametrize(
    ("step", "cat", "kind", "message"),
    [
        ("1", 2, "predict_deterministic", "x-step 1: was answered to another request"),
        ("1", 1, "predict", "x-step 1: was answered to another request"),
        ("0", 1, "predict_deterministic", "x-step 0: expected 2, the next step of this session or"),
        ("3", 1, "predict_deterministic", "x-step 3: expected 2"),
    ],
    ids=["another body", "another kind", "an older step", "a later step"],
)
async def test_step_that_does_not_follow_is_refused(
    step: str, cat: int, kind: str, message: str
) -> None:
    async with serve(summing_backend()) as client:
        session = await begun(client)
        for number in ("0", "1"):
            await stepped(client, session, 1, x_step=number)
        refused = await client.post(
            f"{session}/{kind}", json=observed(cat), headers={"x-step": step}
        )
        after = await stepped(client, session, 1, x_step="2")

    assert_error(refused, 409, message)
    assert after.json()["actions"] == [0]


async def test_requests_that_come_during_a_step_wait_for_its_end() -> None:
    backend = summing_backend()
    async with serve(backend) as client:
        session = await begun(client)
        del backend.batches[:]
        backend.gate = asyncio.Event()
        cancelled = asyncio.create_task(stepped(client, session, 2))
        await until(lambda: backend.batches == [1])
        requests = [
            asyncio.create_task(stepped(client, session, 1, x_step="0")),
            asyncio.create_task(stepped(client, session, 1, x_step="0")),
            asyncio.create_task(client.delete(session)),
            asyncio.create_task(stepped(client, session, 1, x_step="1")),
        ]
        await turns()
        # A step that is cut off makes none.
        cancelled.cancel()
        backend.gate.set()
        first, again, deleted, late = await asyncio.gather(*requests)

    assert (first.json()["actions"], again.content) == ([1], first.content)
    assert backend.batches == [1, 1], "the step that was sent again was computed once"
    assert deleted.status_code == 204
    assert_error(late, 404)


async def test_first_step_has_none_before_it() -> None:
    async with serve(summing_backend()) as client:
        session = await begun(client)
        refused = await stepped(client, session, 1, x_step="1")

    assert_error(refused, 409, "x-step 1: expected 0, the next step of this session")
    assert "again" not in refused.json()["detail"]


async def test_mistake_does_not_step_the_memory() -> None:
    async with serve(replace(summing_backend(), error=ValueError("broken"))) as client:
        session = await begun(client)
        wrong = await client.post(f"{session}/predict", json={"cat": 1})
        failed = await stepped(client, session, 666)
        number = await stepped(client, session, 1, x_step="-1")
        answer = await stepped(client, session, 1)

    assert_invalid(wrong, "body.mouse")
    assert_error(failed, 500)
    assert_invalid(number, "header.x-step")
    assert (answer.json()["actions"], answer.headers["x-step"]) == ([1], "0")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/predict"),
        ("POST", "/distribution_raw"),
        ("POST", "/reset"),
        ("GET", ""),
        ("DELETE", ""),
    ],
)
async def test_unknown_session_is_404_in_words(method: str, path: str) -> None:
    async with serve(summing_backend()) as client:
        answer = await client.request(
            method, f"/sessions/{UNKNOWN}{path}", content=orjson.dumps(OBSERVATION)
        )
        if path == "/reset":
            answer = await client.post(f"/sessions/{UNKNOWN}/reset")

    assert_error(answer, 404, f"session '{UNKNOWN}' is unknown, has ended", "POST /sessions")


async def test_deleted_session_is_gone() -> None:
    async with serve(summing_backend()) as client:
        session = await begun(client)
        deleted = await client.delete(session)
        after = await stepped(client, session, 1)

    assert (deleted.status_code, deleted.content) == (204, b"")
    assert_error(after, 404)


async def test_idle_sessions_expire_and_are_counted() -> None:
    metrics = Metrics()

    def page() -> str:
        return MetricsExporter(metrics, port=0).render().decode()

    async with serve(summing_backend(), metrics=metrics, session_idle_s=0.5) as client:
        session = await begun(client)
        opened_at_first = summed(page(), "policy_server_sessions")
        await until(lambda: summed(page(), "policy_server_sessions") == 0)
        after = await stepped(client, session, 1)

    assert opened_at_first == 1
    assert_error(after, 404, "was idle for too long (POLICY_SERVER_SESSION_IDLE_S)")
    assert 'session_changes_total{change="opened",policy="default"} 1.0' in page()
    assert 'session_changes_total{change="expired",policy="default"} 1.0' in page()


async def test_number_of_sessions_is_limited() -> None:
    async with serve(summing_backend(), max_sessions=2) as client:
        sessions = [await begun(client) for _ in range(2)]
        refused = await client.post("/sessions")
        await client.delete(sessions[0])
        taken = await client.post("/sessions")

    assert_error(refused, 503, "2 sessions are open already (POLICY_SERVER_MAX_SESSIONS)")
    assert refused.headers["retry-after"]
    assert taken.status_code == 201


@pytest.mark.parametrize(
    "start", [{"seed": -1}, {"seed": "1"}, {"seed": True}, {"sed": 1}, {"episode_id": 3}, []]
)
async def test_start_that_is_none_is_refused(start: object) -> None:
    async with serve(summing_backend()) as client:
        answer = await client.post("/sessions", json=start)

    assert answer.status_code == 422, answer.text


async def test_seed_is_refused_at_the_start_where_no_draw_takes_one() -> None:
    backend = replace(integer_backend(), actions=((1.0,), 0.5))
    backend.signature = replace(backend.signature, components=None, basis="graph")
    async with serve(backend) as client:
        refused = await client.post("/sessions", json={"seed": 1})
        session = await begun(client)
        answer = await client.post(f"{session}/predict", json=OBSERVATION)

    assert_error(refused, 501, "a seed needs a policy whose distribution is known")
    assert answer.status_code == 200


async def test_sessions_of_one_policy_are_unknown_to_another() -> None:
    settings, metrics = Settings(), Metrics()
    names = ("door", "lift")
    first = slot_of(summing_backend(), PARSED, name="door", metrics=metrics)
    slots = [first, slot_of(summing_backend(), PARSED, name="lift", metrics=metrics)]
    app = create_app(PolicyRegistry(slots), settings, api_key=KEY)
    async with running(app), client_of(app) as client:
        ids = [
            (await client.post(f"/policies/{name}/sessions")).json()["session_id"] for name in names
        ]
        own = await client.post(
            f"/policies/lift/sessions/{ids[1]}/predict_deterministic", json=observed(1)
        )
        default = await client.post(f"/sessions/{ids[0]}/predict", json=observed(1))
        foreign = await client.post(f"/policies/door/sessions/{ids[1]}/predict", json=observed(1))

    assert own.json()["actions"] == [1]
    assert default.status_code == 200
    assert_error(foreign, 404)


async def test_session_keeps_its_version_through_a_promotion_until_it_is_unloaded() -> None:
    async with versions_of(summing_backend()) as (client, slot):
        session = await begun(client)
        first = await stepped(client, session, 1)
        old = first.headers["x-policy-version"]
        await slot.add(lambda: opened(summing_backend()), name="v2")
        slot.route({"v2": 100.0})
        second = await stepped(client, session, 1)
        reset = await client.post(f"{session}/reset")
        held = await slot.sessions_of(old)
        new = (await client.post("/sessions")).json()["version"]
        await slot.remove(old)
        after = await stepped(client, session, 1)
        begun_again = (await client.post(f"{session}/reset")).json()["version"]
        last = await stepped(client, session, 1)

    assert (second.json()["actions"], second.headers["x-policy-version"]) == ([2], old)
    assert (held, reset.json()["version"], new) == (1, old, "v2")
    assert_error(after, 409, f"began with version {old}, which is not loaded any more")
    assert (begun_again, last.json()["actions"]) == ("v2", [1])


async def test_several_web_processes_keep_no_sessions() -> None:
    slot = slot_of(summing_backend(), PARSED)
    slot.sessions = NoSessions()
    app = create_app(PolicyRegistry([slot]), Settings(), api_key=KEY)
    async with running(app), client_of(app) as client:
        refused = await client.post("/sessions")
        unknown = await client.get(f"/sessions/{UNKNOWN}")

    assert_error(refused, 501, "share no sessions", "POLICY_SERVER_SESSIONS_URL", "x-state: new")
    assert_error(unknown, 501)


async def test_session_needs_the_key() -> None:
    async with serve(summing_backend(), key=None) as client:
        begin = await client.post("/sessions")
        step = await client.post(f"/sessions/{UNKNOWN}/predict", json=OBSERVATION)

    assert_error(begin, 401)
    assert_error(step, 401)


@pytest.mark.parametrize("has_fast_path", [True, False], ids=["fast", "FastAPI"])
async def test_plain_answer_of_a_policy_with_memory_says_that_it_has_none(
    *, has_fast_path: bool
) -> None:
    async with serve(summing_backend(), has_fast_path=has_fast_path) as client:
        answers = [await client.post("/predict_deterministic", json=observed(1)) for _ in range(2)]
        batch = await client.post("/predict_deterministic/batch", json=[observed(1)])
    async with serve(integer_backend(), has_fast_path=has_fast_path) as client:
        plain = await client.post("/predict", json=OBSERVATION)

    assert [answer.json()["actions"] for answer in answers] == [[1], [1]]
    assert [answer.headers["x-policy-memory"] for answer in [*answers, batch]] == ["none"] * 3
    assert "x-policy-memory" not in plain.headers


async def test_document_says_which_answers_have_no_memory() -> None:
    async with serve(summing_backend()) as client:
        paths = (await client.get("/openapi.json")).json()["paths"]
    async with serve(integer_backend()) as client:
        others = (await client.get("/openapi.json")).json()["paths"]

    def answer_of(document: dict[str, Any], path: str) -> dict[str, Any]:
        return dict(document[path]["post"]["responses"]["200"])

    for path in ("/predict", "/distribution_raw", "/predict/batch"):
        assert "x-policy-memory" in answer_of(paths, path)["headers"]
        assert "zero state" in answer_of(paths, path)["description"]
        assert "x-policy-memory" not in answer_of(others, path).get("headers", {})
    step = paths["/sessions/{session_id}/predict"]["post"]
    times = {"x-observation-stamp", "x-held-ms"}
    assert {"x-policy-version", "x-step", *times} == set(step["responses"]["200"]["headers"])
    assert {"404", "409"} <= set(step["responses"])
    assert {parameter["name"] for parameter in step["parameters"]} == {
        "x-step",
        "x-previous-reward",
        "x-previous-action",
        "x-request-timeout-ms",
        "x-observation-stamp",
        "seed",
        "session_id",
    }


# The previous action and reward


async def test_policy_gets_the_reward_and_the_action_of_the_step_before() -> None:
    backend = previous_backend()
    async with serve(backend) as client:
        session = await begun(client)
        del backend.calls[:]
        await stepped(client, session, 2)
        await stepped(client, session, 2, x_previous_reward="-1.5")
        await stepped(client, session, 2, x_previous_reward="2", x_previous_action="[2]")

    states = [call.state for call in backend.calls]
    assert [None if state is None else state[0].tolist() for state in states] == [
        [0.0, 0.0, 0.0],
        [2.0, 2.0, -1.5],
        [1.0, 2.0, 2.0],
    ]


@pytest.mark.parametrize(
    ("headers", "place"),
    [
        ({}, "header.x-previous-reward"),
        ({"x_previous_reward": "nan"}, "header.x-previous-reward"),
        ({"x_previous_reward": "1e39"}, "header.x-previous-reward"),
        ({"x_previous_reward": "1", "x_previous_action": "[3]"}, "header.x-previous-action"),
        ({"x_previous_reward": "1", "x_previous_action": "[0.5]"}, "header.x-previous-action"),
        ({"x_previous_reward": "1", "x_previous_action": "[0, 1]"}, "header.x-previous-action"),
        ({"x_previous_reward": "1", "x_previous_action": '["a"]'}, "header.x-previous-action"),
        ({"x_previous_reward": "1", "x_previous_action": "[0"}, "header.x-previous-action"),
    ],
    ids=str,
)
async def test_step_without_what_the_policy_needs_is_refused(
    headers: dict[str, str], place: str
) -> None:
    backend = previous_backend()
    async with serve(backend) as client:
        session = await begun(client)
        await stepped(client, session, 2)
        refused = await stepped(client, session, 2, **headers)
        after = await stepped(client, session, 2, x_previous_reward="0")

    assert_invalid(refused, place)
    assert after.headers["x-step"] == "1"


async def test_step_after_a_distribution_states_the_action() -> None:
    reward = {"x-previous-reward": "0"}
    async with serve(previous_backend()) as client:
        session = await begun(client)
        await client.post(f"{session}/distribution", json=observed(1))
        refused = await client.post(f"{session}/predict", json=observed(1), headers=reward)
        answer = await client.post(
            f"{session}/predict", json=observed(1), headers={**reward, "x-previous-action": "[1]"}
        )

    assert_invalid(refused, "header.x-previous-action")
    assert answer.status_code == 200
