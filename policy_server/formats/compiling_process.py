"""Compiling a policy in a process of its own, which ends when that is done.

Compiling a policy needs TensorFlow, serving a compiled one does not; a process that has imported
TensorFlow keeps some 400 MB of it until it ends. And some damaged files end the process that reads
them, by TensorFlow's own checks: that must not be the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import pickle
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path

from policy_server import errors
from policy_server.child_environment import environment_of_child
from policy_server.engine.cache import (
    Outcome,
    decode,
    digest_of,
    encode,
    read_outcome,
    read_signature,
    write_outcome,
)
from policy_server.engine.network import CompiledPolicy, NetworkPolicy
from policy_server.errors import ModelError, NotReadyError, PolicyServerError, SeveralPoliciesError
from policy_server.formats.known_formats import library_of, load_policy
from policy_server.formats.model_files import Model, files_of_model
from policy_server.policy import PolicySignature
from policy_server.process_memory import bound_further_memory
from policy_server.schema import ServerSchema
from policy_server.settings import Engine, Settings
from policy_server.tied_processes import end_with

__all__ = ["PROGRAM", "check_policy", "find_compiled", "find_signature", "main"]

logger = logging.getLogger(__name__)

_REFUSED, _SIGNATURE = "error", "signature"
# The memory that the process may take: with TensorFlow, real policies of 1 MB take 0.5 GB.
_LEAST_MEMORY_BYTES = 8 << 30
_MEMORY_OF_EACH_BYTE = 16
# The time of the processor that it may take, as shares of POLICY_SERVER_START_TIMEOUT_S: of its
# usual 300 s these are 100 s, and 6 s for each megabyte. As ONNX models Atari's common network took
# 3 s (6.5 MB), that of IMPALA 9 s (4.2 MB), a dense one 14 s (208 MB), ResNet-18 103 s (43 MB).
_LEAST_SHARE = 1 / 3
_SHARE_OF_EACH_MB = 1 / 50
# The system's timers take no more than 9.2e9 s.
_LONGEST_TIMER_S = 1e9
# Of the process that gets no memory, also while it imports: its traceback would tell no more.
_NO_MEMORY = 12
PROGRAM = f"""
import sys
try:
    from {__name__} import main
    main()
except MemoryError:
    sys.exit({_NO_MEMORY})
"""
"""What the process runs: it reads the policy from standard input, and writes the answer.

