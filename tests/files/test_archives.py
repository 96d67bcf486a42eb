"""Zip files of strangers: what is unpacked, and what is refused in one line."""

from __future__ import annotations

import stat
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pytest

from policy_server.errors import ModelError
from policy_server.files.archives import ArchiveLimits, open_archive
from tests.support.zips import FILES, zip_of

BIG = 1 << 20


def unpack(path: Path, *, max_bytes: int = BIG, root: str = "") -> dict[str, bytes]:
    """Unpack all files below a folder of the zip, and return them."""
    target = path.parent / "target"
    with open_archive(path, ArchiveLimits(max_bytes, f"MOST={max_bytes}")) as archive:
        archive.extract(PurePosixPath(root), target, is_wanted=lambda _: True)
    return {
        item.relative_to(target).as_posix(): item.read_bytes()
        for item in target.rglob("*")
        if item.is_file()
    }


def assert_refused(path: Path, *says: str, max_bytes: int = BIG) -> None:
    """Hold that a zip is refused in one line, and that nothing was written outside the target."""
    with pytest.raises(ModelError) as caught:
        unpack(path, max_bytes=max_bytes)
    assert {item.name for item in path.parent.iterdir()} <= {path.name, "target"}
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < len(str(path)) + 300
    assert caught.value.message.startswith(str(path))
    for words in says:
        assert words in caught.value.message


def refusal_of(path: Path) -> str:
    """Return the one line that refuses a zip."""
    with pytest.raises(ModelError) as caught:
        unpack(path)
    assert "\n" not in caught.value.message
    return caught.value.message


def changed(path: Path, places: tuple[int, int], change: Callable[[int], int]) -> Path:
    """Change a number of the first member where it stands, in its own head and in the list."""
    content = bytearray(path.read_bytes())
    for signature, place in zip((b"PK\x03\x04", b"PK\x01\x02"), places, strict=True):
        at = content.index(signature) + place
        content[at : at + 2] = change(int.from_bytes(content[at : at + 2], "little")).to_bytes(
            2, "little"
        )
    path.write_bytes(content)
    return path


def test_files_below_a_folder_are_unpacked_where_they_are_wanted(tmp_path: Path) -> None:
    files = {"export/a": b"1", "export/sub/b": b"2", "export/sub/c": b"3", "exported/d": b"4"}
    path, target = zip_of(tmp_path / "a.zip", files), tmp_path / "target"

    with open_archive(path, ArchiveLimits(BIG, "")) as archive:
        paths = [str(item) for item in archive.paths]
        archive.extract(PurePosixPath("export"), target, is_wanted=lambda item: item.name != "b")

    assert paths == list(files)
    assert {item.name: item.read_bytes() for item in target.rglob("*") if item.is_file()} == {
        "a": b"1",
        "c": b"3",
    }


def test_notes_of_macos_are_left_out_even_where_they_are_odd(tmp_path: Path) -> None:
    notes = {"__MACOSX/a": b"x", "__MACOSX": b"x", "a/__MACOSX/._b": b"x"}

    assert unpack(zip_of(tmp_path / "a.zip", {**notes, "a/b": b"1"})) == {"a/b": b"1"}


def test_archive_without_compression_is_unpacked(tmp_path: Path) -> None:
    assert unpack(zip_of(tmp_path / "a.zip", method=0)) == FILES


@pytest.mark.parametrize(
    ("method", "shown"), [(zipfile.ZIP_BZIP2, "bzip2"), (zipfile.ZIP_LZMA, "LZMA")]
)
def test_compression_that_may_fill_the_memory_is_refused(
    tmp_path: Path, method: int, shown: str
) -> None:
    path = zip_of(tmp_path / "a.zip", method=method)

    assert_refused(
        path,
        f": the member 'saved_model.pb' is compressed by {shown}; expected Deflate or no "
        "compression: zip the exported folder again",
    )


@pytest.mark.parametrize(("method", "shown"), [(93, "Zstandard"), (77, "the method 77")])
def test_compression_that_python_lacks_is_refused(tmp_path: Path, method: int, shown: str) -> None:
    path = changed(zip_of(tmp_path / "a.zip"), (8, 10), lambda _: method)

    assert_refused(path, f"is compressed by {shown}; expected Deflate or no compression")


def test_backslashes_of_windows_tools_are_folders(tmp_path: Path) -> None:
    files = {f"export\\{name}".replace("/", "\\"): content for name, content in FILES.items()}

    path = zip_of(tmp_path / "a.zip", {"export\\": b"", **files})

    assert unpack(path, root="export") == FILES


@pytest.mark.parametrize(
    "name",
    ["../evil", "a/../../evil", "/evil", "\\evil", "..\\evil", "C:/evil", "C:\\evil", "a/.."],
)
def test_member_that_climbs_out_is_refused(tmp_path: Path, name: str) -> None:
    path = zip_of(tmp_path / "a.zip", {**FILES, name: b"x"})

    assert_refused(path, "climbs out of the folder; refused")


@pytest.mark.parametrize("name", ["", ".", "./.", ".\\."])
def test_file_without_a_name_is_refused(tmp_path: Path, name: str) -> None:
    path = zip_of(tmp_path / "a.zip", {name: b"x"})

    assert_refused(path, "has no name; refused")


def test_folder_that_is_the_archives_own_is_no_file(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "a.zip", {"./": b"", **FILES})

    assert unpack(path) == FILES


def test_member_with_a_hidden_tail_is_refused(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "a.zip", {**FILES, "variables/eviX": b"x"})
    path.write_bytes(path.read_bytes().replace(b"variables/eviX", b"variables/evi\0"))

    assert_refused(
        path, "the member 'variables/evi' has a name with a NUL character in it; refused"
    )


