"""SavedModels with changes that nobody means: loaded, refused in one line, or the end of a process.

TensorFlow ends its process at some damaged files, and never returns from some graphs: a server
loads each file first in a process of its own, and tells that in one line. So does this: a process
that ends is counted, and another one goes on.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import random
import resource
import signal
import tempfile
import zipfile
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.fuzz.model_files import changed, end_of, zipped
from tests.support.folders import EXPORTS
from tests.support.library_policies import POLICIES

__all__ = ["load_saved_models"]

_SOURCES = [
    *sorted(EXPORTS.glob("*/saved_model.zip")),
    *sorted((POLICIES / "tf_agents").glob("*.zip")),
]
# A policy takes a tenth of this; a server's own limit is POLICY_SERVER_START_TIMEOUT_S.
_LONGEST_S = 60.0
_MOST_BYTES = 16 << 30
_GRAPH = "saved_model.pb"
_WHOLE = "whole"


def load_saved_models(cases: int, seed: int) -> Counter[str]:
    """Load many changed SavedModels, as the process does that compiles a policy.

    Args:
        cases: how many.
        seed: of the changes; each case has draws of its own, by its number.

    Returns:
        How many were loaded, refused, ended their process by each signal, or took too long.
    """
    # Imported before the processes fork: it takes each of them seconds.
    import tests.fuzz.saved_graphs  # noqa: F401

    forked, ends, number = multiprocessing.get_context("fork"), Counter[str](), 0
    with TemporaryDirectory(prefix="saved-models-") as folder:
        while number < cases:
            ours, theirs = forked.Pipe()
            process = forked.Process(target=_load_some, args=(theirs, folder, seed, number, cases))
            process.start()
            theirs.close()
            assert process.pid is not None
            found = _ends_of(ours, process.pid)
            process.join()
            if found[-1:] != [_WHOLE]:
                assert process.exitcode, (seed, number + len(found), "its process left quietly")
                assert process.exitcode < 0, (seed, number + len(found), process.exitcode)
                found.append(f"ended by {signal.Signals(-process.exitcode).name}")
            number += len(found)
            ends.update(found)
    del ends[_WHOLE]
    return ends


def _ends_of(ours: Connection, pid: int) -> list[str]:
    """Return how the cases of a process end, up to the one that ends it."""
    found: list[str] = []
    while True:
        if not ours.poll(_LONGEST_S):
            os.kill(pid, signal.SIGKILL)
        try:
            found.append(ours.recv())
        except EOFError:
            return found


def _load_some(theirs: Connection, folder: str, seed: int, first: int, cases: int) -> None:
    """Load cases and tell how each ended, until one ends this process."""
    tempfile.tempdir = folder
    written = Path(folder, "written")
    written.mkdir(exist_ok=True)
    os.chdir(written)
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_BYTES, _MOST_BYTES))
    # What TensorFlow says of a file is none of the run's.
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    for number in range(first, cases):
        choose = random.Random(f"{seed} {number}")  # noqa: S311 -- reproducible files, no secret
        source = choose.choice(_SOURCES)
        content = _changed(source.read_bytes(), choose)
        theirs.send(end_of("SavedModel", content, source, (seed, number), longest_s=_LONGEST_S))
        assert not [*written.iterdir()], (seed, number, [*written.iterdir()])
    theirs.send(_WHOLE)


def _changed(content: bytes, choose: random.Random) -> bytes:
    """Return the archive with another graph, or other bytes in it."""
    if choose.random() < 0.3:
        return changed(content, choose)
    from tests.fuzz.saved_graphs import changed_graph

    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in members if name.endswith(_GRAPH))
    return zipped({**members, name: changed_graph(members[name], choose)})
