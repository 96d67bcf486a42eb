"""A replica's side: what comes without a proof or breaks the rules ends its connection alone."""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from policy_server.backends.ray.call_frames import (
    HEADER,
    MAX_BODY_BYTES,
    Body,
    FrameKind,
    answer_frame,
    bare_frame,
    call_frame,
    outputs_of,
)
from policy_server.backends.ray.call_proofs import client_handshake
from policy_server.backends.ray.call_server import CallServer, failure_of
from policy_server.backends.ray.replica_list import ReplicaAddress
from policy_server.errors import ModelError, PolicyFailedError
from policy_server.policy import PolicyInputs, PolicyOutputs
from tests.support.call_replicas import APPLICATION, Infer, doubled, inputs_of, number_in
from tests.support.waiting import turns, until

TIMEOUT_S = 20.0


class Peer:
    """A program that speaks to a replica byte by byte."""

    def __init__(
        self, address: ReplicaAddress, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._address = address
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, address: ReplicaAddress) -> Peer:
        return cls(address, *await asyncio.open_connection(address.host, address.port))

    async def prove(self) -> None:
        """Prove the key, as a web process does."""
        address = self._address
        handshake = client_handshake(address.key, address.application, address.replica)
        _, needed = next(handshake)
        with suppress(StopIteration):
            while True:
                message, needed = handshake.send(await self.read(needed))
                self.writer.write(message)

    async def read(self, count: int) -> bytes:
        return await asyncio.wait_for(self.reader.readexactly(count), TIMEOUT_S)

    async def frame(self) -> tuple[int, int, Body]:
        """Return the kind, the number and the body of the next frame."""
        length, kind, number = HEADER.unpack(await self.read(HEADER.size))
        return kind, number, memoryview(await self.read(length))

    async def is_shown_the_door(self) -> bool:
        """Return whether the connection ends without another byte."""
        try:
            return await asyncio.wait_for(self.reader.read(1), TIMEOUT_S) == b""
        except ConnectionError:
            return True

    def close(self) -> None:
        self.writer.close()


@asynccontextmanager
async def replica(
    infer: Infer = doubled, *, proof_timeout_s: float = TIMEOUT_S
) -> AsyncIterator[ReplicaAddress]:
    """Have a replica take calls."""
    server = CallServer(
        infer, application=APPLICATION, replica="r", proof_timeout_s=proof_timeout_s
    )
    try:
        yield await server.listen("127.0.0.1")
    finally:
        await server.aclose()


@asynccontextmanager
async def proved(address: ReplicaAddress) -> AsyncIterator[Peer]:
    """Connect to a replica, and prove the key."""
    peer = await Peer.connect(address)
    try:
        await peer.prove()
        yield peer
    finally:
        peer.close()


def untouched(_: PolicyInputs) -> PolicyOutputs:
    raise AssertionError("nothing of it may be computed")