def test_link_is_refused(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "a.zip")
    link = zipfile.ZipInfo("variables/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc/passwd")

    assert_refused(path, "the member 'variables/link' is a link; refused")


def test_archive_that_states_to_be_too_large_is_refused(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "a.zip", {**FILES, "variables/zeros": bytes(BIG)})

    assert_refused(path, "unpacks to 1049", "more than MOST=1048576")


def test_archive_that_lies_about_its_size_is_refused(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "a.zip", {**FILES, "variables/zeros": bytes(BIG)})
    path.write_bytes(path.read_bytes().replace(struct.pack("<L", BIG), struct.pack("<L", 10)))

    assert_refused(path, "is damaged")


def test_limit_holds_for_all_files_together(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "a.zip")
    total = sum(map(len, FILES.values()))

    assert_refused(path, "unpacks to", max_bytes=total - 1)
    assert unpack(path, max_bytes=total) == FILES


@pytest.mark.parametrize(
    "files",
    [
        [f"{index}" for index in range(9_901)],
        [f"{index}/f" for index in range(4_951)],
        [f"{index}/" + "a/" * 63 + "f" for index in range(160)],
        [*(f"{index}/" for index in range(9_900)), "f"],
    ],
    ids=["files", "a folder each", "deep folders", "empty folders"],
)
def test_archive_of_very_many_files_and_folders_is_refused(
    tmp_path: Path, files: list[str]
) -> None:
    path = zip_of(tmp_path / "a.zip", dict.fromkeys(files, b""), method=0)

    assert_refused(path, "holds more than 9900 files and folders; a policy has a few: zip the ")
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("name", ["a/" * 65 + "f", "a/" * 66, "a\\" * 65 + "f"])
def test_member_below_more_folders_than_anybody_has_is_refused(tmp_path: Path, name: str) -> None:
    path = zip_of(tmp_path / "a.zip", {**FILES, name: b""})

    assert_refused(path, "lies 65 folders deep; expected at most 64")


def test_archive_of_as_many_files_and_folders_as_may_be_is_unpacked(tmp_path: Path) -> None:
    deep = "a/" * 64
    files = {**FILES, f"{deep}f": b"", **{f"{deep}{index}/": b"" for index in range(9_900 - 69)}}
    notes = {"__MACOSX/" + "a/" * 60 + f"{index}/f": b"" for index in range(60)}

    assert unpack(zip_of(tmp_path / "a.zip", files, method=0)) == {**FILES, f"{deep}f": b""}
    assert unpack(zip_of(tmp_path / "b.zip", {**FILES, **notes}))["saved_model.pb"] == b"graph"


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        (1, "is encrypted; zip the exported folder again, without a password"),
        (0x40, "is encrypted; zip the exported folder again, without a password"),
        (0x20, "is a patch of another file; zip the exported folder again"),
    ],
    ids=["password", "strong", "patch"],
)
def test_member_that_is_no_plain_file_is_refused(tmp_path: Path, flag: int, says: str) -> None:
    path = changed(zip_of(tmp_path / "a.zip"), (6, 8), lambda flags: flags | flag)

    assert refusal_of(path) == f"{path}: the member 'saved_model.pb' {says}"


def test_archive_of_a_later_version_is_refused_without_a_wrong_remedy(tmp_path: Path) -> None:
    path = changed(zip_of(tmp_path / "a.zip"), (4, 6), lambda _: 255)

    assert refusal_of(path) == (
        f"{path}: can't be unpacked: zip file version 25.5; zip the exported folder again"
    )


def test_member_that_ends_too_early_is_refused_with_its_reason(tmp_path: Path) -> None:
    """The length of what lies between the member's name and its bytes leads beyond the file."""
    path = zip_of(tmp_path / "a.zip")
    content = bytearray(path.read_bytes())
    content[28:30] = b"\xff\xff"
    path.write_bytes(content)

    assert refusal_of(path) == (
        f"{path}: is damaged: a member ends too early; zip the exported folder again"
    )


@pytest.mark.parametrize("names", [["variables", "variables/index"], ["variables", "variables/"]])
def test_member_that_is_file_and_folder_is_refused(tmp_path: Path, names: list[str]) -> None:
    for order in (names, names[::-1]):
        files = {"saved_model.pb": b"graph", **dict.fromkeys(order, b"")}

        assert_refused(
            zip_of(tmp_path / "a.zip", files),
            "the member 'variables' is both a file and a folder; zip the exported folder again",
        )


@pytest.mark.parametrize("second", ["saved_model.pb", "./saved_model.pb"])
def test_policy_that_is_there_twice_is_refused(tmp_path: Path, second: str) -> None:
    path = zip_of(tmp_path / "a.zip", {**FILES, "second": b"another graph"})
    with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings(action="ignore"):
        archive.writestr(second, b"another graph")

    assert_refused(path, f"the member {second!r} is there twice; zip the exported folder again")


@pytest.mark.parametrize(
    ("name", "size"),
    [("a" * 5000, 5000), ("a/" * 2500 + "b", 5001), ("é" * 128, 256)],
    ids=["a name", "a path", "bytes"],
)
def test_name_that_no_file_system_takes_is_refused(tmp_path: Path, name: str, size: int) -> None:
    path = zip_of(tmp_path / "a.zip", {**FILES, name: b"x"})

    assert_refused(
        path,
        f"the member '{name[:60]}...' has a name of {size} bytes; expected at most 1024, and 255 "
        "between two slashes",
    )


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "a.zip", method=0)
    path.write_bytes(path.read_bytes().replace(b"weights", b"weighty", 1))

    assert_refused(path, "is damaged", "zip the exported folder again")
