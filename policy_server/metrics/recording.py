"""Recording: a request costs an append to a list, which is added up when somebody looks."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from policy_server.metrics.counts import Counts, Labels

__all__ = ["Metrics", "PolicyMetrics"]

# So few that the request which adds them up is not seen among the slow ones.
_FOLD_AT = 512
Item = TypeVar("Item")

# One series an action: more choices than these share one.
_MOST_ACTIONS = 64


class Metrics:
    """The metrics of this process. Recording is for one event loop; reading may be on any thread.

    Example:
        >>> metrics = Metrics()
        >>> metrics.observe_request("default", "/predict", 200, 0.001)
        >>> metrics.of("default").observe_batch(3)
    """

    def __init__(self) -> None:
        """Own the counts of this process, from zero, for as long as it lives."""
        self._tally = _Tally()
        self._policies: dict[str, PolicyMetrics] = {}
        self._streams = 0

    def of(self, policy: str) -> PolicyMetrics:
        """Return the recorder of one policy; its metrics carry the label `policy`.

        Args:
            policy: its name.
        """
        if policy not in self._policies:
            self._policies[policy] = PolicyMetrics(policy, self._tally)
        return self._policies[policy]

    def model_version(self, policy: str) -> str:
        """Return the start of a policy's digest; empty before it is loaded.

        Args:
            policy: its name.
        """
        known = self._policies.get(policy)
        return "" if known is None else known.model_version

    def observe_request(
        self, policy: str, route: str, status: int, seconds: float, *, key: str | None = None
    ) -> None:
        """Count a request.

        Args:
            policy: the name of the policy that the route belongs to; empty for the server's own.
            route: one of a bounded set.
            status: of its answer.
            seconds: from its arrival to its answer.
            key: the name of the access key that let it in; None where none did.
        """
        self.request_recorder(policy, route, status, key=key)(seconds)

    def request_recorder(
        self, policy: str, route: str, status: int, *, key: str | None
    ) -> Callable[[float], None]:
        """Return a function that counts requests which have all but their seconds in common.

        Args:
            policy: see `observe_request`, and so for the others.
            route: one of a bounded set.
            status: of the answers.
            key: the name of the access key that let them in; None where none did.

        Returns:
            Takes the seconds of a request, and costs a third of what `observe_request` costs.
        """
        tally = self._tally
        times, keys = tally.requests[policy, route, status], tally.keys

        def record(seconds: float) -> None:
            if key is not None:
                keys[key] += 1
            times.append(seconds)
            if len(times) >= _FOLD_AT:
                tally.fold()

        return record

    def count_stream(self, change: int) -> None:
        """Count a web socket.

        Args:
            change: 1 when it is opened, -1 when it is closed.
        """
        self._streams += change

    def snapshot(self) -> Counts:
        """Return a copy of the counts so far, and the gauges as they are now."""
        counts = self._tally.snapshot()
        counts.numbers["stream_connections"] = {(): float(self._streams)}
        return counts


class PolicyMetrics:
    """The metrics of one policy, as `Metrics.of` returns it.

    Attributes:
        policy: its name.
        model_version: the start of the served model's digest; empty before it is loaded.
    """

    def __init__(self, policy: str, tally: _Tally) -> None:
        """Record into the counts of the process.

        Args:
            policy: the policy's name; empty for what belongs to several.
            tally: the counts of the process.
        """
        self.policy = policy
        self.model_version = ""
        self._tally = tally
        if policy:
            # A counter that begins with its first count has no increase for Prometheus.
            tally.count("replica_restarts", {(policy,): 0.0})

    def observe_stage(self, stage: str, seconds: float) -> None:
        """Record how long a stage took.

        Args:
            stage: validate, queue or policy.
            seconds: how long.
        """
        self.stage_recorder(stage)(seconds)

    def stage_recorder(self, stage: str) -> Callable[[float], None]:
        """Return a function that records how long a stage took, in seconds.

        Args:
            stage: validate, queue or policy.
        """
        return self._tally.stages[self.policy, stage].append

    def observe_batch(self, size: int) -> None:
        """Record a call's size.

        Args:
            size: how many observations rode in it.
        """
        self._tally.sizes.append((self.policy, size))

    def count_rejected(self, reason: str, count: int = 1) -> None:
        """Count observations that were not answered.

        Args:
            reason: queue_full, queue_slow, answers_unread, timeout or shutdown; or that of a
                `TooManyRequestsError`.
            count: how many.
        """
        self._tally.count("rejected", {(reason, self.policy): count})

    def count_actions(self, component: str, counts: Mapping[int, int]) -> None:
        """Count integer actions.

        Args:
            component: its name, or its index.
            counts: how often each action was answered that was answered at all.
        """
        amounts: dict[Labels, float] = {}
        for action, count in counts.items():
            label = str(action) if action < _MOST_ACTIONS else "other"
            labels = (component, label, self.policy)
            amounts[labels] = amounts.get(labels, 0) + count
        self._tally.count("actions", amounts)

    def count_version(self, version: str, result: str, count: int) -> None:
        """Count observations that a version was asked.

        Args:
            version: the version's name.
            result: answered or failed.
            count: how many.
        """
        self._tally.versions.append((version, result, self.policy, count))

    def count_session(self, change: str) -> None:
        """Count a session.

        Args:
            change: opened, reset, deleted, expired or refused.
        """
        self._tally.count("session_changes", {(change, self.policy): 1.0})

    def show_sessions(self, number: int) -> None:
        """Show the number of open sessions.

        Args:
            number: of all web processes that share them.
        """
        self._tally.show_sessions(self.policy, number)

    def forget_version(self, version: str) -> None:
        """Drop the counts of a version that is not loaded any more.

        Args:
            version: the version's name.
        """
        self._tally.forget_version(self.policy, version)

    def count_shadow(self, version: str, result: str, count: int) -> None:
        """Count copies that a shadow was to get.

        Args:
            version: the shadow's name.
            result: same_mode, other_mode, failed or dropped.
            count: how many.
        """
        self._tally.count("shadow_copies", {(version, result, self.policy): count})

    def observe_shadow(self, version: str, distances: Sequence[float], seconds: float) -> None:
        """Record a shadow's call.

        Args:
            version: the shadow's name.
            distances: the total variation distance from the answering version, of each copy.
            seconds: how long the call took.
        """
        self._tally.observe_shadow(self.policy, version, distances, seconds)

    def count_replica_lost(self) -> None:
        """Count a replica whose connection was lost: once, however many calls waited for it."""
        self._tally.count("replica_restarts", {(self.policy,): 1.0})

    def watch_queue(self, depth: Callable[[], int]) -> Callable[[], None]:
        """Add a scheduler's queue to the policy's queue depth, which is the sum of all of them.

        Args:
            depth: returns how many observations wait or are being answered.

        Returns:
            Takes the queue out again, such as when its scheduler is closed.
        """
        return self._tally.watch_queue(self.policy, depth)

    def describe_model(self, *, version: str, family: str, load_seconds: float) -> None:
        """Record the model that is served now, in place of the one before.

        Args:
            version: the start of the model's digest.
            family: the policy's family in words.
            load_seconds: how long the start took.
        """
        self.model_version = version
        self._tally.describe_model(self.policy, version, family, load_seconds)


class _Tally:
    """The counts of this process: lists that are appended to, and the sums of those before."""

    def __init__(self) -> None:
        self.requests: defaultdict[tuple[str, str, int], list[float]] = defaultdict(list)
        self.keys: defaultdict[str, int] = defaultdict(int)
        self.stages: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
        self.sizes: list[tuple[str, int]] = []
        self.versions: list[tuple[str, str, str, int]] = []
        self._counts = Counts()
        self._sessions: dict[str, int] = {}
        self._queues: defaultdict[str, list[Callable[[], int]]] = defaultdict(list)
        self._lock = threading.Lock()

    def count(self, name: str, amounts: Mapping[Labels, float]) -> None:
        with self._lock:
            for labels, amount in amounts.items():
                self._counts.count(name, labels, amount)

    def show_sessions(self, policy: str, number: int) -> None:
        with self._lock:
            self._sessions[policy] = number

    def observe_shadow(
        self, policy: str, version: str, distances: Sequence[float], seconds: float
    ) -> None:
        with self._lock:
            self._counts.observe("shadow_call_seconds", (version, policy), seconds)
            for distance in distances:
                self._counts.observe("shadow_distance", (version, policy), distance)

    def forget_version(self, policy: str, version: str) -> None:
        self.fold()
        with self._lock:
            self._counts.forget_version(policy, version)

    def watch_queue(self, policy: str, depth: Callable[[], int]) -> Callable[[], None]:
        def forget() -> None:
            with self._lock:
                self._queues[policy].remove(depth)

        with self._lock:
            self._queues[policy].append(depth)
        return forget

    def describe_model(self, policy: str, version: str, family: str, load_seconds: float) -> None:
        with self._lock:
            infos = self._counts.numbers.setdefault("model_info", {})
            for labels in [labels for labels in infos if labels[-1] == policy]:
                del infos[labels]
            infos[version, family, policy] = 1.0
            self._counts.numbers.setdefault("model_load_seconds", {})[(policy,)] = load_seconds

    def snapshot(self) -> Counts:
        self.fold()
        copy = Counts()
        with self._lock:
            copy.add(self._counts)
            for key, count in list(self.keys.items()):
                copy.count("key_requests", (key,), count)
            copy.numbers["sessions"] = {
                (policy,): float(count) for policy, count in self._sessions.items()
            }
            copy.numbers["queue_depth"] = {
                (policy,): float(sum(depth() for depth in depths))
                for policy, depths in self._queues.items()
                if depths
            }
        return copy

    def fold(self) -> None:
        with self._lock:
            for (policy, route, status), times in list(self.requests.items()):
                if taken := _taken(times):
                    self._counts.count("requests", (route, str(status), policy), len(taken))
                    self._counts.observe("request_seconds", (route, policy), *taken)
            for (policy, stage), times in list(self.stages.items()):
                if taken := _taken(times):
                    self._counts.observe("stage_seconds", (stage, policy), *taken)
            for version, result, policy, count in _taken(self.versions):
                self._counts.count("version_observations", (version, result, policy), count)
            for policy, size in _taken(self.sizes):
                self._counts.observe("batch_size", (policy,), size)


def _taken(items: list[Item]) -> list[Item]:
    """Take all out of a list to which another thread may append meanwhile."""
    taken = items[:]
    del items[: len(taken)]
    return taken