Its argument is the id of the process that starts it.
"""
# TensorFlow's and onnxruntime's own checks, and what they lack checks for.
_CRASHES = frozenset(
    {-signal.SIGABRT, -signal.SIGBUS, -signal.SIGFPE, -signal.SIGILL, -signal.SIGSEGV}
)
# Of Linux: the process that goes first where memory ends.
_OOM_ADJUSTMENT = Path("/proc/self/oom_score_adj")


async def check_policy(model: Model, schema: ServerSchema | None, settings: Settings) -> None:
    """Load a policy as a start would, and write the outcome for that start.

    Args:
        model: the policy's file.
        schema: the contents of schema.yaml; None for a policy that has none yet.
        settings: the engine, and how long loading may take.

    Raises:
        ModelError: if the file can't give a policy, or not by the engine that was asked for.
        SchemaError: if schema.yaml disagrees with the policy.
        NotReadyError: if the process that loads it dies, or takes too long.
    """
    if schema is not None:
        await find_compiled(model, schema, settings, is_quiet=True)
        return
    try:
        await _compile(model.folder, "", None, settings, is_quiet=True)
    except ModelError:
        # For a file with the network only, schema.yaml has to state the meaning of its output.
        stated = ServerSchema(discrete=True)
        await _compile(model.folder, "", stated, settings, is_quiet=True)


async def find_compiled(
    model: Model, schema: ServerSchema, settings: Settings, *, is_quiet: bool = False
) -> CompiledPolicy | None:
    """Return the policy as NumPy computes it: from an earlier start's file, else compiled now.

    Where another library is asked for, the policy is loaded by it once, so that a file which it
    can't stand ends that process and not the server. The outcome is written for the next start.
    Cancelling this call ends the process.

    Args:
        model: the policy's file.
        schema: the contents of schema.yaml.
        settings: the engine, and how long a start may take.
        is_quiet: drop the output of TensorFlow, and tracebacks, instead of writing them.

    Returns:
        The policy; None where TensorFlow has to compute it, or onnxruntime.

    Raises:
        ModelError: if the file can't give a policy, or not by the engine that was asked for.
        SchemaError: if schema.yaml disagrees with the policy.
        NotReadyError: if the process can't be started, is ended from outside, or takes too long.
    """
    # In threads: this may run in a server's event loop, beside policies that answer.
    library = await asyncio.to_thread(library_of, model.folder, settings.engine)
    digest = digest_of(model.digest, schema)
    if settings.engine == library != "numpy":
        digest = f"{digest} {library}"
    kept = await asyncio.to_thread(read_outcome, model.folder, digest)
    if kept is not None and (kept.compiled is not None or settings.engine != "numpy"):
        return kept.compiled
    started = time.monotonic()
    logger.info("compiling_policy", extra={"path": str(model.folder)})
    answer = await _compile(model.folder, digest, schema, settings, is_quiet=is_quiet)
    content = answer.partition(b"\n")[2]
    outcome = await asyncio.to_thread(decode, content, digest)
    assert outcome is not None, "the digest was the process's own argument"
    await asyncio.to_thread(write_outcome, model.folder, content)
    engine = library if outcome.compiled is None else "numpy"
    seconds = round(time.monotonic() - started, 1)
    logger.info("policy_compiled", extra={"engine": engine, "seconds": seconds})
    return outcome.compiled


async def find_signature(
    folder: Path, schema: ServerSchema | None, settings: Settings
) -> PolicySignature:
    """Return the signature of a policy, which a process of its own loads by the engine for it.

    So its file can neither end this process nor keep it for ever.

    Args:
        folder: the model's.
        schema: the contents of schema.yaml; None for a policy that has none yet.
        settings: how long loading may take.

    Raises:
        ModelError: if the file can't give a policy.
        SchemaError: if schema.yaml disagrees with the policy.
        NotReadyError: if the process can't be started, is ended from outside, or takes too long.
    """
    by_any = settings.model_copy(update={"engine": "auto"})
    answer = await _compile(folder, "", schema, by_any, is_quiet=True)
    return read_signature(json.loads(answer.partition(b"\n")[0])[_SIGNATURE])


async def _compile(
    folder: Path,
    digest: str,
    schema: ServerSchema | None,
    settings: Settings,
    *,
    is_quiet: bool,
) -> bytes:
    """Run the process, and return its answer: a line of JSON, and the encoded outcome."""
    size = await asyncio.to_thread(_size_of, folder)
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            PROGRAM,
            str(os.getpid()),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL if is_quiet or sys.__stderr__ is None else None,
            env=environment_of_child(),
            # The terminal's Ctrl-C is for the server, which ends this process.
            start_new_session=True,
        )
    except OSError as error:
        raise NotReadyError(
            f"the process that compiles the policy can't be started: {error.strerror}; it is "
            f"{sys.executable}, and takes a process and a few open files more"
        ) from error
    part = None if schema is None else schema.policy_part()
    seconds = settings.start_timeout_s * (_LEAST_SHARE + _SHARE_OF_EACH_MB * size / 1e6)
    arguments = (folder.resolve(), digest, part, settings.engine)
    request = pickle.dumps((size, seconds, arguments))
    try:
        async with asyncio.timeout(settings.start_timeout_s):
            answer, _ = await process.communicate(request)
    except TimeoutError as error:
        raise NotReadyError(
            f"the policy was not compiled within {settings.start_timeout_s:g} s; "
            "raise POLICY_SERVER_START_TIMEOUT_S"
        ) from error
    finally:
        if process.returncode is None:
            # `process.kill` would look whether it has ended, and take its status away from
            # asyncio, which logs that.
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
            await process.wait()
    if process.returncode in _CRASHES:
        raise ModelError(
            f"{folder}: the library that reads it ended its process by "
            f"{signal.Signals(-process.returncode).name}, as it does at damaged files; save the "
            "policy again"
        )
    if process.returncode == -signal.SIGPROF:
        raise NotReadyError(
            f"the policy took more than {round(seconds, 1):g} s of the processor's time to be read "
            "and checked; export a network that computes less, or raise "
            "POLICY_SERVER_START_TIMEOUT_S"
        )
    if process.returncode or not answer:
        raise NotReadyError(_reason(process.returncode or 0))
    return _checked(answer)


def _reason(status: int) -> str:
    if status == _NO_MEMORY:
        return (
            "the process that compiles the policy got no more memory; it may take "
            f"{_LEAST_MEMORY_BYTES >> 30} GiB and {_MEMORY_OF_EACH_BYTE} times the model's size, "
            "where the machine has that: start again with more memory, or with a smaller policy"
        )
    what = f"with status {status}" if status >= 0 else f"by {signal.Signals(-status).name}"
    return (
        f"the process that compiles the policy was ended {what}; start again with more memory, or "
        "with POLICY_SERVER_ENGINE=tensorflow"
    )


def _checked(answer: bytes) -> bytes:
    """Return an answer as it is, or raise the error in it."""
    known = json.loads(answer.partition(b"\n")[0])
    if _REFUSED in known:
        name, arguments = known[_REFUSED]
        raise getattr(errors, name)(*arguments)
    return answer


def _answer(folder: Path, digest: str, schema: ServerSchema | None, engine: Engine) -> bytes:
    """Compile the policy, and return its signature in one line and the outcome; or the error."""
    try:
        policy = load_policy(folder, schema, engine=engine)
    except PolicyServerError as error:
        names = [error.names] if isinstance(error, SeveralPoliciesError) else []
        return json.dumps({_REFUSED: (type(error).__name__, [error.message, *names])}).encode()
    except MemoryError:
        raise
    except Exception as error:
        logger.exception("policy_not_loaded")
        message = f"the policy can't be loaded: {type(error).__name__}: {error}"
        return json.dumps({_REFUSED: (ModelError.__name__, [message])}).encode()
    compiled = policy.compiled if isinstance(policy, NetworkPolicy) else None
    head = json.dumps({_SIGNATURE: asdict(policy.signature)}).encode()
    return head + b"\n" + encode(Outcome(compiled), digest)


def _size_of(folder: Path) -> int:
    """Return how many bytes a model's files have; 0 where the system does not tell."""
    with contextlib.suppress(OSError, PolicyServerError):
        return sum(path.stat().st_size for path in files_of_model(folder).values())
    return 0