def refusals(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the reasons of the warnings in the log."""
    return [
        record.__dict__["reason"]
        for record in caplog.records
        if record.levelno == logging.WARNING and record.message == "calls_disconnected"
    ]


async def check_it_still_answers(address: ReplicaAddress) -> None:
    """Ask the replica as a web process does."""
    async with proved(address) as peer:
        peer.writer.write(b"".join(call_frame(5, inputs_of(4))))
        kind, number, body = await peer.frame()
    assert (kind, number, number_in(outputs_of(body))) == (FrameKind.ANSWER, 5, 8.0)


CALL = b"".join(call_frame(1, inputs_of(3)))
STRANGERS = {
    "nothing": b"",
    "a wrong proof": b"PSCALLS1" + b"x" * 64,
    "the end of a proof": b"PSCALLS1" + b"x" * 20,
    "HTTP": b"GET / HTTP/1.1\r\nhost: x\r\n\r\n" * 8,
    "a call": CALL * 3,
    "much": b"\xff" * 1_000_000,
}


@pytest.mark.parametrize("given", STRANGERS.values(), ids=STRANGERS)
async def test_stranger_is_shown_the_door(given: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with replica(untouched) as address:
        peer = await Peer.connect(address)
        await peer.read(40)
        with suppress(ConnectionError):
            peer.writer.write(given)
            peer.writer.write_eof()
        is_out = await peer.is_shown_the_door()
        peer.close()
        await until(lambda: len(caplog.records) > 0 or not given or len(given) < 72)

    assert is_out
    if len(given) >= 72:
        assert len(refusals(caplog)) == 1


HOSTILE = {
    "a kind that there is not": HEADER.pack(0, 77, 1),
    "an answer": b"".join(answer_frame(1, doubled(inputs_of(1)))),
    "a pong": b"".join(bare_frame(FrameKind.PONG, 1)),
    "a ping with a body": HEADER.pack(3, FrameKind.PING, 1) + b"abc",
    "an endless frame": HEADER.pack(MAX_BODY_BYTES + 1, FrameKind.CALL, 1),
    "the longest length": HEADER.pack(2**32 - 1, FrameKind.CALL, 1),
    "an empty call": HEADER.pack(0, FrameKind.CALL, 1),
    "sizes of more than there is": HEADER.pack(24, FrameKind.CALL, 1)
    + struct.pack("<IIIIBBBB4x", 2**32 - 1, 2**32 - 1, 0, 0, 4, 0, 0, 0),
    "a long call that is none": HEADER.pack(1_000_000, FrameKind.CALL, 1) + b"\7" * 1_000_000,
}


@pytest.mark.parametrize("given", HOSTILE.values(), ids=HOSTILE)
async def test_frame_that_breaks_the_rules_ends_its_connection_with_one_line(
    given: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with replica(untouched) as address, proved(address) as peer:
        peer.writer.write(given)

        assert await peer.is_shown_the_door()
        await until(lambda: refusals(caplog))
        assert len(refusals(caplog)) == 1


async def test_others_are_answered_whatever_one_sends() -> None:
    async with replica() as address:
        for given in HOSTILE.values():
            async with proved(address) as peer:
                peer.writer.write(given)
                assert await peer.is_shown_the_door()
        await check_it_still_answers(address)


async def test_call_of_a_connection_that_was_ended_holds_up_no_other() -> None:
    async with replica() as address, proved(address) as known, proved(address) as peer:
        # Both wait to be read: the call that came before the bad frame is in the queue then.
        known.writer.write(b"".join(b"".join(call_frame(n, inputs_of(3))) for n in (1, 2, 3)))
        peer.writer.write(CALL + HEADER.pack(0, 77, 1))
        numbers = [(await known.frame())[1] for _ in range(3)]
        assert await peer.is_shown_the_door()
        await check_it_still_answers(address)

    assert numbers == [1, 2, 3]


async def test_bytes_at_random_after_the_proof_end_a_connection_and_nothing_else() -> None:
    noise = np.random.default_rng(3)
    async with replica() as address:
        for _ in range(100):
            async with proved(address) as peer:
                # A kind that there is not, whatever the length.
                given = bytearray(noise.bytes(200))
                given[:5] = struct.pack("<IB", int(noise.integers(0, 2**32)), 9)
                peer.writer.write(given)
                peer.writer.write_eof()
                assert await peer.is_shown_the_door()
        await check_it_still_answers(address)


async def test_call_is_answered_wherever_its_bytes_are_cut() -> None:
    async with replica() as address, proved(address) as peer:
        for cut in range(1, len(CALL)):
            peer.writer.write(CALL[:cut])
            await turns(3)
            peer.writer.write(CALL[cut:])
            _, number, body = await peer.frame()
            assert (number, number_in(outputs_of(body))) == (1, 6.0)


async def test_long_call_is_answered_among_short_ones_in_one_piece() -> None:
    long = b"".join(call_frame(2, inputs_of(9, rows=50_000)))
    async with replica() as address, proved(address) as peer:
        peer.writer.write(CALL + long + CALL[:20])
        first, second = await peer.frame(), await peer.frame()
        peer.writer.write(CALL[20:])
        third = await peer.frame()

    assert [number for _, number, _ in (first, second, third)] == [1, 2, 1]
    assert len(outputs_of(second[2])) == 50_000


async def test_half_a_call_delays_no_other_connection() -> None:
    async with replica() as address, proved(address) as peer:
        peer.writer.write(b"".join(call_frame(2, inputs_of(9, rows=50_000)))[:300_000])
        await check_it_still_answers(address)


async def test_connection_without_a_proof_is_ended_in_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with replica(untouched, proof_timeout_s=0.05) as address:
        peer = await Peer.connect(address)
        await peer.read(40)

        assert await peer.is_shown_the_door()
        peer.close()

    assert refusals(caplog) == ["no proof in time"]


async def test_many_connections_without_a_proof_keep_nobody_out_that_has_one() -> None:
    async with replica() as address, proved(address) as known:
        silent = [await Peer.connect(address) for _ in range(80)]
        ended = [peer for peer in silent[70:] if await peer.is_shown_the_door()]
        known.writer.write(CALL)
        _, number, _ = await known.frame()
        for peer in silent:
            peer.close()
        await turns(100)
        await check_it_still_answers(address)

    assert len(ended) == 10
    assert number == 1


async def test_call_that_is_withdrawn_before_its_turn_is_not_computed() -> None:
    asked: list[float] = []

    def infer(inputs: PolicyInputs) -> PolicyOutputs:
        asked.append(float(inputs.observations[0, 0]))
        return doubled(inputs)

    async with replica(infer) as address, proved(address) as peer:
        frames = [*call_frame(1, inputs_of(1)), *call_frame(2, inputs_of(2))]
        frames += [*bare_frame(FrameKind.CANCEL, 2), *call_frame(3, inputs_of(3))]
        peer.writer.write(b"".join(frames))
        numbers = [(await peer.frame())[1] for _ in range(2)]

    assert numbers == [1, 3]
    assert asked == [1.0, 3.0]


async def test_ping_is_answered_before_the_calls_that_wait() -> None:
    async with replica() as address, proved(address) as peer:
        frames = [*call_frame(1, inputs_of(1)), *call_frame(2, inputs_of(2))]
        peer.writer.write(b"".join([*frames, *bare_frame(FrameKind.PING, 3)]))
        kinds = [(await peer.frame())[0] for _ in range(3)]

    assert kinds == [FrameKind.PONG, FrameKind.ANSWER, FrameKind.ANSWER]


async def test_who_reads_no_answers_is_read_no_further() -> None:
    answered = 0

    def infer(inputs: PolicyInputs) -> PolicyOutputs:
        nonlocal answered
        answered += 1
        answer = doubled(inputs)
        return PolicyOutputs(np.tile(answer.actions, 10_000), answer.log_probability, None)

    calls = 150
    async with replica(infer) as address, proved(address) as peer:
        for number in range(calls):
            peer.writer.write(b"".join(call_frame(number, inputs_of(1, rows=10))))
        before = -1
        while before != answered:
            before = answered
            await turns(300)
        for _ in range(calls):
            await peer.frame()
        await check_it_still_answers(address)

    # The others waited until answers were read.
    assert 0 < before < calls / 3
    assert answered == calls + 1


async def test_call_that_is_watched_is_computed_as_one_that_is_asked_again() -> None:
    server = CallServer(untouched, infer_apart=doubled, application=APPLICATION, replica="r")
    address = await server.listen("127.0.0.1")
    watch = b"".join(bare_frame(FrameKind.WATCH, 5))
    try:
        async with proved(address) as peer:
            peer.writer.write(watch + b"".join(call_frame(5, inputs_of(4))))
            frames = [await peer.frame() for _ in range(2)]
            peer.writer.write(b"".join(call_frame(6, inputs_of(4))))
            unwatched = await peer.frame()
    finally:
        await server.aclose()

    assert [kind for kind, *_ in frames] == [FrameKind.BEGUN, FrameKind.ANSWER]
    assert number_in(outputs_of(frames[1][2])) == 8.0
    assert unwatched[0] == FrameKind.ERROR


async def test_unix_socket_is_taken_away_at_the_end(tmp_path: Path) -> None:
    server = CallServer(doubled, application=APPLICATION, replica="r")

    address = await server.listen(folder=tmp_path)
    listed = sorted(str(path) for path in tmp_path.iterdir())
    await server.aclose()

    assert listed == [address.path, f"{address.path}-computes"]
    assert list(tmp_path.iterdir()) == []


def test_address_does_not_show_its_key() -> None:
    address = ReplicaAddress("app", "r", "127.0.0.1", 1, "", b"secret" * 5)

    assert "secret" not in repr(address)


def test_error_that_is_raised_again_and_again_is_told_once_each_time() -> None:
    kept = PolicyFailedError("the policy can't be loaded")
    kept.__cause__ = ModelError("no weights")

    for _ in range(3):
        answer = failure_of(kept)

    assert answer is kept
    assert "".join(kept.__notes__).count("no weights") == 1
