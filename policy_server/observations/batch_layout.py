"""What the readers of many observations share: the layout of their rows, and their limit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from policy_server.errors import BodyTooLargeError
from policy_server.observations.space import ObservationSpace

__all__ = ["BatchLayout", "BatchReader", "Matrix"]

Matrix = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class BatchLayout:
    """What the rows of a batch have to be.

    Attributes:
        space: the observations of schema.yaml.
        is_raw: whether they are flat ones.
        width: how many numbers a row has; None where the policy leaves that open.
        dtype: what rows travel in.
        max_rows: the most rows of a batch.
    """

    space: ObservationSpace
    is_raw: bool
    width: int | None
    dtype: type[np.float32] | type[np.float64]
    max_rows: int

    def check_rows(self, rows: int) -> None:
        """Hold a batch's length against the limit.

        Args:
            rows: how many there are so far.

        Raises:
            BodyTooLargeError: if there are too many.
        """
        if rows > self.max_rows:
            raise BodyTooLargeError(
                f"the batch has more than {self.max_rows} observations "
                "(POLICY_SERVER_MAX_BATCH_ROWS); send it in parts"
            )


class BatchReader(Protocol):
    """Turns the bytes of one batch into rows while they arrive."""

    def feed(self, data: bytes) -> Iterator[Matrix]:
        """Take the next bytes.

        Args:
            data: what follows.

        Yields:
            float[B, width]: the rows that are complete, in order.

        Raises:
            ObservationError: naming row and field of what is wrong.
            BodyTooLargeError: if there are too many rows.
        """

    def close(self) -> Iterator[Matrix]:
        """Take the end of the body.

        Yields:
            The rows that are left.

        Raises:
            ObservationError: as `feed` does, or if the body ends too early.
            BodyTooLargeError: if there are too many rows.
        """
