"""The HDF5 file of a Keras file: what is read of it, and what is not."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from policy_server.errors import MissingPackageError, ModelError, NotReadyError
from policy_server.formats.keras import stored_weights
from policy_server.formats.keras.stored_weights import read_weights
from tests.support.keras_weights import weights_in_a_ring

Untyped = Any  # h5py has no types
PLACE = "layers/dense/vars"


def written(folder: Path, fill: Untyped) -> Path:
    path = folder / "model.weights.h5"
    with h5py.File(path, "w") as file:
        fill(file)
    return path


def test_arrays_and_names_are_read_by_their_paths(tmp_path: Path) -> None:
    def fill(file: Untyped) -> None:
        group = file.create_group(PLACE)
        group.attrs["name"] = "first"
        group["0"], group["1"] = np.ones((2, 3), "f4"), np.zeros(3, "f4")

    weights = read_weights(written(tmp_path, fill))

    assert [array.shape for array in weights.of("layers/dense")] == [(2, 3), (3,)]
    assert weights.name_of("layers/dense") == "first"
    assert weights.of("layers/dense_1") == []


@pytest.mark.parametrize("link", [h5py.ExternalLink("/etc/passwd", "/a"), h5py.SoftLink("/other")])
def test_links_are_not_followed(link: Untyped, tmp_path: Path) -> None:
    def fill(file: Untyped) -> None:
        file["other"] = np.ones(3)
        file.create_group(PLACE)["0"] = link

    assert read_weights(written(tmp_path, fill)).of("layers/dense") == []


def external(file: Untyped) -> None:
    (Path(file.filename).parent / "raw").write_bytes(bytes(12))
    name = str(Path(file.filename).parent / "raw")
    file.create_dataset(f"{PLACE}/0", (3,), "f4", external=[(name, 0, 12)])


def virtual(file: Untyped) -> None:
    layout = h5py.VirtualLayout(shape=(3,), dtype="f4")
    file.create_virtual_dataset(f"{PLACE}/0", layout)


@pytest.mark.parametrize(
    ("fill", "words"),
    [
        (external, "is not stored as plain numbers"),
        (virtual, "is not stored as plain numbers"),
        (
            lambda file: file.create_dataset(f"{PLACE}/0", (10**12,), "f4", chunks=(10**6,)),
            "is not stored as plain numbers",
        ),
        (
            lambda file: file.create_dataset(
                f"{PLACE}/0", data=np.zeros(10**6), compression="gzip"
            ),
            "is not stored as plain numbers",
        ),
        (lambda file: file.create_dataset(f"{PLACE}/0", data="text"), "is not stored as plain"),
        (lambda file: file.create_dataset(f"{PLACE}/0", data=[np.nan]), "holds NaN or infinity"),
    ],
    ids=["external", "virtual", "endless", "compressed", "text", "nan"],
)
def test_arrays_that_are_not_whole_numbers_of_the_file_are_refused(
    fill: Untyped, words: str, tmp_path: Path
) -> None:
    path = written(tmp_path, fill)

    with pytest.raises(ModelError, match=words):
        read_weights(path)


def test_group_that_holds_itself_is_read_once(tmp_path: Path) -> None:
    def fill(file: Untyped) -> None:
        group = file.create_group(PLACE)
        group["again"] = group
        group["0"] = np.ones(2)

    assert len(read_weights(written(tmp_path, fill)).of("layers/dense")) == 1


@pytest.mark.parametrize("content", [b"", b"\x89HDF\r\n\x1a\n" + bytes(90), b"no weights"])
def test_damaged_file_is_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.weights.h5"
    path.write_bytes(content)

    with pytest.raises(ModelError, match=r"model\.weights\.h5: can't be read as what Keras's"):
        read_weights(path)


def in_deep_groups(folder: Path) -> Path:
    return written(folder, lambda file: file.create_group("/".join("a" * 3000)))


@pytest.mark.parametrize("damage", [weights_in_a_ring, in_deep_groups])
def test_file_that_is_never_read_to_its_end_is_refused(
    damage: Untyped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_weights, "_LEAST_SECONDS", 1)
    path = damage(tmp_path)

    with pytest.raises(
        ModelError, match=r"^model\.weights\.h5: is damaged: reading it takes more than \d+ s of"
    ):
        read_weights(path)


def test_weights_of_many_layers_are_read(tmp_path: Path) -> None:
    def fill(file: Untyped) -> None:
        for number in range(1000):
            file.create_group(f"layers/dense_{number}/vars")["0"] = np.full((1, 2), number, "f4")

    weights = read_weights(written(tmp_path, fill))

    assert weights.of("layers/dense_999")[0].tolist() == [[999, 999]]


def test_arrays_keep_type_shape_and_order(tmp_path: Path) -> None:
    stated = [np.zeros((0, 2)), np.array(3, "i8"), np.ones((2, 1, 3), ">f2"), np.ones((2, 2)).T]

    def fill(file: Untyped) -> None:
        group = file.create_group(PLACE)
        for number, array in enumerate(stated):
            group[str(number)] = array

    found = read_weights(written(tmp_path, fill)).of("layers/dense")

    assert [(a.dtype, a.shape, a.tolist()) for a in found] == [
        (a.dtype, a.shape, a.tolist()) for a in stated
    ]


@pytest.mark.parametrize(
    ("script", "error", "words"),
    [
        (
            "kill -SEGV $$",
            ModelError,
            r"^model\.weights\.h5: is damaged: HDF5's .* by SIGSEGV; save ",
        ),
        ("printf '{'; kill -SEGV $$", ModelError, "by SIGSEGV"),
        (
            """echo '{"array": "0", "dtype": "<f4", "shape": [9]}'; kill -ABRT $$""",
            ModelError,
            "by SIGABRT",
        ),
        ("exit 12", MemoryError, "^$"),
        ("kill -KILL $$", MemoryError, "^$"),
        ("exit 1", RuntimeError, "ended with status 1"),
    ],
    ids=["crash", "within a line", "within an array", "no memory", "killed", "unexpected"],
)
def test_end_of_the_process_that_reads_has_its_reason(
    script: str,
    error: type[Exception],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = written(tmp_path, lambda file: file.create_group(PLACE))
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))

    with pytest.raises(error, match=words):
        read_weights(path)


def test_process_that_can_not_be_started_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, lambda file: file.create_group(PLACE))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "missing"))

    with pytest.raises(NotReadyError, match="can't be started: No such file or directory; it is "):
        read_weights(path)


def test_missing_h5py_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, lambda file: file.create_group(PLACE))
    monkeypatch.setitem(sys.modules, "h5py", None)

    with pytest.raises(MissingPackageError, match="needs h5py, which is not installed"):
        read_weights(path)
