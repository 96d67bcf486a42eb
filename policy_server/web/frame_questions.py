"""A frame of a stream until it is answered, whichever route it came by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from starlette.types import Message

from policy_server.client_limits import NO_SHARE, Share
from policy_server.policy import LARGEST_SEED, AnswerKind
from policy_server.web.frame_timing import Stamp
from policy_server.web.pending import Pending

__all__ = ["FrameQuestion", "FrameQuestions", "FrameSeeds"]


@dataclass(eq=False, slots=True)
class FrameQuestion:
    """A frame that is not answered yet.

    Attributes:
        is_text: whether it was JSON.
        received: when it came, by `time.perf_counter`.
        answer: the pending answer, the answer itself, or the status and the detail of the error.
        stamp: the client's own, which the answer repeats; None for none.
        observations: how many it holds.
        share: the frame's, until it is answered.
    """

    is_text: bool
    received: float
    answer: Pending | bytes | tuple[int, object]
    stamp: Stamp | None = None
    observations: int = 1
    share: Share = NO_SHARE


class FrameQuestions(Protocol):
    """Turns a connection's frames into questions.

    Attributes:
        request_id: the name of the connection in the logs.
        asked: how many frames there were that are no reset.
    """

    request_id: str
    asked: int

    def ask(self, message: Message) -> FrameQuestion:
        """Start to answer a frame; its mistakes wait for their turn like an answer."""

    def end_episode(self) -> None:
        """Forget the memory of the episode, and the versions that answer it."""

    def failure(self, error: Exception) -> tuple[int, object]:
        """Return the status and the detail of the error about a frame."""


class FrameSeeds:
    """The seeds of a stream's frames: frame i of an episode is drawn with the first one plus i."""

    def __init__(self, kind: AnswerKind, first: int | None) -> None:
        """Own the seed of the running episode.

        Args:
            kind: the kind of the stream's answers; only a draw has a seed.
            first: draws the first frame; None for independent draws.
        """
        self._is_drawn = kind == "predict"
        self._first = first
        self._begun = 0

    def of(self, frame: int) -> int | None:
        """Return the seed of a frame; None for an independent draw.

        Args:
            frame: its number in the stream, from 0; resets don't count.
        """
        if self._first is None or not self._is_drawn:
            return None
        return (self._first + frame - self._begun) % (LARGEST_SEED + 1)

    def begin(self, frame: int, seed: int | None) -> None:
        """Begin the seeds of another episode.

        Args:
            frame: the number of its first frame.
            seed: draws that frame; None for the seed of the last episode's first frame.
        """
        self._begun = frame
        if seed is not None:
            self._first = seed
