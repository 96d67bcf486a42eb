"""A compiled policy on disk: read back whole, or not at all."""

from __future__ import annotations

import io
import zipfile
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest

from policy_server.engine import cache
from policy_server.engine.cache import (
    Outcome,
    decode,
    digest_of,
    encode,
    read_outcome,
    write_outcome,
)
from policy_server.engine.network import CompiledPolicy, NetworkPolicy, Step
from policy_server.policy import ObservationPart, SignatureTensor
from policy_server.schema import ActionField, ObservationField, ServerSchema
from tests.support.compiled import COMPILED
from tests.support.fakes import components_of, signature_of


def test_policy_is_read_back_as_it_was(tmp_path: Path) -> None:
    write_outcome(tmp_path, encode(Outcome(COMPILED), "digest"))

    outcome = read_outcome(tmp_path, "digest")

    assert outcome is not None
    found = outcome.compiled
    assert found is not None
    assert found.signature == COMPILED.signature
    assert found.network.steps == COMPILED.network.steps
    rows = np.array([[1.0, 2.0]], np.float32)
    assert found.network.compile()(rows).tolist() == [[1.0, 2.0]]
    assert NetworkPolicy(found).compiled is found
    assert [path.name for path in tmp_path.iterdir()] == [".compiled-policy.npz"]


def test_network_that_takes_one_observation_at_a_time_is_read_back() -> None:
    network = replace(COMPILED.network, is_row_by_row=True)

    outcome = decode(encode(Outcome(replace(COMPILED, network=network)), "digest"), "digest")

    assert outcome is not None
    assert outcome.compiled is not None
    assert outcome.compiled.network.is_row_by_row
    rows = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
    assert outcome.compiled.network.compile()(rows).tolist() == rows.tolist()


def test_attributes_of_operations_are_read_back_as_they_were() -> None:
    steps = (
        Step("ExpandDims", (0, 1), 2),
        Step("Squeeze", (2,), 3, (("squeeze_dims", (1,)),)),
    )
    network = replace(
        COMPILED.network, constants={1: np.array(1)}, steps=steps, result=3, registers=4
    )

    outcome = decode(encode(Outcome(replace(COMPILED, network=network)), "digest"), "digest")

    assert outcome is not None
    assert outcome.compiled is not None
    assert outcome.compiled.network.steps == steps
    rows = np.array([[1.0, 2.0]], np.float32)
    assert outcome.compiled.network.compile()(rows).tolist() == rows.tolist()


def test_what_the_graph_clips_and_adds_is_read_back() -> None:
    part = replace(
        components_of(("normal", 2))[0],
        log_std_bounds=(None, 2.0),
        mean_bounds=(-1.0, None),
        std_floor=0.1,
    )
    compiled = replace(COMPILED, signature=signature_of((part,)))

    outcome = decode(encode(Outcome(compiled), "digest"), "digest")

    assert outcome is not None
    assert outcome.compiled is not None
    assert outcome.compiled.signature.components == (part,)


def test_policy_of_other_files_is_not_used(tmp_path: Path) -> None:
    write_outcome(tmp_path, encode(Outcome(COMPILED), "digest"))

    assert read_outcome(tmp_path, "other") is None


def test_without_a_file_there_is_none(tmp_path: Path) -> None:
    assert read_outcome(tmp_path, "digest") is None


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no zip", b"\x93NUMPY"], ids=str)
def test_damaged_file_is_passed_over(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ".compiled-policy.npz").write_bytes(content)

    assert read_outcome(tmp_path, "digest") is None


