"""State tokens: the memory that a client carries, signed, of one policy, version and schema."""

from __future__ import annotations

import base64
import hmac
import string
import struct
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import httpx
import msgpack
import pytest

from policy_server.policy import StateTensor
from policy_server.schema import parse_schema
from policy_server.serving import PolicyRegistry
from policy_server.settings import Settings
from policy_server.web import create_app
from tests.support.fakes import integer_backend, opened, previous_backend, slot_of, summing_backend
from tests.support.web import (
    KEY,
    SCHEMA,
    assert_error,
    assert_invalid,
    client_of,
    running,
    serve,
)

_LETTERS = string.ascii_letters + string.digits + "-_"
PARSED = parse_schema(SCHEMA)


async def stepped(
    client: httpx.AsyncClient, token: str, cat: int = 1, path: str = "/predict_deterministic"
) -> httpx.Response:
    """Make a step from the memory in a token."""
    return await client.post(path, json={"cat": cat, "mouse": 1.0}, headers={"x-state": token})


async def episode(client: httpx.AsyncClient, steps: int) -> Sequence[httpx.Response]:
    """Play an episode by tokens."""
    answers, token = [], "new"
    for _ in range(steps):
        answers.append(await stepped(client, token))
        token = answers[-1].headers["x-state"]
    return answers


@pytest.mark.parametrize("has_fast_path", [True, False], ids=["fast", "FastAPI"])
async def test_token_carries_the_memory_from_answer_to_request(*, has_fast_path: bool) -> None:
    async with serve(summing_backend(), has_fast_path=has_fast_path) as client:
        answers = await episode(client, 5)
        again = await stepped(client, answers[1].headers["x-state"])

    assert [answer.json()["actions"] for answer in answers] == [[1], [2], [0], [1], [2]]
    assert all("x-policy-memory" not in answer.headers for answer in answers)
    assert again.json() == answers[2].json()


async def test_token_is_good_in_another_process_with_the_same_key() -> None:
    async with serve(summing_backend()) as first, serve(summing_backend()) as second:
        token = (await episode(first, 2))[-1].headers["x-state"]
        answer = await stepped(second, token)

    assert answer.json()["actions"] == [0]


async def test_policy_without_memory_has_tokens_too() -> None:
    async with serve(integer_backend()) as client:
        answers = await episode(client, 3)

    assert [answer.status_code for answer in answers] == [200] * 3


