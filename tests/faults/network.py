"""Two hosts with a node of Ray's and a replica on each: one is lost, or the network between them.

It needs root on Linux, iproute2, iptables and /dev/net/tun, and fails where they are missing.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from subprocess import Popen
from typing import NamedTuple

from benchmarks.two_hosts import FIRST, LINKS, SECOND, two_hosts
from tests.faults.cable import Cable
from tests.faults.expectations import TARGET, Expectation, Limits
from tests.faults.load import CLIENTS, EXPORT, Load, modes
from tests.faults.measuring import Fault, Scene, temporary
from tests.faults.processes import stand_still
from tests.support.processes import descendants, program, run
from tests.support.ray_nodes import OPEN, end_node, running_node
from tests.support.server_processes import compiled_home_of, running_server
from tests.support.servers import free_port

__all__ = ["FAULTS"]

_BROKEN_S, _SLOW_S, _RESET_S = 8.0, 20.0, 1.0
_AFTER_S = 40.0


class Hosts(NamedTuple):
    """What a fault may harm.

    Attributes:
        node: Ray's node on the second host.
        cable: joins the hosts.
    """

    node: Popen[str]
    cable: Cable


@contextmanager
def _two_nodes(
    folder: Path, happen: Callable[[Hosts], None], *, has_first: bool = True
) -> Iterator[Scene]:
    """Serve by two replicas, of which the second is on another host, or by that one alone.

    The one alone has one client: only a call of one row can be blamed for a replica that hangs.
    """
    cable, port = Cable(), free_port()
    # Sockets lie there, whose paths have to be short.
    rays = tempfile.mkdtemp(prefix="ray-")
    head = ("--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={rays}")
    # Each replica takes a core.
    cores, replicas = ((), 2) if has_first else (("--num-cpus=0",), 1)
    clients = CLIENTS if has_first else 1
    environment = {
        **OPEN,
        "TMPDIR": str(temporary(folder)),
        "RAY_ADDRESS": f"{FIRST}:{port}",
        "POLICY_SERVER_NUM_REPLICAS": str(replicas),
    }
    home = compiled_home_of(EXPORT, folder / "home")
    try:
        with (
            two_hosts(cable.laid) as other,
            running_node(FIRST, folder / "first.log", *head, *cores),
            running_node(
                SECOND, folder / "second.log", f"--address={FIRST}:{port}", before=other
            ) as second,
            running_server(home, environment=environment) as server,
        ):
            server.child.wait_until(
                lambda: server.output().count('"replica_connected"') == replicas
            )
            loads = {"": Load(server.url, modes(), clients)}
            yield Scene(server, loads, partial(happen, Hosts(second, cable)), after_s=_AFTER_S)
    finally:
        shutil.rmtree(rays, ignore_errors=True)


def _lose_node(hosts: Hosts) -> None:
    end_node(hosts.node)


def _freeze_node(hosts: Hosts) -> None:
    """Let all of the second node's processes stand still for a while."""
    stand_still([hosts.node.pid, *descendants(hosts.node.pid)], _BROKEN_S)


def _cut(hosts: Hosts) -> None:
    hosts.cable.change(lost=1.0)


def _cut_for_a_while(hosts: Hosts) -> None:
    _for_a_while(hosts, _BROKEN_S, lost=1.0)


def _for_a_while(hosts: Hosts, seconds: float, *, delay_s: float = 0.0, lost: float = 0.0) -> None:
    hosts.cable.change(delay_s=delay_s, lost=lost)
    time.sleep(seconds)
    hosts.cable.change()


def _reset(_: Hosts) -> None:
    """Answer all that comes from the other host by a reset, for a while."""
    iptables = program("iptables", package="iptables")
    rule = f"INPUT -p tcp -i {LINKS[0]} -j REJECT --reject-with tcp-reset".split()
    run(iptables, "-I", *rule)
    time.sleep(_RESET_S)
    run(iptables, "-D", *rule)


def _fault(
    told: str,
    happen: Callable[[Hosts], None],
    expected: Expectation = TARGET,
    *,
    has_first: bool = True,
) -> Fault:
    staged = partial(_two_nodes, happen=happen, has_first=has_first)
    return Fault(f"two hosts: {told}", staged, expected)


FAULTS = {
    "node": _fault("the second one lost", _lose_node),
    "node-frozen": _fault(
        f"all of Ray's processes on the second one stopped for {_BROKEN_S:g} s",
        _freeze_node,
        Expectation({"": Limits(slowest_s=_BROKEN_S / 2)}),
    ),
    "cut": _fault("the network between them cut", _cut),
    "cut-short": _fault(f"the network between them cut for {_BROKEN_S:g} s", _cut_for_a_while),
    "cut-only": _fault(
        f"the network to the only replica cut for {_BROKEN_S:g} s, one client",
        _cut_for_a_while,
        has_first=False,
    ),
    "loss": _fault(
        f"5 % of all packets lost for {_SLOW_S:g} s",
        partial(_for_a_while, seconds=_SLOW_S, lost=0.05),
    ),
    "delay": _fault(
        f"50 ms of delay each way for {_SLOW_S:g} s",
        partial(_for_a_while, seconds=_SLOW_S, delay_s=0.05),
    ),
    "reset": _fault(f"all connections reset for {_RESET_S:g} s", _reset),
}
