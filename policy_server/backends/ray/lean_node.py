"""Ray without the processes that serving does not need, by private parts of Ray.

`ray.init` also starts the autoscaler's monitor, the log monitor and the dashboard's server, even
where the dashboard is off, and waits for them: seconds, and some 170 MB. Ray's own `Node` can leave
them out. Where these parts have moved, `OwnRay` takes `ray.init`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from ray._private.node import Node
from ray._private.parameter import RayParams
from ray._private.services import start_ray_process
from ray._raylet import (  # type: ignore[attr-defined]  # a compiled module
    DASHBOARD_AGENT_LISTEN_PORT_NAME,
    METRICS_AGENT_PORT_NAME,
    METRICS_EXPORT_PORT_NAME,
    RUNTIME_ENV_AGENT_PORT_NAME,
    persist_port,
)
from ray.exceptions import RayError

from policy_server.backends.ray.connection import RayletEndedError
from policy_server.backends.ray_processes import Process, agents_in
from policy_server.ports import bound_sockets

__all__ = ["GCS", "RAYLET", "LeanNode", "start_lean_node"]

# Ray's own names of the processes without which it does not go on.
GCS, RAYLET = _NEEDED = "gcs_server", "raylet"
# Workers import these while Ray Serve's controller starts, not when it asks for a replica. The
# first imports Ray Serve without pandas, the last has what is done in workers only.
_PRELOADED = (
    "policy_server.backends.ray.replicas",
    "ray.serve._private.replica",
    "policy_server.backends.ray.worker_start",
)
# Ray's own names of the dashboard's parts for what a server has: machines, actors, applications
# and logs. Each is a process; those for jobs, training, data sets and events have nothing to show.
_PAGES = ("NodeHead", "ReportHead", "ServeHead", "StateHead", "UsageStatsHead")
# The ports of the raylet's two agents: as `RayParams` has them, and as the raylet reads them.
_AGENTS_PORTS = {
    "metrics_agent_port": METRICS_AGENT_PORT_NAME,
    "metrics_export_port": METRICS_EXPORT_PORT_NAME,
    "dashboard_agent_listen_port": DASHBOARD_AGENT_LISTEN_PORT_NAME,
    "runtime_env_agent_port": RUNTIME_ENV_AGENT_PORT_NAME,
}
# How many agents a raylet has, and how long they are looked for.
_AGENTS, _AGENTS_TIMEOUT_S = 2, 0.1
# How far Ray's agents and its dashboard stand back behind the policy, as `nice` has it.
_NICENESS = 5
_DASHBOARD = "dashboard"
_DASHBOARD_TIMEOUT_S = 60.0
_POLL_S = 0.1
# How long the GCS may take to say whether the raylet is up, and how often it is asked. A raylet
# takes some 50 ms; Ray's own look at it that comes too early sleeps for a second.
_LOOK_S, _PAUSE_S = 1.0, 0.01
# A process that leaves a GCS that has died tries for so long to tell it of its tasks; Ray's is 5 s.
_FLUSH_TIMEOUT_MS = 300


class LeanNode(Node):
    """Ray's processes, without waiting for the dashboard and for the raylet's agents.

    Attributes:
        held_ports: keeps the ports of the raylet's agents for them until `end`.
    """

    def __init__(
        self,
        parameters: RayParams,
        *,
        is_shared: bool,
        start_timeout_s: float,
        is_broken_off: Callable[[], bool],
    ) -> None:
        """Start the processes, and own them until `end`.

        Args:
            parameters: of the processes.
            is_shared: whether Ray goes on where the process that starts it is killed.
            start_timeout_s: the longest wait for the raylet, in seconds.
            is_broken_off: says whether nobody needs this Ray any more.
        """
        self.held_ports = ExitStack()
        self._is_shared = is_shared
        self._agents: list[Process] = []
        self._start_timeout_s = start_timeout_s
        self._is_broken_off = is_broken_off
        super().__init__(parameters, head=True, shutdown_at_exit=False, spawn_reaper=not is_shared)

    def start_raylet(self, *arguments: Any, **named: Any) -> None:  # noqa: ANN401 -- Ray's own
        """Start the raylet, which takes part at once.

        It waits until its agents, which import for seconds, have written down their ports. No
        worker needs the agents at its start, so the ports are there already.
        """
        for argument, name in _AGENTS_PORTS.items():
            port = getattr(self._ray_params, argument)
            persist_port(self._session_dir, self._node_id, name, port)
        super().start_raylet(*arguments, **named)

    def start_ray_processes(self) -> None:
        """Start the raylet, and wait until it is up: Ray's own wait ends after 30 s.

        On a very busy machine the raylet takes longer. Its agents import for a quarter of all that
        a start computes, and are held.

        Raises:
            RayletEndedError: if it has ended by itself, or the start was broken off.
        """
        super().start_ray_processes()  # type: ignore[no-untyped-call]  # Ray's own
        store: Any = self.get_gcs_client()  # type: ignore[no-untyped-call]  # Ray's own
        deadline = time.monotonic() + self._start_timeout_s
        while time.monotonic() < deadline:
            if any(self.dead_processes()):  # type: ignore[no-untyped-call]  # Ray's own
                self.end(is_graceful=False)
                raise RayletEndedError("the raylet ended while it started")
            if self._is_broken_off():
                self.end(is_graceful=False)
                raise RayletEndedError("the server ended while Ray started")
            with suppress(RayError):
                if store.get_all_node_info(timeout=_LOOK_S):
                    break
            time.sleep(_PAUSE_S)
        # The raylet has forked them, and on a busy machine they are not yet what they will be.
        deadline = time.monotonic() + _AGENTS_TIMEOUT_S
        while len(self._agents) < _AGENTS and time.monotonic() < deadline:
            self.hold_agents()
            time.sleep(_PAUSE_S)

    def hold_agents(self) -> None:
        """Let those of the raylet's agents that run sleep until `wake_agents`.

        Those of a Ray that other processes use only stand back, since the process that could wake
        them may be killed.
        """
        known = {agent.pid for agent in self._agents}
        for pid in set(agents_in(Path(self._session_dir))) - known:
            agent = Process.of(pid)
            self._agents.append(agent)
            _stand_back(pid)
            if not self._is_shared:
                agent.signal(signal.SIGSTOP)

    def wake_agents(self) -> None:
        """Let the raylet's agents go on: Ray's metrics come a second later."""
        for agent in self._agents:
            agent.signal(signal.SIGCONT)

    def start_api_server(
        self,
        *,
        include_dashboard: bool | None,  # noqa: ARG002 -- Ray's own
        raise_on_failure: bool,  # noqa: ARG002 -- Ray's own
    ) -> None:
        """Do nothing: the dashboard is started after the policy answers."""
        self._webui_url = None

    def start_dashboard(self, environment: dict[str, str]) -> None:
        """Start the dashboard with the pages that a server fills, and wait until it answers.

        Where that fails, such as where Ray has other names for the pages, all of them are loaded.

        Args:
            environment: the variables of its processes.

        Raises:
            RayletEndedError: if Ray ends meanwhile, or the start was broken off.
            Exception: Ray's own, if the dashboard does not start.
        """
        process = self._start_pages(environment)
        store: Any = self.get_gcs_client()  # type: ignore[no-untyped-call]  # Ray's own
        deadline = time.monotonic() + _DASHBOARD_TIMEOUT_S
        while process.poll() is None and time.monotonic() < deadline:
            with suppress(RayError):
                if store.internal_kv_get(b"dashboard", b"dashboard", timeout=_LOOK_S) is not None:
                    return
            if self._has_lost_needed() or self._is_broken_off():
                raise RayletEndedError("Ray has ended while the dashboard started")
            time.sleep(_POLL_S)
        process.kill()
        del self.all_processes[_DASHBOARD]
        super().start_api_server(include_dashboard=True, raise_on_failure=True)

    def _start_pages(self, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        # Ray annotates some of these, and not as it takes them.
        node: Any = self
        start: Any = start_ray_process
        output, errors = node.get_log_file_names(
            _DASHBOARD, unique=True, create_out=True, create_err=True
        )
        parameters = self._ray_params
        command = [
            *(sys.executable, "-m", "ray.dashboard.dashboard"),
            f"--host={parameters.dashboard_host}",
            f"--port={parameters.dashboard_port}",
            f"--gcs-address={node.gcs_address}",
            f"--cluster-id-hex={node.cluster_id.hex()}",
            f"--node-ip-address={node.node_ip_address}",
            f"--temp-dir={node.temp_dir}",
            f"--log-dir={node.get_logs_dir_path()}",
            f"--session-dir={node.get_session_dir_path()}",
            f"--stdout-filepath={output}",
            f"--stderr-filepath={errors}",
            f"--modules-to-load={','.join(_PAGES)}",
        ]
        started = start(
            command,
            _DASHBOARD,
            fate_share=node.kernel_fate_share,
            env_updates=environment,
            stdout_file=subprocess.DEVNULL,
            stderr_file=subprocess.DEVNULL,
        )
        self.all_processes[_DASHBOARD] = [started]
        _stand_back(started.process.pid)
        process: subprocess.Popen[bytes] = started.process
        return process

    def needed_pids(self) -> dict[str, int]:
        """Return the ids of the processes without which no Ray goes on, by Ray's names of them."""
        return {
            kind: known.process.pid
            for kind in _NEEDED
            for known in self.all_processes.get(kind, ())
        }

    def _has_lost_needed(self) -> bool:
        """Return whether a process without which no Ray goes on has ended."""
        dead: Any = self.dead_processes()  # type: ignore[no-untyped-call]  # Ray's own
        return any(kind in _NEEDED for kind, _ in dead)

    def end(self, *, is_graceful: bool) -> None:
        """End Ray's processes.

        Args:
            is_graceful: let them end by themselves first, which a raylet can't without the others.
        """
        self.wake_agents()
        self.kill_all_processes(check_alive=False, allow_graceful=is_graceful)
        self.held_ports.close()


