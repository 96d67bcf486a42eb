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
    is alone (see `BatchPlaces`): who reads nothing keeps itself waiting, and no others.
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
        if own < self._most - self._total:
            return
        raise OverloadedError(
            f"{self._total / _MEBIBYTE:.0f} MiB of answers to batches wait to be read, "
            f"{own / _MEBIBYTE:.0f} of them by this client; read them, and try again in a second"
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
        self._total += change
        self._of_client[client] += change
        if not self._of_client[client]:
            del self._of_client[client]
