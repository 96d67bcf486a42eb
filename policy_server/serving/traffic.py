"""Which version of a policy answers a question."""

from __future__ import annotations

import functools
import random
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b

from policy_server.serving.version import PolicyVersion

__all__ = ["ALL_TRAFFIC", "Episodes", "Share", "Traffic"]

ALL_TRAFFIC = 100.0
_POINTS = 2.0**64


@dataclass(frozen=True)
class Share:
    """A version's share of the questions.

    Attributes:
        version: answers them.
        percent: the share, in per cent of all questions.
    """

    version: PolicyVersion
    percent: float


@dataclass(frozen=True)
class Traffic:
    """How the questions are split among versions; it never changes, another one replaces it.

    Attributes:
        shares: the versions that answer, at least one; together 100 per cent.

    """

    shares: tuple[Share, ...]

    @classmethod
    def split(cls, versions: Mapping[str, PolicyVersion], percents: Mapping[str, float]) -> Traffic:
        """Return the split by stated shares, of the versions that are there.

        A version that could not be loaded leaves its share to the others, in proportion.

        Args:
            versions: by name; at least one that has a share.
            percents: the stated share of each version, by name.
        """
        # In the stated order, whatever was loaded first: an episode falls on one version in every
        # process.
        there = {name: share for name, share in percents.items() if name in versions and share > 0}
        whole = sum(there.values())
        return cls(
            tuple(
                Share(versions[name], percent * ALL_TRAFFIC / whole)
                for name, percent in there.items()
            )
        )

    @functools.cached_property
    def only(self) -> PolicyVersion | None:
        """Return the version that answers all questions; None where there are several."""
        return self.shares[0].version if len(self.shares) == 1 else None

    @property
    def live(self) -> PolicyVersion:
        """Return the version with the largest share; of equal ones the first."""
        return max(self.shares, key=lambda share: share.percent).version

    def choose(self, episode: str) -> PolicyVersion:
        """Return the version that answers a question.

        Args:
            episode: the id of its episode, whose questions all fall on one point; empty for a
                question of its own, which falls anywhere.
        """
        if self.only is not None:
            return self.only
        point = (_point_of(episode) if episode else random.random()) * ALL_TRAFFIC  # noqa: S311 -- a share, no secret
        for share in self.shares:
            point -= share.percent
            if point < 0:
                return share.version
        return self.shares[-1].version


class Episodes:
    """The version that each running episode began with, so that it ends with it too."""

    def __init__(self, *, most: int, idle_s: float) -> None:
        """Own what is known of episodes, for as long as each is asked about.

        Args:
            most: the most episodes that are known at a time; beyond, the longest idle is forgotten.
            idle_s: for how long an episode is known after its last question, in seconds.
        """
        self._most = most
        self._idle_s = idle_s
        self._known: OrderedDict[str, tuple[PolicyVersion, float]] = OrderedDict()

    def __len__(self) -> int:
        """Return the number of episodes that are known."""
        return len(self._known)

    def of(self, version: PolicyVersion) -> int:
        """Return how many running episodes began with a version.

        Args:
            version: one that is loaded.
        """
        self._forget_idle(time.monotonic())
        return sum(known is version for known, _ in self._known.values())

    def version_of(self, episode: str) -> PolicyVersion | None:
        """Return the version that an episode began with; None for one that is not known.

        Args:
            episode: its id.
        """
        now = time.monotonic()
        self._forget_idle(now)
        found = self._known.get(episode)
        if found is None:
            return None
        self._known[episode] = (found[0], now)
        self._known.move_to_end(episode)
        return found[0]

    def begin(self, episode: str, version: PolicyVersion) -> None:
        """Note the version that an episode begins with.

        Args:
            episode: its id.
            version: answers it.
        """
        self._known[episode] = (version, time.monotonic())
        self._known.move_to_end(episode)
        if len(self._known) > self._most:
            self._known.popitem(last=False)

    def forget(self, episode: str) -> None:
        """Forget an episode that has ended.

        Args:
            episode: its id.
        """
        self._known.pop(episode, None)

    def end(self, version: PolicyVersion) -> None:
        """Forget the episodes of a version that is not loaded any more.

        Args:
            version: the version.
        """
        for episode in [key for key, (known, _) in self._known.items() if known is version]:
            del self._known[episode]

    def _forget_idle(self, now: float) -> None:
        """Forget episodes that have been idle for too long."""
        while self._known:
            episode, (_, asked) = next(iter(self._known.items()))
            if now - asked <= self._idle_s:
                return
            del self._known[episode]


def _point_of(episode: str) -> float:
    """Return where an episode falls, from 0 up to 1: the same in every process."""
    digest = blake2b(episode.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / _POINTS
