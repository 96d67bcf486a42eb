"""Programs of one process each, which share the time that their imports take."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from tests.support.processes import run

__all__ = ["Ended", "run_forked"]

_TIMEOUT_S = 120
# Forks itself for each program, and waits when all of them run.
_FORKING = """
import json, os, signal, sys, tempfile
{imports}
started = {{}}
for name, program in json.load(sys.stdin).items():
    outputs = tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")
    pid = os.fork()
    if not pid:
        # Ends also one that hangs in a library.
        signal.alarm({timeout_s})
        for stream, output in enumerate(outputs, start=1):
            os.dup2(output.fileno(), stream)
        exec(program, {{}})
        sys.exit()
    started[name] = pid, outputs
ended = {{}}
for name, (pid, outputs) in started.items():
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    for output in outputs:
        output.seek(0)
    ended[name] = status, *(output.read() for output in outputs)
print(json.dumps(ended))
"""


@dataclass(frozen=True)
class Ended:
    """A process that has ended.

    Attributes:
        status: its exit status; below zero for the signal that ended it.
        stdout: what it has printed.
        stderr: what it has written to its standard error.
    """

    status: int
    stdout: str
    stderr: str


def run_forked(programs: Mapping[str, str], *, imports: str) -> dict[str, Ended]:
    """Run each program to its end in a process of its own, all at once.

    Args:
        programs: the text of each, by its name.
        imports: what a process runs before it is forked for them: imports that take long.
    """
    forking = _FORKING.format(imports=imports, timeout_s=_TIMEOUT_S)
    typed = json.dumps(dict(programs))
    output = run(sys.executable, "-c", forking, typed=typed, timeout_s=2 * _TIMEOUT_S).stdout
    return {name: Ended(*one) for name, one in json.loads(output).items()}
