"""Real policies with one setting of another value: loaded, or refused in one line."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from policy_server.errors import ModelError
from policy_server.formats import load_policy
from tests.support.changed_pickles import changed_pickle, places_of
from tests.support.library_policies import POLICIES
from tests.support.zips import members_of, put

Members = dict[str, bytes]

VALUES: list[Any] = [None, 5, "x", [], {}, float("nan"), -1, 1e9, [[1, 2], [3]]]
CASES = 40
SOURCES = [
    ("sb3_ppo_box", "policy.zip"),
    ("sb3_ppo_gsde", "policy.zip"),
    ("sb3_ppo_vecnorm", "policy.zip"),
    ("sb3_ppo_dict_order", "policy.zip"),
    ("sb3_recurrent_ppo", "policy.zip"),
    ("sb3_crossq", "policy.zip"),
    ("rllib_ppo_meanstd", "checkpoint.zip"),
    ("rllib_ppo_discrete", "module_msgpack.zip"),
    ("rllib_ppo_lstm", "checkpoint.zip"),
    ("rllib_old", "ppo_filter.zip"),
]
# The members of `data` that are read.
_READ = (
    *("policy_class", "policy_kwargs", "use_sde", "observation_space", "action_space"),
    *("_last_obs", "_last_original_obs"),
)


def pickles_of(members: Members) -> Iterator[tuple[str, str | None, bytes]]:
    """Give the pickles of a policy: the member, its key in `data` or None, and the pickle."""
    for name, content in members.items():
        if name.endswith(".pkl"):
            yield name, None, content
        elif name == "data":
            data = json.loads(content)
            for key in _READ:
                part = data.get(key)
                if isinstance(part, dict) and ":serialized:" in part:
                    yield name, key, base64.b64decode(part[":serialized:"])


def with_pickle(members: Members, name: str, key: str | None, content: bytes) -> Members:
    """Return a policy with another pickle."""
    if key is None:
        return {**members, name: content}
    data = json.loads(members[name])
    data[key][":serialized:"] = base64.b64encode(content).decode()
    return {**members, name: json.dumps(data).encode()}


def changed(members: Members, choose: random.Random) -> tuple[str, Members]:
    """Return a policy with one value changed, and where."""
    packed = [name for name in members if name.endswith(".msgpack")]
    if packed and choose.random() < 0.5:
        name, value = choose.choice(packed), choose.choice(VALUES)
        state = msgpack.unpackb(members[name], strict_map_key=False)
        key = choose.choice(list(state))
        state[key] = value
        return f"{name}: {key}: {value!r}", {**members, name: msgpack.packb(state)}
    if "data" in members and choose.random() < 0.2:
        key, value = choose.choice(_READ), choose.choice(VALUES)
        data = json.dumps({**json.loads(members["data"]), key: value}).encode()
        return f"data: {key}: {value!r}", {**members, "data": data}
    name, own, content = choose.choice(list(pickles_of(members)))
    where = ""

    def change(found: object) -> None:
        nonlocal where
        places = list(places_of(found))
        if places:
            holder, key = choose.choice(places)
            holder[key] = choose.choice(VALUES)
            where = f"{key}: {holder[key]!r}"

    other = with_pickle(members, name, own, changed_pickle(content, change))
    return f"{name}: {own}: {where}", other


@pytest.mark.parametrize(("name", "archive"), SOURCES, ids=[name for name, _ in SOURCES])
def test_changed_setting_is_read_or_refused_in_one_line(
    tmp_path: Path, name: str, archive: str
) -> None:
    members = members_of((POLICIES / name / archive).read_bytes())
    statistics = POLICIES / name / "vec_normalize.pkl"
    if statistics.exists():
        members[statistics.name] = statistics.read_bytes()
    choose = random.Random(name)  # noqa: S311 -- reproducible files, no secret

    refused = 0
    for number in range(CASES):
        where, own = changed(members, choose)
        line = refusal_of(put(own, tmp_path / str(number)), where)
        assert "\n" not in line, where
        refused += bool(line)

    assert refused, "the changes are in what is read"


def refusal_of(folder: Path, where: str) -> str:
    """Return the line that refuses a policy; empty where it is loaded."""
    try:
        load_policy(folder)
    except ModelError as error:
        return error.message
    except Exception as error:
        raise AssertionError(where) from error
    return ""
