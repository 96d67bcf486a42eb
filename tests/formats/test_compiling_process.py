"""The process that compiles a policy: what it answers, and how it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest

from policy_server.engine.network import CompiledPolicy
from policy_server.errors import ModelError, NotReadyError, PolicyServerError, SchemaError
from policy_server.formats import compiling_process
from policy_server.formats.compiling_process import PROGRAM, find_compiled, find_signature
from policy_server.formats.known_formats import load_policy
from policy_server.formats.model_files import Model, identify_model
from policy_server.schema import ServerSchema, parse_schema
from policy_server.settings import Engine, Settings
from tests.support.hand_built import Part, V1Policy, observations
from tests.support.keras_weights import weights_in_a_ring
from tests.support.library_policies import POLICIES
from tests.support.onnx_models import actor, node
from tests.support.processes import child, command_line, descendants, is_running
from tests.support.waiting import until, wait_until

pytestmark = pytest.mark.usefixtures("compiled_anew")

KEPT = ".compiled-policy.npz"
FINDING = """
import asyncio, sys
from pathlib import Path
from policy_server.formats.compiling_process import PROGRAM, find_compiled
from policy_server.formats.model_files import identify_model
from policy_server.schema import ServerSchema
from policy_server.settings import Settings
model = identify_model(Path(sys.argv[1]))
compiled = asyncio.run(find_compiled(model, ServerSchema(), Settings()))
maps = Path("/proc/self/maps").read_text()
print(compiled is not None, "tensorflow" in maps)
"""


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return identify_model(V1Policy().save(tmp_path / "m"))


@pytest.fixture
def uncompilable(tmp_path: Path) -> Model:
    return identify_model(V1Policy(parts=(Part("dirichlet", (3,)),)).save(tmp_path / "m"))


@pytest.fixture
def quick(tmp_path: Path) -> Model:
    """Give a policy that needs no TensorFlow, whose import takes most of the time of the others."""
    folder = tmp_path / "quick"
    folder.mkdir()
    actor(folder)
    return identify_model(folder)


def compiling() -> list[int]:
    """Return the processes that compile for this one, which may have others below it."""
    return [pid for pid in descendants(os.getpid()) if PROGRAM.strip() in command_line(pid)]


async def find(
    model: Model, engine: Engine = "auto", start_timeout_s: float = 300.0
) -> CompiledPolicy | None:
    settings = Settings(engine=engine, start_timeout_s=start_timeout_s)
    return await find_compiled(model, ServerSchema(), settings)


def test_process_that_the_system_does_not_start_is_one_line(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "gone"))

    with pytest.raises(NotReadyError) as caught:
        asyncio.run(find(model))

    assert caught.value.message == (
        "the process that compiles the policy can't be started: No such file or directory; it is "
        f"{tmp_path}/gone, and takes a process and a few open files more"
    )


def test_the_process_that_asks_does_not_import_tensorflow(model: Model) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FINDING, str(model.folder)],
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.split() == ["True", "False"]


async def test_compiled_policy_answers_as_the_model_does_and_is_kept(tmp_path: Path) -> None:
    built = V1Policy()
    model = identify_model(built.save(tmp_path / "m"))
    rows = observations(32).astype(np.float32)

    compiled = await find_compiled(model, ServerSchema(), Settings())

    assert compiled is not None
    assert compiled.signature.engine == "numpy"
    assert compiled.network.compile()(rows) == pytest.approx(built.expected_inputs(rows), abs=1e-5)
    kept = (model.folder / KEPT).stat().st_mtime_ns

    assert await find(model) is not None
    assert (model.folder / KEPT).stat().st_mtime_ns == kept


async def test_that_tensorflow_is_needed_is_kept_and_refuses_numpy_alone(
    uncompilable: Model,
) -> None:
    assert await find(uncompilable) is None
    with pytest.raises(ModelError, match="can't be computed by NumPy"):
        await find(uncompilable, "numpy")
    # What is kept is believed: without the model nothing could be compiled.
    (uncompilable.folder / "saved_model.pb").unlink()

    assert await find(uncompilable) is None


async def test_tensorflow_alone_compiles_nothing_and_is_tried_once(model: Model) -> None:
    assert await find(model, "tensorflow") is None
    # That the file can be loaded is kept: without the model nothing could be tried.
    (model.folder / "saved_model.pb").rename(model.folder / "saved_model.pb.away")
    (model.folder / "saved_model.pb").write_bytes(b"")

    assert await find(model, "tensorflow") is None
    with pytest.raises(ModelError, match="holds no graph for serving"):
        await find(model, "auto")


async def test_policy_is_handed_over_where_it_can_not_be_kept(quick: Model) -> None:
    # A folder in the file's place: nothing can be put there, not even by root.
    (quick.folder / KEPT / "in the way").mkdir(parents=True)

    assert await find(quick) is not None
    assert [path.name for path in quick.folder.glob(".compiled-*")] == [KEPT]


@pytest.mark.parametrize(
    ("schema", "kind", "message"),
    [
        ("observations: {a: {type: int}}", SchemaError, "gives 1 values, the policy expects 4"),
        (None, ModelError, r"holds no saved_model\.pb"),
    ],
    ids=["schema", "model"],
)
async def test_errors_come_back_as_they_were(
    model: Model, schema: str | None, kind: type[PolicyServerError], message: str
) -> None:
    if schema is None:
        (model.folder / "saved_model.pb").unlink()
    parsed = parse_schema(schema or "parameters: {discrete: true}")

    with pytest.raises(kind, match=message):
        await find_compiled(model, parsed, Settings())


async def test_killed_process_is_one_line(model: Model) -> None:
    asking = asyncio.create_task(find(model))
    below = await until(compiling)
    os.kill(below[0], signal.SIGKILL)

    with pytest.raises(NotReadyError, match="was ended by SIGKILL; start again with more memory"):
        await asking


async def test_file_at_which_a_library_ends_its_process_is_refused(model: Model) -> None:
    asking = asyncio.create_task(find(model, "tensorflow"))
    below = await until(compiling)
    os.kill(below[0], signal.SIGABRT)

    with pytest.raises(ModelError, match="ended its process by SIGABRT, as it does at damaged"):
        await asking


def endless_weights(folder: Path) -> Path:
    """Write a Keras model whose weights are read for half a minute of the processor's time."""
    folder.mkdir()
    with zipfile.ZipFile(POLICIES / "keras_actor_softmax" / "actor.keras") as archive:
        archive.extractall(folder)
    with weights_in_a_ring(folder).open("ab") as weights:
        weights.write(bytes(30_000_000))
    return folder


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no process is tied to another")
@pytest.mark.parametrize("killed", ["server", "compiling process"])
def test_process_that_reads_weights_ends_with_those_above_it(killed: str, tmp_path: Path) -> None:
    def reading(pid: int) -> list[int]:
        return [each for each in descendants(pid) if "weights_process" in command_line(each)]

    with child(sys.executable, "-c", FINDING, endless_weights(tmp_path / "m")) as server:
        [reader] = server.wait_until(lambda: reading(server.process.pid))
        [parent] = set(descendants(server.process.pid)) - {reader}
        # It reads once it has imported what it needs, and is tied then.
        wait_until(lambda: "h5py" in Path(f"/proc/{reader}/maps").read_text())

        os.kill(server.process.pid if killed == "server" else parent, signal.SIGKILL)

        wait_until(lambda: not any(map(is_running, [parent, reader])), timeout_s=20.0)


