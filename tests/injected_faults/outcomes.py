"""The outcome of one fault, and the line that counts many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.injected_faults.layer import CHANGES, Fault, Faults, Kind

__all__ = ["COLUMNS", "CONNECTION_ENDED", "PROCESS_ENDED", "Outcome", "Step", "line_of"]

_GOOD = ("done all the same", "refused in one line")
_BAD = ("half replaced", "not told in one line", "not mended by the next try")
# Where memory is not given, libraries of the web process end it, or its connection.
_ENDS = CONNECTION_ENDED, PROCESS_ENDED = "connection ended", "process ended"
_KINDS = (*_GOOD, *_ENDS, *_BAD)
COLUMNS = ("what runs", "what fails", "faults", *_KINDS, "left behind")


@dataclass(frozen=True)
class Outcome:
    """The outcome of one fault.

    Attributes:
        fault: the operation that failed.
        kind: one of the columns.
        told: more about it.
        left_behind: files that no later run needs, and none removes.
    """

    fault: Fault
    kind: str
    told: str = ""
    left_behind: Sequence[str] = field(default=())

    @property
    def is_bad(self) -> bool:
        """Return whether this must not happen."""
        is_for_memory = bool(self.fault.kinds & Kind.ALLOCATE)
        return self.kind in _BAD or (self.kind in _ENDS and not is_for_memory)

    @property
    def is_reached(self) -> bool:
        """Return whether the operation came at all."""
        return self.kind in _KINDS


@dataclass(frozen=True)
class Step:
    """A server's step that is taken with one fault after the other.

    Attributes:
        outcomes: takes it in a folder, and yields the outcome of each fault.
        kinds: the operations that come in it.
    """

    outcomes: Callable[[Path, Faults], Iterator[Outcome]]
    kinds: Kind = CHANGES | Kind.READ | Kind.ALLOCATE


def line_of(name: str, fails: str, outcomes: Iterable[Outcome]) -> str:
    """Return a line of the table.

    Args:
        name: the command, or the deployment's step.
        fails: the faults in words.
        outcomes: theirs; those whose operation did not come are not counted.
    """
    reached = [item for item in outcomes if item.is_reached]
    kinds = Counter(item.kind for item in reached)
    left = sum(bool(item.left_behind) for item in reached)
    cells = (name, fails, len(reached), *(kinds[kind] for kind in _KINDS), left)
    return "| " + " | ".join(map(str, cells)) + " |"
