"""How many connections each address has open, so that one client can't hold them all."""

from __future__ import annotations

from collections import Counter

from policy_server.client_limits import network_of

__all__ = ["AddressConnections"]


class AddressConnections:
    """The open connections of a process, by the addresses of its clients."""

    def __init__(self, most: int) -> None:
        """Own the counts, for as long as the process serves.

        Args:
            most: how many one address may have; 0 for any number.
        """
        self._most = most
        self._open: Counter[str] = Counter()

    def enter(self, client: tuple[str, int] | None) -> str:
        """Count a connection that was made.

        Args:
            client: the address and port of its other end; None where that has none.

        Returns:
            The address that it counts for, to be given to `leave`; empty where nothing is counted.
        """
        if not self._most or client is None:
            return ""
        address = network_of(client[0])
        self._open[address] += 1
        return address

    def is_beyond(self, address: str, *, spare: int = 0) -> bool:
        """Return whether an address has more connections than it may have.

        Args:
            address: as `enter` returned it.
            spare: so many more are not too many yet.
        """
        return bool(address) and self._open[address] > self._most + spare

    def leave(self, address: str) -> None:
        """Count a connection no more.

        Args:
            address: as `enter` returned it.
        """
        if address:
            self._open[address] -= 1
            if not self._open[address]:
                del self._open[address]

    def __len__(self) -> int:
        """Return how many addresses have connections that are counted."""
        return len(self._open)
