"""A cable between two hosts that delays and loses what goes through it.

It is a program, `python -m tests.faults.cable NAMESPACE NAMESPACE DEVICE DEVICE`, since clients
beside it would hold it up. Each line that it reads is a state of the cable: how long a frame takes,
in seconds, and the share of frames that are lost.
"""

from __future__ import annotations

import fcntl
import os
import random
import select
import struct
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.processes import Child, child

if TYPE_CHECKING:
    from benchmarks.two_hosts import Namespaces

__all__ = ["Cable"]

_READY = "ready"
_SET_DEVICE = 0x400454CA
_TAP, _NO_HEADER = 0x0002, 0x1000
_LONGEST_FRAME = 65536
_MOST_FRAMES = 64


class Cable:
    """A cable, which a fault changes while it is laid."""

    def __init__(self) -> None:
        """Own the program, from `laid` to the end of its block."""
        self._program: Child | None = None

    @contextmanager
    def laid(self, namespaces: Namespaces) -> Iterator[None]:
        """Join two network namespaces; see `two_hosts`."""
        from benchmarks.two_hosts import LINKS

        words = (sys.executable, "-m", "tests.faults.cable", *namespaces, *LINKS)
        with child(*words) as program:
            assert program.read_line() == _READY
            self._program = program
            yield

    def change(self, *, delay_s: float = 0.0, lost: float = 0.0) -> None:
        """Delay or lose frames from now on, in both directions.

        Args:
            delay_s: how long each takes, in seconds.
            lost: the share that is lost; 1 for all, without a word to anybody.
        """
        assert self._program is not None, "it is laid"
        self._program.tell(f"{delay_s} {lost}")


def _device(namespace: str, name: str) -> int:
    """Return a network device of a namespace, whose frames are read and written."""
    from benchmarks.two_hosts import entered

    with entered(Path("/run/netns", namespace)):
        device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(device, _SET_DEVICE, struct.pack("16sH", name.encode(), _TAP | _NO_HEADER))
    return device


class _Forwarding:
    """The frames that are on their way, and the state of the cable."""

    def __init__(self, first: int, second: int) -> None:
        """Own the two devices, as long as the program runs."""
        self._across = {first: second, second: first}
        self._waiting: deque[tuple[float, int, bytes]] = deque()
        self._delay_s = self._lost = 0.0

    def forward(self) -> None:
        """Forward frames until standard input ends."""
        typed = sys.stdin.fileno()
        while True:
            ready, _, _ = select.select([typed, *self._across], [], [], self._pause_s())
            if typed in ready:
                line = sys.stdin.readline()
                if not line:
                    return
                self._delay_s, self._lost = map(float, line.split())
            for device in ready:
                if device != typed:
                    self._take(device)
            self._send()

    def _pause_s(self) -> float | None:
        return max(self._waiting[0][0] - time.monotonic(), 0.0) if self._waiting else None

    def _take(self, device: int) -> None:
        due = time.monotonic() + self._delay_s
        for frame in _frames(device):
            if random.random() >= self._lost:  # noqa: S311 -- chance, not a secret
                self._waiting.append((due, self._across[device], frame))

    def _send(self) -> None:
        while self._waiting and self._waiting[0][0] <= time.monotonic():
            _, device, frame = self._waiting.popleft()
            # The other end is not up, or takes no more: a cable tells nobody.
            with suppress(OSError):
                os.write(device, frame)


def _frames(device: int) -> Iterator[bytes]:
    # None is left, or the device is not up yet.
    with suppress(OSError):
        for _ in range(_MOST_FRAMES):
            yield os.read(device, _LONGEST_FRAME)


def main() -> None:
    """Lay the cable, and say so."""
    namespaces, names = sys.argv[1:3], sys.argv[3:5]
    first, second = (_device(*end) for end in zip(namespaces, names, strict=True))
    sys.stdout.write(_READY + "\n")
    sys.stdout.flush()
    _Forwarding(first, second).forward()


if __name__ == "__main__":
    main()