def changed(token: str) -> list[str]:
    """Return a token with one bit changed at each of several places, and pieces of it."""
    content = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    flipped = [
        content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
        for at in (0, 31, 32, 33, len(content) // 2, len(content) - 1)
    ]
    pieces = [content[:-1], content[:32], content[:10], content + b"\0"]
    encoded = [base64.urlsafe_b64encode(item).rstrip(b"=").decode() for item in [*flipped, *pieces]]
    last = [token[:-1] + letter for letter in _LETTERS if letter != token[-1]]
    return [*encoded, *last, "old", "NEW", "A", "a b", "%%%", "\u00e9", token + "!"]


async def test_tampered_token_is_422_in_words() -> None:
    async with serve(summing_backend()) as client:
        token = (await episode(client, 1))[0].headers["x-state"]
        answers = [
            await client.post(
                "/predict",
                json={"cat": 1, "mouse": 1.0},
                headers=[(b"x-state", item.encode("latin-1"))],
            )
            for item in changed(token)
        ]

    for answer in answers:
        assert_invalid(answer, "header.x-state")
        message = answer.json()["detail"][0]["msg"]
        assert "unchanged and of this server" in message
        assert "x-state: new" in message


def contents_of(token: str) -> list[Any]:
    """Return the parts that a token has signed."""
    content = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    return list(msgpack.unpackb(content[33:]))


def signed(packed: bytes) -> str:
    """Return a token of any content, as a client can sign it that knows the access key."""
    key = hmac.digest(KEY.encode(), b"policy-server state tokens", "sha256")
    content = b"\x01" + packed
    mac = hmac.digest(key, content, "sha256")
    return base64.urlsafe_b64encode(mac + content).rstrip(b"=").decode()


def floats(*numbers: float) -> bytes:
    return struct.pack(f"<{len(numbers)}f", *numbers)


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        pytest.param(0, 7, "the parts of a token", id="a policy that is no text"),
        pytest.param(0, "door\n", "the parts of a token", id="a policy of two lines"),
        pytest.param(1, [], "the parts of a token", id="a version that is no text"),
        pytest.param(2, None, "the parts of a token", id="a fingerprint that is no bytes"),
        pytest.param(3, 1.0, "the parts of a token", id="steps that are no integer"),
        pytest.param(3, True, "the parts of a token", id="steps that are a boolean"),
        pytest.param(3, -1, "0 to 9223372036854775807 steps", id="fewer steps than none"),
        pytest.param(3, 2**63, "0 to 9223372036854775807 steps", id="more steps than are counted"),
        pytest.param(4, 1, "the parts of a token", id="has_action that is no boolean"),
        pytest.param(5, "abcd", "the parts of a token", id="numbers that are no bytes"),
        pytest.param(5, b"", "4 bytes of memory, not 0", id="no number"),
        pytest.param(5, b"abc", "4 bytes of memory, not 3", id="a piece of a number"),
        pytest.param(5, floats(1, 2), "4 bytes of memory, not 8", id="a number too many"),
        pytest.param(5, floats(float("nan")), "finite numbers", id="NaN"),
        pytest.param(5, floats(float("-inf")), "finite numbers", id="infinity"),
    ],
)
async def test_signed_token_of_wrong_content_is_422_and_asks_no_policy(
    place: int, value: object, says: str
) -> None:
    backend = summing_backend()
    async with serve(backend) as client:
        contents = contents_of((await episode(client, 1))[0].headers["x-state"])
        as_it_was = signed(msgpack.packb(contents))
        contents[place] = value
        del backend.calls[:]
        answer = await stepped(client, signed(msgpack.packb(contents)))
        calls = len(backend.calls)
        good = await stepped(client, as_it_was)

    assert_invalid(answer, "header.x-state")
    message = answer.json()["detail"][0]["msg"]
    assert says in message
    assert "x-state: new" in message
    assert calls == 0
    assert good.json()["actions"] == [2]


@pytest.mark.parametrize(
    "packed",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\xc1", id="no MessagePack"),
        pytest.param(b"\x91" * 9000, id="lists in lists"),
        pytest.param(msgpack.packb("text"), id="no list"),
        pytest.param(msgpack.packb({"policy": "default"}), id="a map"),
        pytest.param(msgpack.packb(["default"]), id="parts that are missing"),
        pytest.param(msgpack.packb(list(range(20))), id="parts too many"),
        pytest.param(b"\x96" + b"\xc7\x0c\xff" + b"\xff" * 12, id="a time that is none"),
    ],
)
async def test_signed_token_that_is_no_list_of_its_parts_is_422(packed: bytes) -> None:
    async with serve(summing_backend()) as client:
        answer = await stepped(client, signed(packed))

    assert_invalid(answer, "header.x-state")
    assert "the parts of a token" in answer.json()["detail"][0]["msg"]


async def test_signed_token_of_an_action_that_the_policy_does_not_have_is_422() -> None:
    backend = previous_backend()
    reward = {"x-previous-reward": "0"}
    async with serve(backend) as client:
        contents = contents_of((await episode(client, 1))[0].headers["x-state"])
        answers = []
        for action in (2.0, 3.0, 0.5, -1.0, 1e38):
            contents[5] = floats(1.0, action, 0.0)
            headers = {"x-state": signed(msgpack.packb(contents)), **reward}
            body = {"cat": 1, "mouse": 1.0}
            answers.append(await client.post("/predict", json=body, headers=headers))

    assert [answer.status_code for answer in answers] == [200, 422, 422, 422, 422]
    for answer in answers[1:]:
        assert_invalid(answer, "header.x-state")
        assert "a previous action of the policy" in answer.json()["detail"][0]["msg"]


@pytest.mark.parametrize(
    "options",
    [{"api_key": "another"}, {"state_key": "another-0123456789"}],
    ids=["another access key", "a key of its own"],
)
async def test_token_of_another_key_is_foreign(options: dict[str, str]) -> None:
    async with (
        serve(summing_backend()) as ours,
        serve(summing_backend(), key=options.get("api_key", KEY), **options) as theirs,
    ):
        token = (await episode(theirs, 1))[0].headers["x-state"]
        answer = await stepped(ours, token)

    assert_invalid(answer, "header.x-state")


