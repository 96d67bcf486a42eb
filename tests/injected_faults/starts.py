"""Starts of a server whose operations on files fail."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tests.injected_faults.changes import Admin
from tests.injected_faults.layer import Control, Fault, Faults
from tests.injected_faults.outcomes import Outcome, Step
from tests.injected_faults.served import answers, environment_of, fill, has_ended, is_ready
from tests.support.server_processes import running_server, started_server
from tests.support.waiting import wait_until

__all__ = ["STEPS"]

_START_TIMEOUT_S = 120.0
# Of a start that ends: as it stands in the log, and on standard error before there is one.
_REASONS = ('"level": "ERROR"', '"level": "CRITICAL"', "policy server: ")
# A version that can't be loaded: it is tried again, and another one stands in for it.
_STANDS_IN = '"event": "version_not_served"'


def _with_a_version(home: Path) -> None:
    """Fill a home as a server leaves it to whose policy a version was deployed, and made live."""
    kept = home.parent.with_name("with-a-version")
    if not kept.exists():
        fill(home)
        with running_server(home.parent, environment=environment_of(home)) as server:
            admin = Admin(server, home)
            admin.deploy().raise_for_status()
            admin.promote().raise_for_status()
        shutil.copytree(home, kept)
    shutil.rmtree(home)
    shutil.copytree(kept, home)


def _outcomes_of(
    prepare: Callable[[Path], None], version: str, place: Path, faults: Faults
) -> Iterator[Outcome]:
    """Start a server with one fault after the other.

    Args:
        prepare: fills its home.
        version: the version that has to answer; empty for the only one.
        place: a folder for its files.
        faults: the faults.

    Yields:
        The outcome of each fault.
    """
    control, home = Control.of_this_process(), place / "served" / "home"
    prepare(home)
    control.arm(home, faults.never)
    with running_server(home.parent, environment=environment_of(home)):
        control.disarm()
    for fault in faults.each(control.counted):
        prepare(home)
        yield _outcome(control, home, version, fault)


def _outcome(control: Control, home: Path, version: str, fault: Fault) -> Outcome:
    control.arm(home, fault)
    with started_server(home.parent, environment=environment_of(home)) as server:
        wait_until(lambda: has_ended(server) or is_ready(server), timeout_s=_START_TIMEOUT_S)
        control.disarm()
        has_begun = not has_ended(server)
        told, status = server.output(), server.process.poll()
        is_right = not has_begun or answers(server, version=version)
        if not is_right and _STANDS_IN in told:
            # The version before it answers until its files are read again.
            is_right = answers(server)
            wait_until(lambda: answers(server, version=version), timeout_s=_START_TIMEOUT_S)
    if not control.failed:
        return Outcome(fault, "not reached")
    if not is_right:
        return Outcome(fault, "half replaced", f"another answer: {told[-2000:]}")
    is_told = any(words in told for words in _REASONS)
    if "Traceback" in told or (not has_begun and not (is_told and status)):
        return Outcome(fault, "not told in one line", told[-2000:])
    with running_server(home.parent, environment=environment_of(home)) as server:
        if not answers(server, version=version):
            return Outcome(fault, "not mended by the next try", server.output()[-2000:])
    return Outcome(fault, "done all the same" if has_begun else "refused in one line")


STEPS = {
    "start": Step(partial(_outcomes_of, fill, "")),
    "restart": Step(partial(_outcomes_of, _with_a_version, "b")),
}
