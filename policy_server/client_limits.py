"""How much one client may ask, so that it takes nothing from the others.

A client is known by the name of its access key and by its address; each has limits of its own, and
a request has to keep those of both. Rates are held by token buckets: a client may ask a second's
worth at once, and a request that asks more than is left (a batch) is answered and paid off later.
"""

from __future__ import annotations

import functools
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address

from policy_server.access_keys import KeyRing
from policy_server.errors import TooManyRequestsError

__all__ = [
    "NO_SHARE",
    "Charge",
    "ClientLimit",
    "ClientLimits",
    "Share",
    "charge_nobody",
    "client_address",
    "client_name",
    "network_of",
]

Charge = Callable[[int], None]
"""Counts observations beside the one that each request counts as."""

# Of addresses that are remembered, the one that asked longest ago is forgotten first.
_MOST_ADDRESSES = 10_000
# A network gives a customer of its own at least so many leading bits (RFC 6177); the customer
# chooses the others.
_IPV6_HOST_BITS = 64
_LONGEST_ADDRESS = 64
# A client that waited so long may ask again, whatever it owes still.
_LONGEST_WAIT_S = 86_400


@dataclass(frozen=True)
class ClientLimit:
    """How much a client may ask.

    Attributes:
        max_rate: observations a second; a request of another kind counts as one. 0 for any number.
        max_in_flight: requests and frames of streams that are being answered at a time. 0 for any
            number.
    """

    max_rate: float = 0.0
    max_in_flight: int = 0

    @property
    def is_on(self) -> bool:
        """Return whether it limits anything."""
        return self.max_rate > 0 or self.max_in_flight > 0


class Share:
    """The part of its client's limits that a request takes, until its answer is sent."""

    __slots__ = ("_accounts",)

    def __init__(self, accounts: Sequence[_Account]) -> None:
        """Own a place among the requests in flight of some accounts, until `end`.

        Args:
            accounts: those of the key and of the address.
        """
        self._accounts = accounts

    def charge(self, observations: int) -> None:
        """Count more observations than the one that each request counts as.

        Args:
            observations: how many more; -1 of a team without agents gives nothing back.
        """
        for account in self._accounts:
            account.tokens -= max(0, observations)

    def refund(self) -> None:
        """Let the request count as no observation."""
        for account in self._accounts:
            account.tokens += 1

    def end(self) -> None:
        """Give the places back; more than once does nothing."""
        for account in self._accounts:
            account.in_flight -= 1
        self._accounts = ()


NO_SHARE = Share(())
"""The share of a request that no limit is for."""


def charge_nobody(observations: int) -> None:
    """Count nothing, where no client is limited.

    Args:
        observations: how many.
    """


class _Account:
    """The observations and the requests in flight of one client."""

    __slots__ = ("_limit", "in_flight", "kind", "refilled", "subject", "tokens")

    def __init__(self, kind: str, subject: str, limit: ClientLimit, now: float) -> None:
        self.kind = kind
        self.subject = subject
        self.in_flight = 0
        self.refilled = now
        self._limit = limit
        self.tokens = self._burst

    @property
    def _burst(self) -> float:
        return max(self._limit.max_rate, 1.0)

    def change(self, limit: ClientLimit) -> None:
        if limit != self._limit:
            self._limit = limit
            self.tokens = min(self.tokens, self._burst)

    def check(self, now: float) -> None:
        """Refuse a request that would be one too many."""
        limit = self._limit
        if limit.max_in_flight and self.in_flight >= limit.max_in_flight:
            raise TooManyRequestsError(
                f"{self.subject}: {self.in_flight} requests are being answered already, the most "
                "at a time; try again when one is answered",
                reason=f"{self.kind}_in_flight",
            )
        if not limit.max_rate:
            return
        earned = (now - self.refilled) * limit.max_rate
        self.tokens = min(self.tokens + earned, self._burst)
        self.refilled = now
        if self.tokens < 1:
            wait_s = math.ceil(min(max(1, (1 - self.tokens) / limit.max_rate), _LONGEST_WAIT_S))
            raise TooManyRequestsError(
                f"{self.subject}: expected at most {limit.max_rate:g} observations a second, got "
                f"more; try again in {wait_s} s",
                reason=f"{self.kind}_rate",
                retry_after_s=wait_s,
            )

    def take(self) -> None:
        self.in_flight += 1
        self.tokens -= 1


