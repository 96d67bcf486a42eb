"""Hostile pickles: nothing runs, memory and time are bounded, and each is one clear line."""

from __future__ import annotations

import json
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy_server.errors import ModelError
from policy_server.formats.pickles.makers import MAKERS
from policy_server.formats.pickles.spaces import SPACE_NAMES
from policy_server.formats.pickles.unpickling import unpickle
from tests.support.audit import audited
from tests.support.folders import ROOT
from tests.support.hostile import ATTACKS, HARMLESS

LIBRARY = re.compile(SPACE_NAMES)
# Reads each bomb in turn, with a gibibyte and half a minute for all of them together.
READ_BOMBS = """
import json, re, resource, sys
from policy_server.errors import ModelError
from policy_server.formats.pickles.spaces import SPACE_NAMES
from policy_server.formats.pickles.unpickling import unpickle
from tests.support.hostile import BOMBS
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
resource.setrlimit(resource.RLIMIT_CPU, (30, 30))
for name, content in BOMBS.items():
    print(json.dumps(name), end=" ", flush=True)
    try:
        read = unpickle(content, "x.pkl", library=re.compile(SPACE_NAMES))
    except ModelError as error:
        print(json.dumps(error.message), flush=True)
    else:
        print(json.dumps(f"read: a {type(read).__name__}"), flush=True)
"""
REAL = pickle.dumps(
    {
        "weights": np.arange(6, dtype=np.float32).reshape(2, 3),
        "plain": [1, 2.5, "a", b"b", None, True, (1, 2), {3}],
        "turned": np.arange(6.0).reshape(2, 3).T,
    },
    5,
)


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_runs_nothing_and_is_refused_in_one_line(name: str) -> None:
    with audited() as events:
        for content in ATTACKS[name]:
            with pytest.raises(ModelError, match=r"^x\.pkl: (names|is no pickle)[^\n]+$"):
                unpickle(content, "x.pkl", library=LIBRARY)

    assert events == []


@pytest.mark.parametrize("name", HARMLESS)
def test_call_that_is_no_part_of_the_pickle_is_data(name: str) -> None:
    with audited() as events:
        unpickle(HARMLESS[name], "x.pkl", library=LIBRARY)

    assert events == []


def test_what_a_pickle_may_name_stays_as_it_is() -> None:
    before = {path: maker.make for path, maker in MAKERS.items()}
    for path in MAKERS:
        module, _, name = path.rpartition(".")
        for state in (b"}X\x04\x00\x00\x00makeNs", b"N}X\x04\x00\x00\x00makeNs\x86", b"N"):
            content = b"\x80\x02c" + f"{module}\n{name}\n".encode() + state + b"b."
            with pytest.raises(ModelError, match="sets attributes of"):
                unpickle(content, "x.pkl", library=LIBRARY)

    assert {path: maker.make for path, maker in MAKERS.items()} == before


def test_bombs_take_neither_memory_nor_time() -> None:
    done = subprocess.run(
        [sys.executable, "-c", READ_BOMBS], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-500:]
    answers = dict(re.findall(r'^("[^"]+") (".*")$', done.stdout, re.M))
    refused = re.compile(r"x\.pkl: is no pickle that can be read: [^\n]{5,220}")
    wrong = {
        name: said
        for name, said in ((json.loads(key), json.loads(text)) for key, text in answers.items())
        if not refused.fullmatch(said)
    }
    assert len(answers) > 30
    assert wrong == {}


def test_real_pickle_that_is_cut_anywhere_is_refused() -> None:
    for length in range(len(REAL)):
        with pytest.raises(ModelError):
            unpickle(REAL[:length], "x.pkl", library=LIBRARY)


@given(st.data())
def test_changed_bytes_run_nothing(data: st.DataObject) -> None:
    content = bytearray(REAL)
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))

    _read_audited(bytes(content))


@given(st.binary(max_size=200))
def test_random_bytes_run_nothing(content: bytes) -> None:
    _read_audited(b"\x80\x05" + content)


@given(st.lists(st.sampled_from([*b"()0123NKuseatlodRbcq}]\x85\x86\x87\x90\x91\x92\x93\x94\x81"])))
def test_random_operations_run_nothing(operations: list[int]) -> None:
    head = b"\x80\x04cnumpy\nndarray\ncnumpy\ndtype\ncgymnasium.spaces.x\nBox\ncbuiltins\nlist\n"

    _read_audited(head + bytes(operations) + b".")


def _read_audited(content: bytes) -> None:
    with audited() as events:
        try:
            unpickle(content, "x.pkl", library=LIBRARY)
        except ModelError as error:
            assert "\n" not in error.message  # noqa: PT017 -- some are read
    assert events == []
