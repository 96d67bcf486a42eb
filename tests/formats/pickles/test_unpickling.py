"""Reading pickles as data: what they name never runs."""

from __future__ import annotations

import os
import pickle
import re
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from policy_server.errors import ModelError
from policy_server.formats.pickles.unpickling import Stub, unpickle

LIBRARY = re.compile(r"fractions\.Fraction|pathlib\..+")
NOTHING = re.compile(r"(?!)")


class _Calls:
    def __init__(self, function: object, *arguments: object) -> None:
        self._made = (function, arguments)

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self._made


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_and_plain_values_are_read_as_they_were_written(protocol: int) -> None:
    written = OrderedDict(
        weights=np.arange(6, dtype=np.float32).reshape(2, 3),
        other=np.arange(3, dtype=">i8"),
        turned=np.arange(24.0).reshape(2, 3, 4).transpose(2, 0, 1),
        column_major=np.asfortranarray(np.arange(6).reshape(2, 3)),
        number=np.float64(2.5),
        plain=[1, "a", None, {"b": (True, 2.0)}],
    )

    read = unpickle(pickle.dumps(written, protocol), "x.pkl", library=NOTHING)

    assert list(read) == list(written)
    np.testing.assert_array_equal(read["weights"], written["weights"])
    assert read["weights"].dtype == np.float32
    for name in ("other", "turned", "column_major"):
        np.testing.assert_array_equal(read[name], written[name])
    assert read["number"] == 2.5
    assert read["plain"] == written["plain"]


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_object_of_the_library_becomes_a_stub(protocol: int) -> None:
    read = unpickle(pickle.dumps(Path("a") / "b", protocol), "x.pkl", library=LIBRARY)

    assert isinstance(read, Stub)
    assert read.path.startswith("pathlib.")
    assert read.arguments == ("a", "b")


def test_hostile_pickle_is_refused_by_name_and_runs_nothing(tmp_path: Path) -> None:
    target = tmp_path / "ran"
    hostile = [
        _Calls(os.system, f"touch {target}"),
        {"nested": [(_Calls(os.mkdir, str(target)),)]},
        _Calls(eval, f"open({str(target)!r}, 'w')"),
    ]

    for content in hostile:
        with pytest.raises(ModelError, match=r"^x\.pkl: names (posix|builtins)\.\w+, a class"):
            unpickle(pickle.dumps(content), "x.pkl", library=LIBRARY)

    assert not target.exists()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(pickle.dumps(list(range(50)))[:-9], id="truncated"),
        pytest.param(b"", id="empty"),
        pytest.param(b"not a pickle", id="text"),
        pytest.param(b"\x80\x04\x8e" + (2**40).to_bytes(8, "little") + b".", id="huge bytes"),
        pytest.param(
            b"cnumpy\nndarray\n(I9999999999\ntR.",
            id="huge array",
        ),
        pytest.param(
            b"cnumpy._core.multiarray\n_reconstruct\n(cbuiltins\nlist\n(I99\ntS'f8'\ntR.",
            id="array of another class",
        ),
        pytest.param(pickle.dumps(np.array([object], object)), id="array of objects"),
        pytest.param(b"Pname\n.", id="persistent id"),
        pytest.param(b"\x80\x02\x82\x01.", id="extension"),
        pytest.param(b"(" + b"N" * 1_000_001 + b"t.", id="too many operations"),
    ],
)
def test_damaged_or_hostile_pickle_is_refused_in_one_line(content: bytes) -> None:
    with pytest.raises(ModelError, match=r"^x\.pkl: (is no pickle that|names )[^\n]+$"):
        unpickle(content, "x.pkl", library=NOTHING)
