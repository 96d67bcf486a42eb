"""One run: the policies, their answers, the server, its traffic and its samples."""

from __future__ import annotations

import asyncio
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import orjson

from benchmarks.failures import BenchmarkError
from benchmarks.processes import RunningServer, free_ports, started
from benchmarks.progress import say
from benchmarks.soak.expected import Expected, find_expected
from benchmarks.soak.home import CHANGED, fill_home, write_other_version
from benchmarks.soak.manners import HEADER_TIMEOUT_S
from benchmarks.soak.mistakes import MAX_BATCH_ROWS
from benchmarks.soak.raw import connected, encode_request
from benchmarks.soak.record import Record
from benchmarks.soak.samples import Meter, Sample
from benchmarks.soak.scenarios import scenarios
from benchmarks.soak.traffic import Traffic
from benchmarks.soak.versions import ADMIN_KEY, Reloads
from benchmarks.subjects import KEY, OBSERVATION, ROOT
from benchmarks.workplace import clean_environment

__all__ = ["Options", "soak"]

# So short that sessions and episodes end within a run.
_IDLE_S = 20
_START_S = 600.0
_POLL_S = 0.2
_ROUND_S = 55.0
_LEAST_ROUNDS = 9
# More than the server remembers.
_HEADS, _AT_ONCE = 9_000, 50
# More than asyncio's pool takes, which has four threads more than there are cores.
_MOST_THREADS = 32


@dataclass(frozen=True)
class Options:
    """How a run is made.

    Attributes:
        backend: `local` or `ray`.
        minutes: how long there is traffic.
        clients: how many ask at once.
        seed: of what they draw.
    """

    backend: str
    minutes: float
    clients: int
    seed: int


@dataclass(frozen=True)
class _Place:
    """Where a server has its files, and what it listens on."""

    scratch: Path
    backend: str
    port: int
    metrics_port: int
    dashboard_port: int

    @property
    def temporary(self) -> Path:
        """Its folder of temporary files, where Ray's lies."""
        return self.scratch / "tmp"


async def soak(options: Options, scratch: Path, machine: Mapping[str, str]) -> Record:
    """Start a server, send it mixed traffic, and end it.

    Args:
        options: how.
        scratch: an empty folder; `server.log` is the server's log afterwards.
        machine: what the run is measured on.

    Returns:
        The run.

    Raises:
        BenchmarkError: if the server does not start, or ends by itself.
    """
    say("asking the policies one at a time")
    archive, expected = await _prepare(options, scratch)
    place = _Place(scratch, options.backend, *free_ports(3))
    chosen = scenarios(Reloads(archive))
    traffic = Traffic(place.port, place.metrics_port, expected, chosen, options.clients)
    with _served(place) as server:
        await _wait(server, place)
        meter = Meter(
            server,
            place.temporary,
            options.backend == "ray",
            lambda: traffic.counts.total,
        )
        rounds = max(_LEAST_ROUNDS, round(60 * options.minutes / _ROUND_S))
        for number in range(rounds):
            async with meter.running(), traffic.flowing(options.seed * 1_000_000 + number):
                await asyncio.sleep(60 * options.minutes / rounds)
            _tell(await meter.take_quiet(), traffic)
    return Record(
        machine,
        options.backend,
        options.minutes,
        options.clients,
        traffic.counts.by_scenario(chosen),
        tuple(traffic.counts.troubles),
        tuple(meter.samples),
    )


async def _prepare(options: Options, scratch: Path) -> tuple[Path, Expected]:
    home, other, archive = scratch / "home", scratch / "other", scratch / "other.zip"
    fill_home(home)
    fill_home(other, [CHANGED])
    await asyncio.to_thread(write_other_version, archive, scratch)
    shutil.copy(archive, other / f"{CHANGED}.zip")
    return archive, await find_expected(home, other, options.seed)


@contextmanager
def _served(place: _Place) -> Iterator[RunningServer]:
    place.temporary.mkdir()
    environment = {
        **clean_environment(),
        "TMPDIR": str(place.temporary),
        "POLICY_SERVER_HOME": str(place.scratch / "home"),
        "POLICY_SERVER_BACKEND": place.backend,
        "POLICY_SERVER_METRICS_PORT": str(place.metrics_port),
        "POLICY_SERVER_METRICS_HOST": "127.0.0.1",
        "POLICY_SERVER_DASHBOARD_PORT": str(place.dashboard_port),
        "POLICY_SERVER_ADMIN_KEY": ADMIN_KEY,
        "POLICY_SERVER_MAX_BATCH_ROWS": str(MAX_BATCH_ROWS),
        "POLICY_SERVER_HEADER_TIMEOUT_S": str(HEADER_TIMEOUT_S),
        "POLICY_SERVER_SESSION_IDLE_S": str(_IDLE_S),
        "POLICY_SERVER_EPISODE_IDLE_S": str(_IDLE_S),
    }
    command = [sys.executable, "-m", "uvicorn", "app:app", "--port", str(place.port)]
    log = place.scratch / "server.log"
    with started(command, environment=environment, folder=ROOT, log=log) as server:
        yield server


async def _wait(server: RunningServer, place: _Place) -> None:
    """Wait until the policies answer and the client library is generated."""
    deadline = time.monotonic() + _START_S
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{place.port}",
        headers={"access-token": KEY},
        timeout=_START_S,
        trust_env=False,
    ) as http:
        for path in ("/readyz", "/clients/python"):
            while not await _is_answered(http, path):
                server.check_alive()
                if time.monotonic() > deadline:
                    raise BenchmarkError(f"{path}: not answered within {_START_S:g} s")
                await asyncio.sleep(_POLL_S)
        # A pool of threads grows as far as it is needed at once: it is filled here.
        page = f"http://127.0.0.1:{place.metrics_port}/metrics"
        await asyncio.gather(*(_is_answered(http, page) for _ in range(_MOST_THREADS)))
    await _fill_memory_of_heads(place.port)


async def _fill_memory_of_heads(port: int) -> None:
    """Send so many heads that the server's memory of them, which is bounded, is full."""
    body = orjson.dumps(OBSERVATION)
    async with connected(port) as link:
        for number in range(_HEADS // _AT_ONCE):
            heads = [{"x-filling": f"{number}/{each}" * 60} for each in range(_AT_ONCE)]
            # A head is remembered when it comes for the second time.
            for _ in range(2):
                await link.send(
                    b"".join(encode_request("/predict", body, headers=each) for each in heads)
                )
                for _ in heads:
                    await link.answer()


async def _is_answered(http: httpx.AsyncClient, path: str) -> bool:
    try:
        return (await http.get(path)).is_success
    except httpx.TransportError:
        return False


def _tell(sample: Sample, traffic: Traffic) -> None:
    roles = ", ".join(
        f"{role} {each.memory_mb:.1f} MB {each.files} files {each.threads} threads "
        f"{each.processes} processes"
        for role, each in sorted(sample.roles.items())
    )
    store = "" if sample.store_mb is None else f", object store {sample.store_mb:.2f} MB"
    say(
        f"{sample.seconds:.0f} s: {sample.requests:,} requests, "
        f"{traffic.counts.failed.total()} failed; {roles}; folder {sample.folder_mb:.2f} MB{store}"
    )
    for told in traffic.counts.troubles:
        say(f"  {told}")
