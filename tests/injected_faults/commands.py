"""Commands whose operations on files fail, each in a fork of this process."""

from __future__ import annotations

import io
import os
import re
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from policy_server.commands.command_line import run
from policy_server.commands.program import Commands
from policy_server.engine.cache import OUTCOME_FILE
from policy_server.formats.model_files import digest_of_file
from tests.injected_faults.layer import Control, Fault, Faults
from tests.injected_faults.outcomes import Outcome
from tests.support.library_policies import POLICIES

__all__ = ["COMMANDS", "Command", "outcomes_of"]

OLD, NEW = POLICIES / "sb3_td3", POLICIES / "sb3_ppo_vecnorm"
_PROGRAM = "generate.py"
_UNCAUGHT = 99
# Locks, and what a start makes again where it is missing.
_NOT_COMPARED = (".models.lock", OUTCOME_FILE)
# Answers each request of a process that compiles as it was answered before: it is the same one for
# every fault, and takes seconds. It ends with the process that it is told of: here the shell.
_RECORDER = """#!/bin/sh
unset LD_PRELOAD
request={folder}/request.$$
cat > $request
answer={folder}/answer.$(sha256sum < $request | cut -c1-40)
[ -f $answer ] || {python} "$1" "$2" $$ < $request > $answer
rm $request
exec cat $answer
"""


@dataclass(frozen=True)
class Command:
    """A command of generate.py, and the folder that it runs in.

    Attributes:
        words: its name and arguments; `{folder}` stands for the folder.
        prepare: fills the folder, of which `home` is the server's.
        result: the files in the folder that change together or not at all.
    """

    words: tuple[str, ...]
    prepare: Callable[[Path], None]
    result: tuple[str, ...]


def _prepared(folder: Path, *, home: Path | None) -> None:
    _copied(NEW, folder / "new")
    (folder / "home").mkdir()
    if home is not None:
        _copied(home, folder / "home")