class ClientLimits:
    """The limits of all clients of a web process. Used from one event loop."""

    def __init__(
        self,
        keys: KeyRing,
        *,
        of_key: ClientLimit = ClientLimit(),
        of_address: ClientLimit = ClientLimit(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Own the accounts of clients, for as long as the process runs.

        Args:
            keys: those that are valid; a key with limits of its own has them in place of `of_key`.
            of_key: the limits of each other key.
            of_address: the limits of each address.
            clock: tells seconds.
        """
        self._keys = keys
        self._of_key = of_key
        self._of_address = of_address
        self._clock = clock
        self._changes = -1
        self._key_accounts: dict[str, _Account] = {}
        self._addresses: OrderedDict[str, _Account] = OrderedDict()

    def __len__(self) -> int:
        """Return how many addresses are remembered."""
        return len(self._addresses)

    @property
    def is_on(self) -> bool:
        """Return whether any client is limited, as the keys are now."""
        self._follow_keys()
        return self._of_address.is_on or bool(self._key_accounts)

    def begin(self, key: str | None, address: str | None) -> Share:
        """Count a request and the observation in it, before it is answered.

        Args:
            key: the name of its access key; None where none let it in.
            address: the client's; None where it is not known, as on a UNIX socket.

        Returns:
            The request's share, to be ended when its answer is sent.

        Raises:
            TooManyRequestsError: if the key or the address has asked too much.
        """
        self._follow_keys()
        accounts = []
        if address is not None and self._of_address.is_on:
            accounts.append(self._address_account(address))
        if key is not None and (account := self._key_accounts.get(key)) is not None:
            accounts.append(account)
        if not accounts:
            return NO_SHARE
        now = self._clock()
        for account in accounts:
            account.check(now)
        for account in accounts:
            account.take()
        return Share(accounts)

    def _follow_keys(self) -> None:
        """Take over the limits of keys that have changed; what they have asked stays counted."""
        if self._changes == self._keys.changes:
            return
        self._changes = self._keys.changes
        before, self._key_accounts = self._key_accounts, {}
        for key in self._keys.keys:
            own = (key.max_rate, key.max_in_flight)
            usual = (self._of_key.max_rate, self._of_key.max_in_flight)
            rate, in_flight = (b if a is None else a for a, b in zip(own, usual, strict=True))
            limit = ClientLimit(rate or 0.0, int(in_flight or 0))
            if limit.is_on:
                account = before.get(key.name)
                if account is None:
                    account = _Account("key", f"key {key.name!r}", limit, self._clock())
                account.change(limit)
                self._key_accounts[key.name] = account

    def _address_account(self, address: str) -> _Account:
        network = network_of(address)
        account = self._addresses.get(network)
        if account is not None:
            self._addresses.move_to_end(network)
            return account
        if len(self._addresses) >= _MOST_ADDRESSES:
            self._addresses.popitem(last=False)
        account = _Account("address", "this address", self._of_address, self._clock())
        self._addresses[network] = account
        return account


def client_address(client: tuple[str, int] | None) -> str | None:
    """Return a client's address, at most 64 characters of it; None where it is not known.

    Behind a proxy that is trusted it is a text that the proxy sends, or lets its client send.

    Args:
        client: its address and port, as ASGI's `client`.
    """
    return None if client is None else client[0][:_LONGEST_ADDRESS]


def client_name(key: str | None, address: str | None) -> str:
    """Return the one name of a client in what it shares with others: its key's, or its address.

    Args:
        key: the name of its access key; None where none let it in.
        address: the client's; None where it is not known.

    Returns:
        `key:NAME`, else `address:NETWORK`, else an empty text.
    """
    if key is not None:
        return f"key:{key}"
    return "" if address is None else f"address:{network_of(address)}"


@functools.lru_cache(maxsize=1024)
def network_of(address: str) -> str:
    """Return the network that is one client: an IPv4 address, or the /64 of an IPv6 one.

    Args:
        address: a client's; see `client_address`.
    """
    try:
        known = ip_address(address)
    except ValueError:
        # Proxies may hide an address behind a name (RFC 7239).
        return address
    if isinstance(known, IPv6Address):
        if known.ipv4_mapped is not None:
            return str(known.ipv4_mapped)
        return f"{int(known) >> _IPV6_HOST_BITS:x}::/{_IPV6_HOST_BITS}"
    return str(known)
