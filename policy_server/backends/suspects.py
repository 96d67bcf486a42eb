"""Observations that may have ended the replicas that computed them, or that the policy hangs at.

A replica that ends says nothing of the reason. Most often it is none of its calls', which are asked
again of another replica; but a library that computes a policy may end its process for some numbers,
as a division by zero does, and would end one replica after the other. A policy that computes
without an end would hold up one thread or replica after the other.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from weakref import WeakKeyDictionary

from policy_server.errors import OverloadedError, PolicyFailedError
from policy_server.policy import PolicyInputs

__all__ = ["Suspects", "Suspicion"]

logger = logging.getLogger(__name__)

# A longer call is suspected as a whole, while it is asked.
_MOST_ROWS = 1024
_MOST_KNOWN = 16_384
_SUSPECTED_S = 60.0
_GUILTY_S = 600.0
_PRUNE_PERIOD_S = 1.0


class Suspicion(IntEnum):
    """How sure it is that an observation ends its replica, or that the policy hangs at it."""

    NONE = 0
    # A replica had it when it ended, maybe behind others.
    HAD = 1
    # A replica ended while it computed it, maybe with others.
    COMPUTED = 2
    # And another one ended while it computed nothing else. Whoever hangs at it counts as ended.
    ALONE = 3


@dataclass(slots=True)
class _Known:
    suspicion: Suspicion
    hangs: bool
    until: float


_NOTHING = _Known(Suspicion.NONE, hangs=False, until=0.0)


class Suspects:
    """The observations of one policy that are suspected, for minutes each; most often none."""

    def __init__(self) -> None:
        """Suspect none."""
        self._known: dict[bytes, _Known] = {}
        self._pruned_at = 0.0
        self._long: WeakKeyDictionary[PolicyInputs, _Known] = WeakKeyDictionary()

    def of(self, inputs: PolicyInputs) -> Suspicion:
        """Return the strongest suspicion of a call's rows.

        Args:
            inputs: the call's.
        """
        return self._strongest(inputs).suspicion

    def check(self, inputs: PolicyInputs) -> Suspicion:
        """Return the suspicion of a call that may be made.

        Args:
            inputs: the call's.

        Raises:
            PolicyFailedError: if its one row ends replicas, or if one of its rows is to blame, and
                each has to be asked alone.
            OverloadedError: if the policy hangs at its one row, or it has too many rows to ask each
                alone.
        """
        known, rows = self._strongest(inputs), len(inputs)
        is_alone = known.suspicion == Suspicion.ALONE
        if is_alone and known.hangs and rows == 1:
            raise OverloadedError(
                "the policy took too long for this observation, twice; it is not asked again "
                f"within {_GUILTY_S / 60:g} minutes"
            )
        if known.suspicion == Suspicion.COMPUTED and rows > _MOST_ROWS:
            happened = "the policy took too long for" if known.hangs else "two replicas ended at"
            raise OverloadedError(
                f"{happened} these {rows} observations; ask at most {_MOST_ROWS} at once to learn "
                "which one is to blame"
            )
        if is_alone or (known.suspicion == Suspicion.COMPUTED and rows > 1):
            subject = "this observation" if rows == 1 else f"one of {rows} observations"
            happened = "took too long for" if known.hangs else "ended its process when it computed"
            raise PolicyFailedError(f"the policy {happened} {subject}")
        return known.suspicion

    def suspect(self, inputs: PolicyInputs, *, was_computed: bool, hangs: bool = False) -> None:
        """Take note of a call that a replica had when it ended, or that took too long.

        Args:
            inputs: the call's.
            was_computed: whether the replica had begun with it, and not ended.
            hangs: whether it took too long.
        """
        now = time.monotonic()
        if len(inputs) > _MOST_ROWS:
            known = self._long.get(inputs, _NOTHING)
            grown = _grown(known.suspicion, Suspicion.COMPUTED, was_computed=was_computed)
            self._long[inputs] = _Known(grown, hangs or known.hangs, now)
            return
        most = Suspicion.ALONE if len(inputs) == 1 else Suspicion.COMPUTED
        for row in _rows(inputs):
            known = self._known.pop(row, _NOTHING)
            suspicion = _grown(known.suspicion, most, was_computed=was_computed)
            if suspicion == Suspicion.ALONE:
                logger.error("observation_hangs" if hangs else "observation_ends_replicas")
            lasts_s = _GUILTY_S if suspicion == Suspicion.ALONE else _SUSPECTED_S
            self._known[row] = _Known(suspicion, hangs or known.hangs, now + lasts_s)
        while len(self._known) > _MOST_KNOWN:
            del self._known[next(iter(self._known))]

    def clear(self, inputs: PolicyInputs) -> None:
        """Suspect the rows of a call no more that was answered.

        Args:
            inputs: the call's.
        """
        for row in _rows(inputs) if self._known and len(inputs) <= _MOST_ROWS else ():
            self._known.pop(row, None)

    def _strongest(self, inputs: PolicyInputs) -> _Known:
        if len(inputs) > _MOST_ROWS:
            return self._long.get(inputs, _NOTHING)
        if not self._known:
            return _NOTHING
        now = time.monotonic()
        if now > self._pruned_at + _PRUNE_PERIOD_S:
            self._pruned_at = now
            self._known = {row: known for row, known in self._known.items() if known.until > now}
        found = [self._known[row] for row in _rows(inputs) if row in self._known]
        return max(found, key=lambda known: known.suspicion, default=_NOTHING)


def _grown(known: Suspicion, most: Suspicion, *, was_computed: bool) -> Suspicion:
    """Return the suspicion after a replica has ended, at most so strong unless it was before."""
    grown = max(known + 1, Suspicion.COMPUTED) if was_computed else Suspicion.HAD
    return max(known, Suspicion(min(grown, most)))


def _rows(inputs: PolicyInputs) -> Iterator[bytes]:
    """Return a digest of all that a policy computes a row from, but for its seed."""
    for index in range(len(inputs)):
        digest = hashlib.blake2b(inputs.observations[index].tobytes(), digest_size=16)
        # No state is a state of zeros.
        if inputs.state is not None and inputs.state[index].any():
            digest.update(b"state" + inputs.state[index].tobytes())
        if inputs.masks is not None:
            digest.update(b"mask" + inputs.masks[index].tobytes())
        yield digest.digest()
