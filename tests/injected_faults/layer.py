"""The layer that makes one operation on files or memory fail, and its control."""

from __future__ import annotations

import enum
import errno
import mmap
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from tests.support.preloading import built

__all__ = ["CHANGES", "CONTROL", "Control", "Fault", "Faults", "Kind", "build_layer"]

CONTROL = "FAULT_CONTROL"
"""The variable that names the control file."""

_SOURCE = Path(__file__).with_name("layer.c")
# As `struct control` of layer.c.
_LAYOUT = struct.Struct("1024sIiqqqqqq")
_COUNTS = struct.Struct("qq")
_ALL_LATER = _NEVER = 2**40


class Kind(enum.IntFlag):
    """Operations on files, folders and memory, as layer.c numbers them."""

    OPEN = 1
    WRITE = 2
    SYNC = 4
    NAME = 8
    READ = 16
    ALLOCATE = 32


CHANGES = Kind.OPEN | Kind.WRITE | Kind.SYNC | Kind.NAME


@dataclass(frozen=True)
class Fault:
    """An operation that fails.

    Attributes:
        number: which one, from 1 on.
        kinds: the operations that count.
        error: the error number.
        is_lasting: whether all operations after it fail too, as on a full disk.
        least_bytes: only allocations of so many bytes or more count.
    """

    number: int
    kinds: Kind = CHANGES
    error: int = errno.ENOSPC
    is_lasting: bool = False
    least_bytes: int = 0


@dataclass(frozen=True)
class Faults:
    """Faults of one kind, each at another operation.

    Attributes:
        fault: one of them.
        every: the distance between the operations that fail.
    """

    fault: Fault
    every: int = 1

    @property
    def never(self) -> Fault:
        """Return a fault of this kind that does not come: the operations are counted."""
        return replace(self.fault, number=_NEVER)

    def each(self, operations: int) -> Iterator[Fault]:
        """Give the faults.

        Args:
            operations: how many operations there are.
        """
        for number in range(1, operations + 1, self.every):
            yield replace(self.fault, number=number)


class Control:
    """The file by which a test tells the layer in other processes what fails."""

    def __init__(self, path: Path) -> None:
        """Own the mapping of the file, which is made if need be; nothing fails at first."""
        self.path = path
        if not path.exists():
            path.write_bytes(bytes(_LAYOUT.size))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _LAYOUT.size)

    @classmethod
    def of_this_process(cls) -> Control:
        """Return the control of the layer that was loaded into this process."""
        return cls(Path(os.environ[CONTROL]))

    def arm(self, folder: Path, fault: Fault) -> None:
        """Count from 0, and let the operation fail that the fault names.

        Args:
            folder: only what lies in it counts, and allocations of all other processes.
            fault: the operation.
        """
        most = _ALL_LATER if fault.is_lasting else 1
        name = os.fsencode(folder.resolve())
        self.disarm()
        numbers = (fault.number, most, fault.least_bytes, os.getpid(), 0, 0)
        self._memory[:] = _LAYOUT.pack(name, fault.kinds, fault.error, *numbers)

    def disarm(self) -> None:
        """Let nothing fail; the counts stay."""
        self._memory[1024:1028] = bytes(4)

    @property
    def counted(self) -> int:
        """Return how many operations were counted."""
        return int(_COUNTS.unpack(self._memory[-_COUNTS.size :])[0])

    @property
    def failed(self) -> int:
        """Return how many operations failed."""
        return int(_COUNTS.unpack(self._memory[-_COUNTS.size :])[1])

    def variables(self, layer: Path) -> dict[str, str]:
        """Return the environment variables of a process that the layer is loaded into.

        Args:
            layer: the result of `build_layer`.
        """
        return {"LD_PRELOAD": str(layer), CONTROL: str(self.path)}


def build_layer(folder: Path) -> Path:
    """Compile the layer.

    Args:
        folder: where the library is written.
    """
    return built(_SOURCE, folder)