def _copied(source: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    for name in ("policy.zip", "schema.yaml", "vec_normalize.pkl"):
        if (source / name).exists():
            shutil.copy(source / name, target / name)


def _with_old(folder: Path) -> None:
    _copied(OLD, folder / "old")
    _prepared(folder, home=None)
    status, _, told = _forked(("copy_server_files", str(folder / "old")), folder)
    assert not status, told


def _with_old_to_fetch(folder: Path) -> None:
    _with_old(folder)
    shutil.rmtree(folder / "new")
    _copied(POLICIES / "sb3_ppo_box", folder / "new")


_DRAFT = "drafted.yaml"
_PAIR = ("home/schema.yaml", "home/saved_model.zip")
_FETCHED = (
    "fetch",
    "file://{folder}/new/policy.zip",
    "--schema-uri=file://{folder}/new/schema.yaml",
)
_EXPORTED = ("export", "policy.zip", "--to=onnx", "--output={folder}/exported", "--overwrite")
COMMANDS = {
    "copy": Command(
        ("copy_server_files", "{folder}/new"), lambda folder: _prepared(folder, home=None), _PAIR
    ),
    "replace": Command(("copy_server_files", "{folder}/new"), _with_old, _PAIR),
    "fetch": Command(_FETCHED, _with_old_to_fetch, (*_PAIR, "home/.fetched.json")),
    "unzip": Command(("unzip",), lambda folder: _prepared(folder, home=NEW), ()),
    "schema": Command(
        ("schema", "policy.zip", f"--output={_DRAFT}", "--overwrite"),
        lambda folder: _prepared(folder, home=NEW),
        (f"home/{_DRAFT}",),
    ),
    "export": Command(
        _EXPORTED,
        lambda folder: _prepared(folder, home=NEW),
        ("exported/policy.onnx",),
    ),
}


def outcomes_of(
    command: Command, control: Control, place: Path, faults: Faults
) -> Iterator[Outcome]:
    """Run a command with one fault after the other.

    Args:
        command: the command.
        control: arms the layer, which this process was started with.
        place: a folder for its files.
        faults: the faults.

    Yields:
        The outcome of each fault.
    """
    folder, scratch, prepared = place / "work", place / "scratch", place / "prepared"
    scratch.mkdir(exist_ok=True)
    recorder = scratch / "python"
    recorder.write_text(_RECORDER.format(folder=scratch, python=sys.executable))
    recorder.chmod(0o755)
    own, sys.executable = sys.executable, str(recorder)
    words = tuple(word.format(folder=folder.resolve()) for word in command.words)
    try:
        _prepare(command, folder, prepared)
        # What a command imports late is imported once, and not in every fork.
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            _in_this_process(words, folder)
        before = _begin(prepared, folder)
        control.arm(folder, faults.never)
        status, _, told = _forked(words, folder)
        assert not status, told
        control.disarm()
        operations, after = control.counted, _contents(folder)
        for fault in faults.each(operations):
            _begin(prepared, folder)
            yield _outcome(command, words, control, folder, fault, (before, after))
    finally:
        sys.executable = own


def _prepare(command: Command, folder: Path, prepared: Path) -> None:
    """Fill the folder, and keep a copy of it: commands that fill it take as long as the tried."""
    for each in (folder, prepared):
        shutil.rmtree(each, ignore_errors=True)
    folder.mkdir(parents=True)
    command.prepare(folder)
    shutil.copytree(folder, prepared, symlinks=True)


def _begin(prepared: Path, folder: Path) -> dict[str, str]:
    shutil.rmtree(folder)
    shutil.copytree(prepared, folder, symlinks=True)
    return _contents(folder)


def _outcome(
    command: Command,
    words: tuple[str, ...],
    control: Control,
    folder: Path,
    fault: Fault,
    states: tuple[dict[str, str], dict[str, str]],
) -> Outcome:
    before, after = states
    control.arm(folder, fault)
    status, out, told = _forked(words, folder)
    control.disarm()
    if not control.failed:
        return Outcome(fault, "not reached")
    found, expected = _contents(folder), before if status else after
    for name in command.result:
        if found.get(name) != expected.get(name):
            return Outcome(fault, "half replaced", f"{name}: {status} {told}")
    errors = [line for line in told.splitlines() if line.startswith(f"{_PROGRAM}: ")]
    if len(errors) != bool(status) or "Traceback" in told or status not in (0, 1):
        return Outcome(fault, "not told in one line", f"{status} {out} {told}")
    again, _, told = _forked(words, folder)
    left = _contents(folder)
    wrong = [name for name in after if left.get(name) != after[name]]
    if again or wrong:
        return Outcome(fault, "not mended by the next try", f"{again} {wrong} {told}")
    return Outcome(
        fault,
        "refused in one line" if status else "done all the same",
        left_behind=sorted(left.keys() - after),
    )


def _contents(folder: Path) -> dict[str, str]:
    """Return the digest of each file."""
    return {
        path.relative_to(folder).as_posix(): _digest_of(path)
        for path in folder.rglob("*")
        if path.is_file() and path.name not in _NOT_COMPARED
    }


def _digest_of(path: Path) -> str:
    """Return the digest of a file; of a draft, without the key that is drawn for each."""
    if path.name != _DRAFT:
        return digest_of_file(path)
    return sha256(re.sub(rb"api_key: .*", b"", path.read_bytes())).hexdigest()


def _in_this_process(words: tuple[str, ...], folder: Path) -> int:
    os.chdir(folder / "home")
    os.environ["POLICY_SERVER_HOME"] = str(folder / "home")
    return run(Commands, words, program=_PROGRAM)


def _forked(words: tuple[str, ...], folder: Path) -> tuple[int, str, str]:
    """Run a command in a fork; return its exit code, standard output and standard error."""
    files = [folder.with_name(name) for name in ("out", "err")]
    sys.stdout.flush()
    child = os.fork()
    if not child:
        status = _UNCAUGHT
        try:
            for number, file in enumerate(files, start=1):
                os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            status = _in_this_process(words, folder)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    _, ended = os.waitpid(child, 0)
    out, err = (file.read_text() for file in files)
    return os.waitstatus_to_exitcode(ended), out, err