def archive(**members: bytes) -> bytes:
    """Return an archive of arrays; each member is what the array's file has."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as written:
        for name, content in members.items():
            written.writestr(f"{name}.npy", content)
    return buffer.getvalue()


def array(value: object) -> bytes:
    """Return an array in npy format."""
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(value))
    return buffer.getvalue()


def header(text: str) -> bytes:
    """Return the header of an array in npy format."""
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    "members",
    [
        {"digest": header("{'descr': '<f4', '")},
        {"digest": header("{'descr': ('<f4',), 'fortran_order': False, 'shape': ()}")},
        {"digest": array("digest"), "document": array("[1]")},
        {"digest": array("digest"), "document": array('{"signature": 1}')},
        {"digest": array("digest"), "document": array("[" * 100_000)},
    ],
    ids=["open quotes", "a text as type", "a list", "no signature", "lists in lists"],
)
def test_file_with_a_damaged_member_is_passed_over(
    tmp_path: Path, members: dict[str, bytes]
) -> None:
    (tmp_path / ".compiled-policy.npz").write_bytes(archive(**members))

    assert read_outcome(tmp_path, "digest") is None


def test_file_of_another_make_is_passed_over(tmp_path: Path) -> None:
    np.savez(tmp_path / ".compiled-policy.npz", digest="digest", document='{"steps": 3}')

    assert read_outcome(tmp_path, "digest") is None


def test_folder_that_can_not_be_written_is_no_error(tmp_path: Path) -> None:
    write_outcome(tmp_path / "missing", encode(Outcome(COMPILED), "digest"))

    assert not list(tmp_path.iterdir())


def test_that_tensorflow_is_needed_is_kept_too(tmp_path: Path) -> None:
    write_outcome(tmp_path, encode(Outcome(None), "digest"))

    assert read_outcome(tmp_path, "digest") == Outcome(None)
    assert read_outcome(tmp_path, "other") is None


def test_damaged_bytes_are_one_kind_of_error() -> None:
    content = encode(Outcome(COMPILED), "digest")

    for damaged in (b"", content[:100], content[: len(content) // 2]):
        with pytest.raises(ValueError, match=r".*"):
            decode(damaged, "digest")


@pytest.mark.parametrize(
    ("model", "schema"),
    [("1", ServerSchema()), ("0", ServerSchema(discrete=True))],
    ids=["model", "schema"],
)
def test_digest_tells_what_the_policy_was_made_of(model: str, schema: ServerSchema) -> None:
    known = digest_of("0", ServerSchema())

    assert digest_of("0", ServerSchema()) == known
    assert digest_of(model, schema) != known


def test_outcome_of_other_fields_belongs_to_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest_of("model", ServerSchema())

    monkeypatch.setattr("policy_server.engine.cache._KEPT", (Step,))

    assert digest_of("model", ServerSchema()) != before


def test_fields_of_every_type_in_the_file_count() -> None:
    found = parts_of(CompiledPolicy) - {CompiledPolicy}

    assert {SignatureTensor, ObservationPart} < found
    assert found == set(cache._KEPT)  # noqa: SLF001 -- the list that the test holds


def parts_of(kind: type) -> set[type]:
    """Return a dataclass with all dataclasses that its fields may hold, and theirs."""
    found: set[type] = set()
    waiting: list[object] = [kind]
    while waiting:
        item = waiting.pop()
        waiting += get_args(item)
        if isinstance(item, type) and is_dataclass(item) and item not in found:
            found.add(item)
            waiting += get_type_hints(item).values()
    return found


def test_digest_does_not_depend_on_the_access_key_or_on_words_for_people() -> None:
    schema = ServerSchema(
        observations=(ObservationField("speed", "float", description="in m/s"),),
        actions=(ActionField("turn", description="left or right", choices=2),),
        api_key="first",
        url_path="app/v1",
    )
    rotated = replace(schema, api_key="second", url_path="")
    reworded = replace(
        schema,
        observations=(ObservationField("speed", "float"),),
        actions=(ActionField("turn", choices=2),),
    )
    renamed = replace(schema, actions=(ActionField("steer", choices=2),))

    digests = [digest_of("model", item) for item in (schema, rotated, reworded, renamed)]

    assert digests[0] == digests[1] == digests[2] != digests[3]
