"""Real policies with one hostile part: nothing runs, wherever the part stands."""

from __future__ import annotations

import base64
import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import msgpack
import pytest

from policy_server.errors import ModelError
from policy_server.formats import load_policy
from tests.support.audit import audited
from tests.support.hostile import ATTACKS, BOMBS
from tests.support.library_policies import POLICIES
from tests.support.zips import members_of, put

Members = dict[str, bytes]
Change = Callable[[bytes], bytes]

ATTACK = ATTACKS["os system"][4]
CHANGES: dict[str, Change] = {
    "a call": lambda _: ATTACK,
    "a call in a dictionary": lambda _: b"}X\x01\x00\x00\x00x" + ATTACK[2:-1] + b"s.",
    "a bomb": lambda _: BOMBS["lists of lists"],
    "another value": lambda _: b"}.",
    "a cut": lambda content: content[: len(content) // 2],
}
MSGPACK: dict[str, Change] = {
    "an extension": lambda _: msgpack.packb({"x": msgpack.ExtType(5, ATTACK)}),
    "an object": lambda _: msgpack.packb(
        {b"nd": True, b"type": "O", b"shape": [1], b"data": ATTACK}
    ),
    "a huge list": lambda _: b"\x81\xa1x" + b"\xdd\xff\xff\xff\xff" * 3,
    "many lists": lambda _: b"\x81\xa1x" + b"\xdd\x00\x0f\xff\xff" * 400 + bytes(1 << 20),
    "nested lists": lambda _: b"\x91" * 100_000 + b"\xc0",
    "an empty array": lambda _: msgpack.packb(
        {"x": {b"nd": False, b"type": "<f4", b"shape": [], b"data": b""}}
    ),
    "an array of any size": lambda _: msgpack.packb(
        {"x": {b"nd": True, b"type": "<f4", b"shape": [2**40, 2**40], b"data": bytes(4)}}
    ),
    "a key that is a list": lambda _: b"\x81\x91\x01\x01",
    "another value": lambda _: msgpack.packb([1]),
    "a cut": lambda content: content[: len(content) // 2],
}


def zipped(members: Members) -> bytes:
    """Return an archive of the files, stored as PyTorch stores them."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return written.getvalue()


def changed(members: Members) -> Iterator[tuple[str, Members]]:
    """Give the files with each change of each part that is read as a pickle or as msgpack."""
    for name, content in members.items():
        if name.endswith(".msgpack"):
            for what, change in MSGPACK.items():
                yield f"{name}: {what}", {**members, name: change(content)}
        for what, change in CHANGES.items():
            if name.endswith(".pkl"):
                yield f"{name}: {what}", {**members, name: change(content)}
            elif name == "policy.pth":
                inner = members_of(content)
                part = next(path for path in inner if path.endswith("/data.pkl"))
                inner[part] = change(inner[part])
                yield f"{name}: {what}", {**members, name: zipped(inner)}
            elif name == "data":
                yield from _changed_settings(what, change, members)


def _changed_settings(what: str, change: Change, members: Members) -> Iterator[tuple[str, Members]]:
    settings = json.loads(members["data"])
    for key, value in settings.items():
        if isinstance(value, dict) and ":serialized:" in value:
            pickled = change(base64.b64decode(value[":serialized:"]))
            part = {**value, ":serialized:": base64.b64encode(pickled).decode()}
            data = json.dumps({**settings, key: part}).encode()
            yield f"data, {key}: {what}", {**members, "data": data}


@pytest.mark.parametrize(
    ("name", "archive", "parts"),
    [
        (
            "sb3_ppo_vecnorm",
            "policy.zip",
            {"policy.pth", "vec_normalize.pkl", "data, policy_class", "data, action_space"},
        ),
        (
            "rllib_ppo_meanstd",
            "checkpoint.zip",
            {
                "learner_group/learner/rl_module/default_policy/module_state.pkl",
                "learner_group/learner/rl_module/default_policy/class_and_ctor_args.pkl",
                "env_runner/env_to_module_connector/class_and_ctor_args.pkl",
                "env_runner/env_to_module_connector/MeanStdFilter/state.pkl",
                "env_runner/module_to_env_connector/class_and_ctor_args.pkl",
            },
        ),
        ("rllib_ppo_discrete", "module_msgpack.zip", {"module_state.msgpack"}),
        ("rllib_old", "ppo_filter.zip", {"policy_state.pkl"}),
    ],
)
def test_hostile_part_runs_nothing_and_is_refused_in_one_line(
    name: str, archive: str, parts: set[str], tmp_path: Path
) -> None:
    members = members_of((POLICIES / name / archive).read_bytes())
    statistics = POLICIES / name / "vec_normalize.pkl"
    if statistics.exists():
        members[statistics.name] = statistics.read_bytes()
    family = load_policy(put(members, tmp_path / "as it was")).signature.family
    refused: dict[str, str] = {}

    for number, (change, hostile) in enumerate(changed(members)):
        folder = put(hostile, tmp_path / str(number))
        with audited() as events:
            try:
                assert load_policy(folder).signature.family == family
            except ModelError as error:
                refused[change] = error.message
        # NumPy parses the head of an .npy as a literal, which runs nothing.
        beyond = [
            event
            for event in events
            if str(folder) not in event and not re.match(r"compile .*<unknown>$", event)
        ]
        assert beyond == [], change

    assert {part.rpartition(": ")[0] for part in refused} >= parts
    ran = {part for part in refused if part.endswith((": a call", ": an object", ": a bomb"))}
    assert {part.rpartition(": ")[0] for part in ran} >= parts
    for part, message in refused.items():
        assert "\n" not in message, part
        assert 10 < len(message) < 500, part
        if part.endswith(": a call"):
            assert "os.system" in message, part
