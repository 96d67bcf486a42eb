"""The keeper of a server that the page starts: it ends the server with the page, and its files go.

A page that is killed can't end anything. Its keeper is a small process of its own,
`python -m demo.server_keeper FOLDER`, whose standard input is a pipe from the page. The page tells
it there by a line of JSON how to start the server; when the page closes the pipe, or the page's
process ends, the keeper stops the server and removes the folder. A signal that would end the keeper
stops the server too; the folder, which has the log that the page shows, goes with the page. Where
the keeper is killed, Linux kills the server, and the page removes the folder when it stops it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import IO

from policy_server.child_environment import environment_of_child
from policy_server.files.atomic import write_whole
from policy_server.tied_processes import tied_command

__all__ = ["LOG_FILE", "STATUS_FILE", "started_keeper", "tell_to_serve"]

LOG_FILE = "server.log"
# Has the server's exit code once it has ended.
STATUS_FILE = "server.status"
# A server that still starts finishes that first, and Ray's takes longest.
_STOP_TIMEOUT_S = 90.0
_STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_ROOT = Path(__file__).parent.parent


def started_keeper(folder: Path) -> subprocess.Popen[bytes]:
    """Start the keeper of a server's folder.

    Args:
        folder: is removed when the keeper's standard input is closed.
    """
    # A child has its parent's blocked signals: they wait until the keeper can hear them.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    try:
        # A session of its own, so that Ctrl-C in the page's terminal leaves the stopping to it.
        return subprocess.Popen(  # noqa: S603 -- no part of it is the user's
            [sys.executable, "-m", __name__, str(folder)],
            cwd=_ROOT,
            env=environment_of_child(),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def tell_to_serve(
    keeper: subprocess.Popen[bytes], command: Sequence[str], environment: Mapping[str, str]
) -> None:
    """Have a keeper start the server; one that was killed has ended, and starts none.

    Args:
        keeper: the result of `started_keeper`.
        command: the server's program and its arguments.
        environment: its variables.
    """
    assert keeper.stdin is not None, "it is a pipe"
    start = {"command": command, "environment": environment}
    with suppress(BrokenPipeError):
        keeper.stdin.write(json.dumps(start).encode() + b"\n")
        keeper.stdin.flush()


def _keep(folder: Path, page: IO[bytes]) -> None:
    """Serve as the page says, until it has closed the pipe; remove the folder then."""
    # A queue of this kind may be written to in a handler of signals.
    stops: SimpleQueue[None] = SimpleQueue()
    for number in _STOPPING:
        # nohup has its programs ignore one.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda *_: stops.put(None))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
    try:
        if line := page.readline():
            start = json.loads(line)
            _serve(folder, start["command"], start["environment"], page, stops)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _serve(
    folder: Path,
    command: Sequence[str],
    environment: Mapping[str, str],
    page: IO[bytes],
    stops: SimpleQueue[None],
) -> None:
    """Run the server until the first of `stops`, and go on until the page has closed the pipe."""
    with (folder / LOG_FILE).open("wb") as log:
        server = subprocess.Popen(  # noqa: S603 -- the page's own command
            tied_command(command),
            cwd=_ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # A group of its own, which ends as a whole where the server does not.
            start_new_session=True,
        )
    waiting = threading.Thread(
        target=lambda: write_whole(folder / STATUS_FILE, str(server.wait())), daemon=True
    )
    waiting.start()
    closing = threading.Thread(target=_tell_of_the_end, args=(page, stops), daemon=True)
    closing.start()
    stops.get()
    server.send_signal(signal.SIGTERM)
    waiting.join(_STOP_TIMEOUT_S)
    if waiting.is_alive():
        os.killpg(server.pid, signal.SIGKILL)
        waiting.join()
    # Until then the page shows the server's log and status.
    closing.join()


def _tell_of_the_end(page: IO[bytes], stops: SimpleQueue[None]) -> None:
    """Wait until the page has closed the pipe, and put that to the stops."""
    page.read()
    stops.put(None)


if __name__ == "__main__":
    _keep(Path(sys.argv[1]), sys.stdin.buffer)
