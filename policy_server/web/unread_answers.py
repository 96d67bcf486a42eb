"""The bytes of long answers that wait for their clients to read them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from policy_server.errors import OverloadedError

__all__ = ["UnreadAnswers"]

_MEBIBYTE = 2**20


class UnreadAnswers:
    """The long answers of a web process that are being sent.

    A client may have as many bytes there as are left free beside its own, so half of them while it
    is alone (see `BatchPlaces`): who reads nothing keeps itself waiting, and no others. One answer
    may be longer than all of that: it takes no more of what is free than half, and a client that
    has none there is never refused.
    """

    def __init__(self, most_bytes: int) -> None:
        """Own the counts.

        Args:
            most_bytes: so many bytes may wait before questions with long answers are refused.
        """
        self._most = most_bytes
        self._total = 0
        self._of_client: Counter[str] = Counter()

    def check(self, client: str) -> None:
        """Refuse a question with a long answer while too many wait to be read.

        Args:
            client: the name of the client, as `client_name` gives it.

        Raises:
            OverloadedError: if the client may have no more of them.
        """
        own = self._of_client[client]
        if not own or own < self._most - self._total:
            return
        raise OverloadedError(
            f"{own / _MEBIBYTE:.0f} MiB of answers to this client's batches wait to be read; read "
            "them, and try again in a second"
        )

    @contextmanager
    def held(self, client: str, size: int) -> Iterator[None]:
        """Count an answer while the block sends it.

        Args:
            client: the name of the client.
            size: the answer's bytes.
        """
        self._count(client, size)
        try:
            yield
        finally:
            self._count(client, -size)

    def _count(self, client: str, change: int) -> None:
        before = self._of_client[client]
        after = before + change
        self._of_client[client] = after
        self._total += min(after, self._most // 2) - min(before, self._most // 2)
        if not after:
            del self._of_client[client]