async def test_cancelling_ends_the_process(model: Model) -> None:
    asking = asyncio.create_task(find(model))
    below = await until(compiling)
    asking.cancel()

    with pytest.raises(asyncio.CancelledError):
        await asking
    assert not any(map(is_running, below))


async def test_longest_time_to_start_is_no_bound(quick: Model) -> None:
    assert await find(quick, start_timeout_s=9e12) is not None


async def test_cancelling_leaves_the_status_of_an_ended_process_to_asyncio(
    model: Model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    is_cancelled, wait_for = threading.Event(), os.waitpid

    def wait_late(pid: int, options: int) -> tuple[int, int]:
        if threading.current_thread() is not threading.main_thread():
            is_cancelled.wait(10.0)
        return wait_for(pid, options)

    # asyncio's thread that waits for the process comes last, as it does now and then.
    monkeypatch.setattr(os, "waitpid", wait_late)
    asking = asyncio.create_task(find(model))
    [pid] = await until(compiling)
    # It runs, and is not being started any more.
    await until(lambda: Path(f"/proc/{pid}/oom_score_adj").read_text() == "1000\n")
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)

    asking.cancel()
    await asyncio.wait([asking], timeout=0.5)
    is_cancelled.set()

    with pytest.raises(asyncio.CancelledError):
        await asking
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