async def test_state_key_outlives_a_change_of_the_access_key() -> None:
    async with (
        serve(summing_backend(), state_key="shared-0123456789") as before,
        serve(
            summing_backend(), state_key="shared-0123456789", api_key="new-key", key="new-key"
        ) as after,
    ):
        token = (await episode(before, 1))[0].headers["x-state"]
        answer = await stepped(after, token)

    assert answer.json()["actions"] == [2]


async def test_server_without_any_key_has_no_tokens() -> None:
    async with serve(summing_backend(), api_key=None, key=None) as client:
        answer = await stepped(client, "new")

    assert_error(answer, 501, "set POLICY_SERVER_STATE_KEY")


async def test_token_of_another_schema_is_outdated() -> None:
    other = SCHEMA.replace("maximum: 10", "maximum: 11")
    async with serve(summing_backend()) as ours, serve(summing_backend(), schema=other) as theirs:
        token = (await episode(theirs, 1))[0].headers["x-state"]
        answer = await stepped(ours, token)

    assert_invalid(answer, "header.x-state")
    assert "is outdated: version version" in answer.json()["detail"][0]["msg"]


async def test_token_is_bound_to_policy_and_version() -> None:
    slots = [slot_of(summing_backend(), PARSED, name=name) for name in ("door", "lift")]
    app = create_app(PolicyRegistry(slots), Settings(), api_key=KEY)
    modes = "predict_deterministic"
    async with running(app), client_of(app) as client:
        first = await stepped(client, "new", path=f"/policies/door/{modes}")
        token, old = first.headers["x-state"], first.headers["x-policy-version"]
        foreign = await stepped(client, token, path=f"/policies/lift/{modes}")
        await slots[0].add(lambda: opened(summing_backend()), name="v2")
        slots[0].route({"v2": 100.0})
        second = await stepped(client, token, path=f"/policies/door/{modes}")
        new = await stepped(client, "new", path=f"/policies/door/{modes}")
        await slots[0].remove(old)
        outdated = await stepped(client, token, path=f"/policies/door/{modes}")

    assert_invalid(foreign, "header.x-state")
    assert "of the policy lift, not of door" in foreign.json()["detail"][0]["msg"]
    assert (second.json()["actions"], second.headers["x-policy-version"]) == ([2], old)
    assert new.headers["x-policy-version"] == "v2"
    assert_invalid(outdated, "header.x-state")
    assert f"version {old} is not loaded any more" in outdated.json()["detail"][0]["msg"]


async def test_episode_of_a_token_is_known_for_as_long_as_its_steps_name_it() -> None:
    slot = slot_of(summing_backend(), PARSED)
    app = create_app(PolicyRegistry([slot]), Settings(), api_key=KEY)
    lap = {"x-episode-id": "lap"}
    body = {"cat": 1, "mouse": 1.0}
    async with running(app), client_of(app) as client:
        first = await client.post("/predict", json=body, headers={**lap, "x-state": "new"})
        old = first.headers["x-policy-version"]
        await slot.add(lambda: opened(summing_backend()), name="v2")
        slot.route({"v2": 100.0})
        begun = slot.episodes_of(old)
        # As after EPISODE_IDLE_S.
        slot.end_episode("lap")
        token = {"x-state": first.headers["x-state"]}
        nameless = await client.post("/predict", json=body, headers=token)
        idle = slot.episodes_of(old)
        await client.post("/predict", json=body, headers={**token, **lap})
        again = slot.episodes_of(old)

    assert nameless.headers["x-policy-version"] == old
    assert (begun, idle, again) == (1, 0, 1)


async def test_token_of_another_version_than_the_one_that_is_asked_for_is_409() -> None:
    slot = slot_of(summing_backend(), PARSED)
    app = create_app(PolicyRegistry([slot]), Settings(), api_key=KEY)
    body = {"cat": 1, "mouse": 1.0}
    async with running(app), client_of(app) as client:
        first = await client.post("/predict", json=body, headers={"x-state": "new"})
        old, token = (first.headers[name] for name in ("x-policy-version", "x-state"))
        await slot.add(lambda: opened(summing_backend()), name="v2")
        answers = [
            await client.post(
                "/predict", json=body, headers={"x-state": token, "x-policy-version": name}
            )
            for name in (old, "v2", "nowhere")
        ]

    assert answers[0].headers["x-policy-version"] == old
    assert_error(answers[1], 409, f"x-policy-version: expected {old}", "got v2")
    assert_error(answers[2], 409, "x-policy-version: 'nowhere' is not loaded")


