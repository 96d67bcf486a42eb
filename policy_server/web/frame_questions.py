"""A frame of a stream until it is answered, whichever route it came by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from starlette.types import Message

__all__ = ["FrameQuestion", "FrameQuestions", "Pending"]


class Pending(Protocol):
    """An answer that was asked for, and comes later."""

    async def fetch(self) -> bytes:
        """Wait for the JSON of the answer; a cancelled wait takes its questions out of the queue.

        Raises:
            PolicyServerError: if the policy can't answer.
        """

    def abandon(self) -> None:
        """Take the questions out of the queue: their answer is not wanted any more."""


@dataclass(eq=False, slots=True)
class FrameQuestion:
    """A frame that is not answered yet.

    Attributes:
        is_text: whether it was JSON.
        received: when it came, by `time.perf_counter`.
        answer: the pending answer, the answer itself, or the status and the detail of the error.
    """

    is_text: bool
    received: float
    answer: Pending | bytes | tuple[int, object]


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
