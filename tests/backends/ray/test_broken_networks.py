"""A network that breaks between a web process and a replica: no call is to blame for that."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import pytest

from policy_server.backends.ray import direct_calls
from policy_server.backends.ray.connected_replica import ConnectedReplica
from policy_server.backends.ray.direct_calls import ConnectionLostError
from policy_server.backends.ray.replica_list import ReplicaAddress
from policy_server.policy import PolicyInputs, PolicyOutputs
from tests.support.call_replicas import Replicas, connected, doubled, inputs_of, number_in
from tests.support.servers import free_port
from tests.support.waiting import turns, until

# After this a replica counts as hung.
HUNG_S = 0.05
# No machine has it, and no packet to it leaves this one.
NOWHERE = "255.255.255.255"


class Cable:
    """Carries what a web process and a replica say to each other, until it is broken.

    Attributes:
        address: the replica's, through the cable.
    """

    def __init__(self, address: ReplicaAddress) -> None:
        """Own the connections, from `laid` to the end of its block."""
        self.address = address
        self._there = address
        self._is_whole = asyncio.Event()
        self._is_whole.set()
        self._ends: list[asyncio.StreamWriter] = []
        self._joining: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def laid(self) -> AsyncIterator[None]:
        """Take connections, and carry them on."""
        async with await asyncio.start_server(self._join, "127.0.0.1", 0) as server:
            self.address = replace(self._there, port=server.sockets[0].getsockname()[1])
            yield
        # One may have been made of late.
        await turns()
        for task in self._joining:
            task.cancel()
        await asyncio.gather(*self._joining, return_exceptions=True)

    def fall_silent(self) -> None:
        """Carry nothing any more, until `reset`."""
        self._is_whole.clear()

    def reset(self) -> None:
        """End all connections; new ones are carried."""
        for end in self._ends:
            end.transport.abort()
        self._ends.clear()
        self._is_whole.set()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._joining.add(task)
        task.add_done_callback(self._joining.discard)
        ends = [writer]
        # Either end may be reset at any time.
        with suppress(OSError):
            try:
                there = await asyncio.open_connection(self._there.host, self._there.port)
                ends.append(there[1])
                self._ends += ends
                await asyncio.gather(self._carry(reader, there[1]), self._carry(there[0], writer))
            finally:
                for end in ends:
                    end.transport.abort()
                waits = [end.wait_closed() for end in ends]
                await asyncio.gather(*waits, return_exceptions=True)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            await self._is_whole.wait()
            writer.write(data)
        writer.close()


async def test_call_whose_connection_breaks_is_not_taken_to_hang(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(direct_calls, "_HUNG_S", HUNG_S)
    replicas = Replicas(doubled)
    cable = Cable(replicas.threads[0].address)
    outcomes: list[PolicyOutputs | Exception] = []
    told: list[PolicyInputs] = []
    async with cable.laid():
        replicas.listed = [cable.address]
        async with connected(replicas) as calls:
            calls.on_hang = told.append
            await calls.infer(inputs_of(1))
            cable.fall_silent()
            calls.ask(inputs_of(2), outcomes.append)
            await until(lambda: calls.capacity == 0)
            await asyncio.sleep(3 * HUNG_S)
            cable.reset()
            await until(lambda: outcomes)
            await until(lambda: calls.capacity == 1)
            answer = await calls.infer(inputs_of(2))

    assert [type(outcome) for outcome in outcomes] == [ConnectionLostError]
    assert number_in(answer) == 4
    assert told == []
    assert [record.msg for record in caplog.records if record.levelname == "ERROR"] == []


async def test_replica_behind_a_broken_connection_is_not_said_to_hang_where_another_one_answers(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(direct_calls, "_HUNG_S", HUNG_S)
    replicas = Replicas(doubled, doubled)
    cable = Cable(replicas.threads[0].address)
    told: list[PolicyInputs] = []
    async with cable.laid():
        replicas.listed[0] = cable.address
        async with connected(replicas) as calls:
            calls.on_hang = told.append
            await calls.infer(inputs_of(1))
            cable.fall_silent()
            answers = await asyncio.gather(*(calls.infer(inputs_of(n)) for n in range(6)))
            await until(lambda: calls.capacity == 1)
            await asyncio.sleep(3 * HUNG_S)
            cable.reset()
            await until(lambda: replicas.lost)
            await until(lambda: calls.capacity == 2)

    assert [number_in(answer) for answer in answers] == [2 * n for n in range(6)]
    assert told == []
    assert [record.msg for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.mark.parametrize("host", ["127.0.0.1", NOWHERE])
async def test_replica_has_ended_where_its_machine_says_so(host: str) -> None:
    gone = ReplicaAddress("a", "r", host, free_port(), "", b"")

    replica = ConnectedReplica(gone, lambda *_: None, lambda _: None)

    assert await replica.has_ended(timeout_s=0.2) == (host == "127.0.0.1")


async def test_replica_that_can_be_reached_has_not_ended() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = ReplicaAddress("a", "r", "127.0.0.1", listening.getsockname()[1], "", b"")

        replica = ConnectedReplica(address, lambda *_: None, lambda _: None)

        assert not await replica.has_ended(timeout_s=5.0)
