"""Folders by their addresses: what is fetched, pinned, known again and refused."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Protocol

import pytest

from policy_server.errors import ModelError
from policy_server.formats import load_policy
from policy_server.formats.model_files import digest_of_files, files_of_model
from policy_server.remote_files import bring_files, fetch_files
from policy_server.remote_files.listing import list_folder
from policy_server.settings import Settings
from tests.support.folders import ROOT
from tests.support.library_policies import POLICIES
from tests.support.stores import (
    BUCKET,
    Reply,
    S3Client,
    WebServer,
    assert_refused,
    contents,
    fetch,
    pass_any,
    put_old,
    uri,
)

FILES = {
    "saved_model.pb": b"new",
    "variables/variables.index": b"index",
    "assets/a b+c%20é.txt": b"odd",
}
OTHERS = {"events.out.tfevents.1": b"x", "variables/.hidden": b"x"}


class Store(Protocol):
    """Puts files into a folder of a store, and gives the folder's address."""

    def __call__(self, files: Mapping[str, bytes]) -> str: ...


@pytest.fixture(params=["s3", "gs", "file", "path"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """Each kind of store."""
    kind: str = request.param
    if kind == "gs":
        google: Callable[[str, bytes], None] = request.getfixturevalue("google")
        return partial(put_at_google, google)
    if kind == "s3":
        s3: S3Client = request.getfixturevalue("s3")
        return partial(put_at_s3, s3, f"{tmp_path.name}/run 7/")
    folder = tmp_path / "run 7"
    return partial(put_locally, folder, f"{folder.as_uri()}/" if kind == "file" else str(folder))


def put_locally(folder: Path, address: str, files: Mapping[str, bytes]) -> str:
    """Write the files to a folder of this machine."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return address


def put_at_google(google: Callable[[str, bytes], None], files: Mapping[str, bytes]) -> str:
    """Put the files at Google's."""
    for name, content in files.items():
        google(f"runs/run 7/{name}", content)
    return f"gs://{BUCKET}/runs/run 7/"


def put_at_s3(s3: S3Client, prefix: str, files: Mapping[str, bytes]) -> str:
    """Put the files beside a folder whose name begins alike, and an object for the folder."""
    s3.put_object(Bucket=BUCKET, Key=f"{prefix.removesuffix('/')}0/other", Body=b"x")
    s3.put_object(Bucket=BUCKET, Key=prefix, Body=b"")
    for name, content in files.items():
        s3.put_object(Bucket=BUCKET, Key=prefix + name, Body=content)
    return f"s3://{BUCKET}/{prefix}"


def unpacked(settings: Settings) -> dict[str, bytes]:
    """Return the files of models/."""
    return {name: path.read_bytes() for name, path in files_of_model(settings.models_path).items()}


def pin_of(files: Mapping[str, bytes], folder: Path) -> str:
    """Return the digest of the text that sha256sum prints."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    command = f"sha256sum -- {' '.join(map(repr, sorted(files, key=os.fsencode)))} | sha256sum"
    done = subprocess.run(
        ["sh", "-c", command], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout[:64]


def test_folder_is_fetched_whole_and_kept_as_a_zip(store: Store, settings: Settings) -> None:
    address = store({**FILES, **OTHERS})
    put_old(settings)

    assert fetch(settings, address) == ["fetched"]
    assert unpacked(settings) == FILES
    before = contents(settings.home)
    assert fetch(settings, address) == ["unchanged"]
    assert contents(settings.home) == before
    store({"saved_model.pb": b"newer"})
    assert fetch(settings, address) == ["fetched"]
    assert unpacked(settings) == {**FILES, "saved_model.pb": b"newer"}
    assert sorted(path.name for path in settings.home.iterdir()) == [
        *(".fetched.json", ".models.lock", "models", "saved_model.zip", "schema.yaml"),
    ]


def test_policy_below_the_folder_is_found(store: Store, settings: Settings) -> None:
    address = store({f"checkpoint_000010/{name}": content for name, content in FILES.items()})

    fetch(settings, address)

    assert unpacked(settings) == FILES


def test_file_and_the_one_beside_it_are_fetched_as_a_folder(
    store: Store, settings: Settings
) -> None:
    files = {
        name: (ROOT / "tests/data/policies/onnx_rsl_rl_lstm" / name).read_bytes()
        for name in ("policy.onnx", "policy.onnx.data")
    }

    assert fetch(settings, store(files)) == ["fetched"]

    assert unpacked(settings) == files


def test_zip_and_the_statistics_beside_it_are_fetched_as_a_folder(
    store: Store, settings: Settings
) -> None:
    policy = POLICIES / "sb3_ppo_vecnorm"
    names = ("policy.zip", "vec_normalize.pkl")
    address = store({name: (policy / name).read_bytes() for name in names})

    assert fetch(settings, address) == ["fetched"]

    assert {"policy.pth", "vec_normalize.pkl"} <= set(unpacked(settings))
    assert unpacked(settings)["vec_normalize.pkl"] == (policy / names[1]).read_bytes()
    assert load_policy(settings.models_path).signature.family == "categorical(2)"


def test_folder_is_pinned_by_what_sha256sum_prints(
    store: Store, settings: Settings, tmp_path: Path
) -> None:
    address = store({**FILES, **OTHERS})
    pin = pin_of(FILES, tmp_path / "copy")
    put_old(settings)

    assert_refused(
        settings, f"{address}#sha256={'0' * 64}", f"expected sha256 {'0' * 64}, got {pin}"
    )

    (file,) = fetch_files(
        settings, model=uri(f"{address}#sha256={pin}"), schema=None, check=pass_any
    )
    assert (file.sha256, file.size) == (pin, sum(map(len, FILES.values())))
    assert pin == digest_of_files(files_of_model(settings.models_path))


def test_pinned_folder_that_is_there_needs_no_store(
    store: Store, settings: Settings, tmp_path: Path
) -> None:
    address = store(FILES)
    pin = pin_of(FILES, tmp_path / "copy")
    fetch(settings, f"{address}#sha256={pin}")

    elsewhere = f"s3://no-such-bucket/run/#sha256={pin}"
    assert fetch(settings, elsewhere) == ["unchanged"]
    # A zip that was changed by hand is none of the pinned one's.
    settings.zip_path.write_bytes(settings.zip_path.read_bytes() + b"x")
    assert fetch(settings, f"{address}#sha256={pin}") == ["fetched"]


def test_folder_without_a_policy_changes_nothing(store: Store, settings: Settings) -> None:
    address = store({"class_and_ctor_args.pkl": b"x", "metadata.json": b"{}", "state.pkl": b"x"})
    put_old(settings)

    message = assert_refused(settings, address, "the folder of the optimizer", "whole checkpoint")

    assert message.startswith(f"{address}: ")


def test_folder_above_the_limit_is_refused_before_it_is_downloaded(
    store: Store, tmp_path: Path
) -> None:
    settings = Settings(home=tmp_path / "home", max_unpacked_bytes=1000)
    address = store({**FILES, "variables/big": bytes(2000)})

    size = sum(map(len, FILES.values())) + 2000
    assert_refused(settings, address, f"has {size} bytes", "MAX_UNPACKED_BYTES=1000 is the most")


def test_folder_without_files_is_one_line(s3: S3Client, settings: Settings) -> None:
    s3.put_object(Bucket=BUCKET, Key="empty/", Body=b"")

    for name in ("empty", "absent"):
        assert_refused(settings, f"s3://{BUCKET}/{name}/", f"{name}/: holds no files")


@pytest.mark.usefixtures("s3")
def test_folder_without_its_slash_is_told_how_to_end(settings: Settings) -> None:
    assert_refused(settings, f"s3://{BUCKET}/run", "that of a folder ends in /")


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["../evil"], "the file '../evil' climbs out of the folder"),
        (["a/../../evil"], "climbs out of the folder"),
        (["."], "the file '.' has no name; refused"),
        (["a//b"], "a name that can't be asked for"),
        (["./a"], "a name that can't be asked for"),
        (["a\\..\\b"], "a name that can't be asked for"),
        (["a\nb"], "a name that can't be asked for"),
        (["a?versionId=1"], "a name that can't be asked for"),
        (["x" * 300], "has a name of 300 bytes"),
        (["a", "a/b"], "the file 'a' is a folder too"),
    ],
)
def test_name_that_is_no_files_is_refused(
    google: Callable[[str, bytes], None], settings: Settings, names: list[str], says: str
) -> None:
    for name in ("saved_model.pb", *names):
        google(f"run/{name}", b"x")
    put_old(settings)

    assert_refused(settings, f"gs://{BUCKET}/run/", says)


def test_folder_with_too_many_files_is_refused(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("policy_server.formats.model_files._MOST_FILES", 2)
    for name in "abc":
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / name).touch()

    assert_refused(settings, f"{tmp_path}/run", "holds more than 2 files")


def test_prefix_with_too_many_files_that_are_no_models_is_refused(
    google: Callable[[str, bytes], None], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("policy_server.formats.model_files._MOST_FILES", 2)
    for name in ("saved_model.pb", "events.out.tfevents.1", "events.out.tfevents.2"):
        google(f"run/{name}", b"x")

    assert_refused(settings, f"gs://{BUCKET}/run/", "holds more than 2 files")


def test_prefix_with_too_many_folders_is_refused_before_they_are_made(
    google: Callable[[str, bytes], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("policy_server.formats.model_files._MOST_FILES", 4)
    for name in ("saved_model.pb", "a/b/c/d"):
        google(f"run/{name}", b"x")

    with pytest.raises(ModelError, match="holds more than 4 files"):
        list_folder(uri(f"gs://{BUCKET}/run/"), silence_s=60.0)


def test_folder_that_changes_meanwhile_is_not_mixed(
    google: Callable[[str, bytes], None], web: WebServer, settings: Settings
) -> None:
    google("run/saved_model.pb", b"old")
    (first,) = web.replies[f"/storage/v1/b/{BUCKET}/o"]
    google("run/saved_model.pb", b"new")
    (second,) = web.replies[f"/storage/v1/b/{BUCKET}/o"]
    web.answer(f"/storage/v1/b/{BUCKET}/o", first, second)
    put_old(settings)

    assert_refused(settings, f"gs://{BUCKET}/run/", "changed while it was fetched")

    assert fetch(settings, f"gs://{BUCKET}/run/") == ["fetched"]


@pytest.mark.parametrize(
    ("status", "says"),
    [(403, "access denied (403 Forbidden)"), (503, "answered 503 Service Unavailable; tried 4")],
)
@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_errors_of_a_listing_pass_or_last(
    web: WebServer,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    scheme: str,
    status: int,
    says: str,
) -> None:
    request.getfixturevalue("s3" if scheme == "s3" else "google")
    monkeypatch.setenv("AWS_ENDPOINT_URL", web.url)
    web.answer(f"/{BUCKET}", Reply(status=status))
    web.answer(f"/storage/v1/b/{BUCKET}/o", Reply(status=status))

    assert_refused(settings, f"{scheme}://{BUCKET}/run/", says)


def test_store_that_is_down_leaves_the_fetched_folder(
    google: Callable[[str, bytes], None],
    web: WebServer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name, content in FILES.items():
        google(f"run/{name}", content)
    settings = Settings.model_validate(
        {"home": tmp_path / "home", "model_uri": f"gs://{BUCKET}/run/"}
    )
    bring_files(settings, check=pass_any)
    before = contents(settings.home)
    web.answer(f"/storage/v1/b/{BUCKET}/o", Reply(status=503))

    bring_files(settings, check=pass_any)

    assert contents(settings.home) == before
    assert caplog.records[-1].message == "fetch_failed_and_copy_served"


def test_known_version_of_a_folder_asks_for_the_listing_alone(
    google: Callable[[str, bytes], None], web: WebServer, settings: Settings
) -> None:
    google("run/saved_model.pb", b"new")
    fetch(settings, f"gs://{BUCKET}/run/")
    web.asked.clear()

    assert fetch(settings, f"gs://{BUCKET}/run/") == ["unchanged"]

    # Google's library asks for the bucket too, for its own traces.
    objects = [path.partition("?")[0] for path, _ in web.asked if f"/b/{BUCKET}/o" in path]
    assert objects == [f"/storage/v1/b/{BUCKET}/o"]


def test_schema_is_no_folder(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "schema").mkdir()
    (tmp_path / "schema" / "schema.yaml").touch()

    with pytest.raises(ModelError, match=r"schema: is a folder; expected a file, a schema\.yaml"):
        fetch_files(settings, model=None, schema=uri(str(tmp_path / "schema")), check=pass_any)