_SWAPPED = """
observations:
  mouse: {type: float, maximum: 10}
  cat: {type: int}
parameters:
  discrete: True
  api_key: "1234567asdfgh"
"""


async def test_token_is_bound_to_the_order_of_the_observations() -> None:
    async with (
        serve(summing_backend()) as first,
        serve(summing_backend(), schema=_SWAPPED) as second,
    ):
        token = (await stepped(first, "new")).headers["x-state"]
        answer = await stepped(second, token)

    assert_invalid(answer, "header.x-state")


async def test_token_is_good_where_only_the_words_of_the_schema_differ() -> None:
    told = SCHEMA.replace("cat: {type: int}", "cat: {type: int, description: its row, example: 1}")
    async with serve(summing_backend()) as first, serve(summing_backend(), schema=told) as second:
        token = (await stepped(first, "new")).headers["x-state"]
        answer = await stepped(second, token)

    assert answer.status_code == 200


async def test_token_carries_the_previous_action() -> None:
    backend = summing_backend()
    memory = (
        *backend.signature.memory,
        StateTensor("prev_actions", (1,), role="previous_action"),
        StateTensor("prev_rewards", (1,), role="previous_reward"),
    )
    backend = replace(backend, signature=replace(backend.signature, memory=memory))
    body = {"cat": 2, "mouse": 1.0}
    async with serve(backend) as client:
        first = await stepped(client, "new", 2)
        token = {"x-state": first.headers["x-state"]}
        refused = await client.post("/predict", json=body, headers=token)
        wrong = await client.post(
            "/predict", json=body, headers={**token, "x-previous-reward": "much"}
        )
        del backend.calls[:]
        answer = await client.post(
            "/predict", json=body, headers={**token, "x-previous-reward": "3"}
        )

    assert_invalid(refused, "header.x-previous-reward")
    assert_invalid(wrong, "header.x-previous-reward")
    assert answer.status_code == 200
    state = backend.calls[0].state
    assert state is not None
    assert state[0].tolist() == [2.0, 2.0, 3.0]


@pytest.mark.parametrize(("width", "status"), [(11_000, 200), (13_000, 501)])
async def test_episode_whose_token_no_request_could_carry_is_refused(
    width: int, status: int
) -> None:
    backend = summing_backend()
    memory = (*backend.signature.memory, StateTensor("more", (width,)))
    signature = replace(backend.signature, memory=memory)
    async with serve(replace(backend, signature=signature)) as client:
        answer = await stepped(client, "new")

    assert answer.status_code == status
    if status == 501:
        assert_error(answer, 501, "POLICY_SERVER_MAX_HEADER_BYTES", "POST /sessions")
    else:
        assert 50_000 < len(answer.headers["x-state"]) < 65_536


async def test_batch_belongs_to_no_episode() -> None:
    async with serve(summing_backend()) as client:
        answer = await client.post(
            "/predict/batch", json=[{"cat": 1, "mouse": 1.0}], headers={"x-state": "new"}
        )

    assert_invalid(answer, "header.x-state")


async def test_document_tells_of_tokens_where_there_is_a_memory() -> None:
    async with serve(summing_backend()) as client:
        paths = (await client.get("/openapi.json")).json()["paths"]
    async with serve(integer_backend()) as client:
        others = (await client.get("/openapi.json")).json()["paths"]
    async with serve(previous_backend()) as client:
        stated = (await client.get("/openapi.json")).json()["paths"]

    found = [
        {item["name"] for item in one["/predict"]["post"]["parameters"]}
        & {"x-state", "x-previous-reward", "x-previous-action"}
        for one in (paths, others, stated)
    ]
    assert "x-state" in paths["/predict"]["post"]["responses"]["200"]["headers"]
    assert found == [{"x-state"}, set(), {"x-state", "x-previous-reward", "x-previous-action"}]
