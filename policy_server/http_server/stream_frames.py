"""The frames of a web socket without ASGI between the connection and the application.

The handshake is ASGI's. An application that finds the extension `FRAMES` in its scope may listen
to the frames instead of receiving them: each is one call, without a queue and without a task.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import Any, Protocol

# As ASGI has it.
Message = MutableMapping[str, Any]

__all__ = ["FRAMES", "FrameConnection", "FrameListener"]

# The extension of an ASGI scope whose value is a `FrameConnection`.
FRAMES = "policy_server.frames"


class FrameListener(Protocol):
    """The application's end of a web socket; it raises nothing."""

    def take(self, message: Message) -> None:
        """Take a frame.

        Args:
            message: as ASGI has it: `text` or `bytes`.
        """

    def go_on(self) -> None:
        """Write on: the client has read what was written, or the connection is lost."""


class FrameConnection(Protocol):
    """The server's end of a web socket whose handshake was accepted."""

    def listen(self, listener: FrameListener) -> None:
        """Hand over each frame from now on, those first that came before.

        That the connection ends is still told by ASGI's `receive`.

        Args:
            listener: takes the frames, until the connection is lost.
        """

    @property
    def is_writable(self) -> bool:
        """Return whether the client reads as fast as is written, or has gone."""

    def write_frames(self, frames: Sequence[tuple[bytes, bool]]) -> None:
        """Write frames, all by one write; a connection that is closed takes none.

        Args:
            frames: the payload of each, and whether it is text.
        """

    def pause_frames(self) -> None:
        """Read no more frames: those of the last segment may still come."""

    def resume_frames(self) -> None:
        """Read frames again."""