async def test_ctrl_c_in_the_terminal_of_a_server_is_not_for_the_process(model: Model) -> None:
    asking = asyncio.create_task(find(model))
    [pid] = await until(compiling)
    session = os.getsid(pid)
    asking.cancel()

    with pytest.raises(asyncio.CancelledError):
        await asking
    assert session == pid


async def test_process_that_takes_too_long_is_ended(model: Model) -> None:
    with pytest.raises(NotReadyError, match=r"was not compiled within 0\.2 s"):
        await find(model, start_timeout_s=0.2)

    assert not compiling()


def endless(folder: Path) -> Path:
    """Write a policy of some bytes whose sum of products takes 60**8 additions."""
    folder.mkdir()
    actor(
        folder,
        node("Constant", [], ["many"], value_ints=[60]),
        node("ConstantOfShape", ["many"], ["v"]),
        node("Einsum", ["v"] * 8, ["sums"], equation="a,b,c,d,e,f,g,h->a"),
        node("ReduceMax", ["sums"], ["zero"], keepdims=0),
        node("Add", ["net", "zero"], ["logits"]),
    )
    return folder


async def test_policy_that_computes_without_end_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = endless(tmp_path / "m")
    # Of the 60 s by the clock, which a busy machine does not come near.
    monkeypatch.setattr(compiling_process, "_LEAST_SHARE", 0.05)

    with pytest.raises(NotReadyError) as caught:
        await find_compiled(
            identify_model(folder),
            parse_schema("parameters: {discrete: true}"),
            Settings(start_timeout_s=60.0),
        )

    assert caught.value.message == (
        "the policy took more than 3 s of the processor's time to be read and checked; export a "
        "network that computes less, or raise POLICY_SERVER_START_TIMEOUT_S"
    )


async def test_larger_policies_may_take_more_of_the_processor_s_time(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling_process, "_LEAST_SHARE", 1 / 3000)
    with pytest.raises(NotReadyError, match=r"took more than 0\.\d s of the processor's time"):
        await find(model)
    (model.folder / "beside.bin").write_bytes(bytes(50_000_000))

    assert await find(model) is not None


def hungry(folder: Path) -> Path:
    """Write a policy of some bytes that makes a tensor of 20 GB, by a size that it computes."""
    folder.mkdir()
    actor(
        folder,
        node("Shape", ["net"], ["sizes"], start=1),
        node("Constant", [], ["many"], value_ints=[1_700_000_000]),
        node("Mul", ["sizes", "many"], ["size"]),
        node("ConstantOfShape", ["size"], ["large"]),
        node("ReduceMax", ["large"], ["zero"], keepdims=0),
        node("Add", ["net", "zero"], ["logits"]),
    )
    return folder


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no memory is bounded")
async def test_policy_that_takes_any_amount_of_memory_is_one_line(tmp_path: Path) -> None:
    folder = hungry(tmp_path / "m")

    with pytest.raises(PolicyServerError) as caught:
        await find_compiled(
            identify_model(folder), parse_schema("parameters: {discrete: true}"), Settings()
        )

    assert caught.value.message.endswith(
        "it takes more memory than there is; export a smaller network, or start again with more "
        "memory"
    )
    assert caught.value.message.isprintable()


async def test_signature_is_that_of_the_policy_whatever_computes_it(uncompilable: Model) -> None:
    found = await find_signature(uncompilable.folder, None, Settings())

    assert found == load_policy(uncompilable.folder).signature


async def test_file_at_which_a_library_ends_its_process_has_no_signature(model: Model) -> None:
    asking = asyncio.create_task(find_signature(model.folder, None, Settings()))
    below = await until(compiling)
    os.kill(below[0], signal.SIGSEGV)

    with pytest.raises(ModelError, match="ended its process by SIGSEGV, as it does at damaged"):
        await asking


async def test_signature_that_takes_too_long_is_given_up(model: Model) -> None:
    with pytest.raises(NotReadyError, match=r"was not compiled within 0\.2 s"):
        await find_signature(model.folder, None, Settings(start_timeout_s=0.2))

    assert not compiling()
