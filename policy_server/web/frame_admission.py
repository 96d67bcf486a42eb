"""Whether the frames of a stream are let in: looked at again only when the keys have changed."""

from __future__ import annotations

from collections.abc import Callable

from policy_server.access_keys import KeyRing
from policy_server.client_limits import NO_SHARE, ClientLimits, Share

__all__ = ["FrameAdmission"]


class FrameAdmission:
    """Lets the frames of one stream in, as long as its handshake would be let in."""

    def __init__(
        self,
        keys: KeyRing,
        limits: ClientLimits,
        *,
        is_admitted: Callable[[], bool],
        begin: Callable[[], Share],
    ) -> None:
        """Own what is known of the client, until the keys change.

        Args:
            keys: those that are valid.
            limits: of all clients.
            is_admitted: whether the client's key is still valid.
            begin: counts a frame; see `ClientLimits.begin`.
        """
        self._keys = keys
        self._limits = limits
        self._ask_admitted = is_admitted
        self._begin = begin
        self._changes = -1
        self._is_admitted = self._is_limited = False

    def is_admitted(self) -> bool:
        """Return whether the client's key is still valid; asked before each frame."""
        if self._changes != self._keys.changes:
            self._changes = self._keys.changes
            self._is_admitted = self._ask_admitted()
            self._is_limited = self._limits.is_on
        return self._is_admitted

    def begin(self) -> Share:
        """Count a frame that was admitted.

        Raises:
            TooManyRequestsError: if the client has asked too much.
        """
        return self._begin() if self._is_limited else NO_SHARE