def _stand_back(pid: int) -> None:
    """Let a process, and those that it starts from now on, go behind others."""
    with suppress(OSError):
        own = os.getpriority(os.PRIO_PROCESS, pid)
        os.setpriority(os.PRIO_PROCESS, pid, own + _NICENESS)


def start_lean_node(
    options: dict[str, Any],
    *,
    folder: str,
    is_shared: bool,
    environment: dict[str, str],
    start_timeout_s: float,
    is_broken_off: Callable[[], bool],
) -> LeanNode:
    """Start Ray's processes.

    Args:
        options: those that `ray.init` takes too.
        folder: the folder of Ray's logs and sockets.
        is_shared: whether Ray goes on where the process that starts it is killed.
        environment: the variables of its workers; a runtime environment would cost each replica a
            second worker.
        start_timeout_s: the longest wait for the raylet, in seconds.
        is_broken_off: says whether nobody needs this Ray any more.
    """
    # Ray's annotations differ from the arguments that it takes.
    known: dict[str, Any] = {
        **options,
        "include_log_monitor": False,
        "no_monitor": True,
        "temp_dir": folder,
        "env_vars": environment,
        "_system_config": {
            **options.get("_system_config", {}),
            "preload_python_modules": list(_PRELOADED),
            # Workers start with the raylet, not when the first driver has connected to it.
            "enable_worker_prestart": True,
            "task_events_shutdown_flush_timeout_ms": _FLUSH_TIMEOUT_MS,
        },
    }
    with ExitStack() as stack:
        # Bound and not listening, a port is given to no other program, and the agent can take it.
        for argument in _AGENTS_PORTS:
            sockets = [stack.enter_context(opened) for opened in bound_sockets("", 0)]
            known[argument] = sockets[0].getsockname()[1]
        node = LeanNode(
            RayParams(**known),
            is_shared=is_shared,
            start_timeout_s=start_timeout_s,
            is_broken_off=is_broken_off,
        )
        node.held_ports = stack.pop_all()
    return node
