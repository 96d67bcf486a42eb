"""The prediction log: observation and answer of a sampled share of the requests.

It goes to the server's own log and, where one is named, to a fluentd collector, on a thread of its
own: a collector that is down loses lines and never delays a prediction.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
from numpy.typing import NDArray

from policy_server.installation import require

if TYPE_CHECKING:
    from fluent.asyncsender import FluentSender

__all__ = ["PredictionLog"]

logger = logging.getLogger("policy_server.predictions")

_TAG = "policy_server"
_LABEL = "prediction"
_MOST_WAITING = 1000
_TIMEOUT_S = 1.0
_MASK = "action_mask"
_FIELDS = ("kind", "observation", "answer", "request_id")
_OF_A_LINE = ("time", "level", "logger", "pid", "event", "message", "asctime")
_TAKEN = frozenset({*vars(logging.makeLogRecord({})), *_OF_A_LINE, *_FIELDS})


class PredictionLog:
    """Records predictions; off where the rate is 0."""

    def __init__(
        self,
        *,
        rate: float,
        fluentd_host: str | None,
        fluentd_port: int,
        mask_name: str | None = None,
        mask_width: int = 0,
    ) -> None:
        """Own the connection to the collector, until `close`.

        Args:
            rate: the share of predictions that is recorded, from 0 to 1.
            fluentd_host: the host of fluentd; None for the server's own log only.
            fluentd_port: its port.
            mask_name: the key of the action mask; None where the policy takes none.
            mask_width: how many of a row's last numbers are the mask.

        Raises:
            MissingPackageError: if the package that speaks to fluentd is not installed.
        """
        self._rate = rate
        # An ONNX file may name its mask as a record of the log names its own parts.
        self._mask_name = _MASK if mask_name in _TAKEN else mask_name
        self._mask_width = mask_width
        self._sender: FluentSender | None = None
        if rate > 0 and fluentd_host is not None:
            require("fluentd", use="POLICY_SERVER_FLUENTD_HOST")
            from fluent.asyncsender import FluentSender

            # When the collector is slow or down, the oldest lines give way to new ones.
            self._sender = FluentSender(
                _TAG,
                host=fluentd_host,
                port=fluentd_port,
                timeout=_TIMEOUT_S,
                queue_maxsize=_MOST_WAITING,
                queue_circular=True,
            )

    @property
    def is_on(self) -> bool:
        """Return whether any prediction is recorded."""
        return self._rate > 0

    def record(
        self, kind: str, row: Sequence[float] | NDArray[Any], answer: bytes, *, request_id: str
    ) -> None:
        """Record a prediction, with the probability `rate`.

        Args:
            kind: the kind of answer, such as `predict`.
            row: the observation's numbers, and behind them the action mask's.
            answer: the JSON that was answered.
            request_id: the id of the request in the access log.
        """
        if not self._rate or random.random() >= self._rate:  # noqa: S311 -- a sample, no secret
            return
        numbers = row.tolist() if isinstance(row, np.ndarray) else list(row)
        width = len(numbers) - self._mask_width
        mask = list(map(int, numbers[width:]))
        masks = {} if self._mask_name is None else {self._mask_name: mask}
        fields = {
            "kind": kind,
            "observation": numbers[:width],
            **masks,
            "answer": orjson.loads(answer),
            "request_id": request_id,
        }
        logger.info("prediction", extra=fields)
        if self._sender is not None:
            self._sender.emit(_LABEL, fields)

    def close(self) -> None:
        """Close the connection to the collector; lines that still wait are lost."""
        if self._sender is not None:
            self._sender.close(flush=False)
