"""The layout of a batch's rows and their limit, for the readers of JSON and of npy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from policy_server.errors import BodyTooLargeError
from policy_server.observations.row_encoding import RowEncoder
from policy_server.observations.space import ObservationSpace

__all__ = ["BatchLayout", "BatchReader", "Matrix"]

Matrix = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class BatchLayout:
    """The form that the rows of a batch must have.

    Attributes:
        space: the observations of schema.yaml.
        is_raw: whether the observations are flat, `{"obs": [...]}`.
        width: how many numbers a row has, an action mask's too; None where the policy leaves that
            open.
        dtype: the type of the rows' numbers.
        max_rows: the most rows of a batch.
    """

    space: ObservationSpace
    is_raw: bool
    width: int | None
    dtype: type[np.float32] | type[np.float64]
    max_rows: int

    @property
    def encoder(self) -> RowEncoder | None:
        """Return the encoder of the rows; None where values are the row's numbers."""
        return None if self.is_raw else self.space.encoder

    @property
    def exact_dtype(self) -> type[np.float32] | type[np.float64]:
        """Return the type of numbers whose parts are still to be checked.

        A float32 would round 2.00000001 to a whole number before.
        """
        return np.float64 if self.space.numbers.columns else self.dtype

    def check_rows(self, rows: int) -> None:
        """Refuse a batch that is longer than the limit.

        Args:
            rows: the number of rows so far.

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
            data: the next bytes of the body.

        Yields:
            float[B, width]: the rows that are complete, in order.

        Raises:
            ObservationError: naming row and field of the first mistake.
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