def _bound(size: int, seconds: float) -> None:
    """Bound the memory and the time of this process, far above what real policies take.

    A file of some bytes can ask for any amount, and the machine may serve other policies.

    Args:
        size: how many bytes the model's files have.
        seconds: the most of the processor's time.
    """
    # Where nothing is bounded, the system ends this process before others; see `main`.
    with contextlib.suppress(OSError, ValueError):
        bound_further_memory(_LEAST_MEMORY_BYTES + _MEMORY_OF_EACH_BYTE * size)
    # Its signal ends the process within a library too, also where no server waits for it any more.
    signal.setitimer(signal.ITIMER_PROF, min(seconds, _LONGEST_TIMER_S))


def main() -> None:
    """Compile the policy that standard input names, and write the answer to standard output."""
    end_with(int(sys.argv[1]))
    # A file that fills all memory must not end the server, which may serve others meanwhile.
    with contextlib.suppress(OSError):
        _OOM_ADJUSTMENT.write_text("1000")
    size, seconds, arguments = pickle.load(sys.stdin.buffer)  # noqa: S301 -- the process that started this one wrote it
    _bound(size, seconds)
    # The output of libraries must not get into the answer.
    answers = os.dup(1)
    os.dup2(2, 1)
    with os.fdopen(answers, "wb") as file:
        file.write(_answer(*arguments))
