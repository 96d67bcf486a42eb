"""A clock that is set while sessions, state tokens and deadlines run, by libfaketime."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults.load import Episodes, Load, Tokens, first_steps, steps
from tests.faults.measuring import Fault, Scene, temporary
from tests.faults.redis import recurrent_home
from tests.support.server_processes import running_server

__all__ = ["FAULTS"]

_PLACES = ("/usr/lib", "/usr/local/lib")
_HOUR_S = 3600
_BETWEEN_S = 8.0
_EPISODES = 8


def _library() -> str:
    """Return where libfaketime lies, or fail with how to install it."""
    found = [path for place in _PLACES for path in Path(place).rglob("libfaketime.so.1")]
    assert found, "libfaketime is missing; on Debian and Ubuntu: apt-get install libfaketime"
    return str(found[0])


@contextmanager
def _with_clock(folder: Path) -> Iterator[Scene]:
    """Serve by a clock that is an hour ahead for a while, and then an hour late.

    Not with Ray, some of whose waits the library can't reach: they end by the machine's own clock.
    """
    clock = folder / "clock"
    clock.write_text("+0")
    environment = {
        "TMPDIR": str(temporary(folder)),
        "POLICY_SERVER_BACKEND": "local",
        "LD_PRELOAD": _library(),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        # As on a machine whose clock is set.
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }

    def happen() -> None:
        for offset_s in (_HOUR_S, -_HOUR_S):
            clock.write_text(f"{offset_s:+d}")
            time.sleep(_BETWEEN_S)

    with running_server(recurrent_home(folder / "home"), environment=environment) as server:
        loads = {
            "plain requests": Load(server.url, first_steps(), _EPISODES),
            "sessions": Episodes(server.url, steps(), _EPISODES),
            "state tokens": Tokens(server.url, steps(), _EPISODES),
        }
        yield Scene(server, loads, happen)


FAULTS = {
    "clock": Fault("clock set an hour ahead, then two back, BACKEND=local", _with_clock),
}
