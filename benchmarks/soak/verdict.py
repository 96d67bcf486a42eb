"""Whether a run holds: no failed visit, and nothing that grows after the warm-up."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from statistics import median

from benchmarks.failures import BenchmarkError
from benchmarks.progress import number
from benchmarks.soak.record import Record
from benchmarks.soak.samples import Figures, Sample

__all__ = ["Finding", "find_growth", "judge", "settled"]

_WARM_SHARE = 1 / 3
_LEAST_SAMPLES = 3
# What memory may seem to grow by between the first and the last quiet sample: of the level there,
# since allocators give pages back when they like, and at least this much.
_GROWTH_SHARE = 0.02
_GROWTH_MB = 2.0
_SECONDS_AN_HOUR = 3600
_MILLION = 1e6
# Ray begins and ends threads of its own as it likes, in replicas too.
_RAYS, _RAYS_SHARE = ("Ray", "replica"), 0.02
# Of gRPC in a process: a pool begins with three threads on two cores, and gets another one when all
# are busy. gRPC keeps up to 16 of them, by the number of cores.
_LARGEST_POOL = 16
# Ray's own figures of itself come and go in the object store.
_STORE_MB = 5.0


@dataclass(frozen=True)
class Finding:
    """What was found of one figure.

    Attributes:
        subject: the figure.
        found: in words.
        bound: in words.
        holds: whether it keeps to the bound.
    """

    subject: str
    found: str
    bound: str
    holds: bool


def settled(record: Record) -> list[Sample]:
    """Return the samples without clients of the last two thirds of a run.

    Their memory is the least since the sample without clients before: what is freed is given back
    to the system some time later, while what is not freed stands in every sample.

    Args:
        record: the run.

    Raises:
        BenchmarkError: if there are fewer than three, which tell nothing of growth.
    """
    start = record.samples[-1].seconds * _WARM_SHARE
    samples, since = [], []
    for each in record.samples:
        since.append(each)
        if each.is_quiet:
            if each.seconds >= start:
                samples.append(_with_least_memory(each, since))
            since = []
    if len(samples) < _LEAST_SAMPLES:
        raise BenchmarkError(
            f"{len(samples)} samples without clients after the warm-up: expected at least "
            f"{_LEAST_SAMPLES}; let it run for longer"
        )
    return samples


def _with_least_memory(quiet: Sample, since: Sequence[Sample]) -> Sample:
    """Give each role the least memory of the samples in which it had as many processes."""

    def least(role: str, figures: Figures) -> Figures:
        alike = (
            each.roles[role].memory_mb
            for each in since
            if role in each.roles and each.roles[role].processes == figures.processes
        )
        return replace(figures, memory_mb=min(alike))

    return replace(quiet, roles={role: least(role, each) for role, each in quiet.roles.items()})


def find_growth(
    samples: Sequence[Sample], figure: Callable[[Sample], float]
) -> tuple[float, float]:
    """Return the growth of a figure: the median of the slopes between all pairs of samples.

    Args:
        samples: at least two, in order of time.
        figure: of one sample.

    Returns:
        By how much it grows an hour, and a million requests.

    Source: Theil (1950) and Sen (1968); a single outlier doesn't move it.
    """
    pairs = [(figure(b) - figure(a), a, b) for a, b in combinations(samples, 2)]
    an_hour = median(grown / (b.seconds - a.seconds) for grown, a, b in pairs) * _SECONDS_AN_HOUR
    a_million = median(grown / (b.requests - a.requests) for grown, a, b in pairs) * _MILLION
    return an_hour, a_million


def judge(record: Record) -> list[Finding]:
    """Hold a run against the bounds.

    Args:
        record: the run.

    Returns:
        A finding for each figure.

    Raises:
        BenchmarkError: if the run was too short.
    """
    samples = settled(record)
    findings = [
        Finding(
            "failed visits",
            f"{record.failed} of {record.requests:,} requests",
            "0",
            not record.failed,
        )
    ]
    for role in sorted({role for sample in samples for role in sample.roles}):
        findings += _judge_role(role, samples)
    if record.backend == "ray":
        findings.append(_judge_memory("Ray's folder", samples, lambda each: each.folder_mb))
        stored = [each.store_mb or 0.0 for each in samples]
        most = max(stored) - stored[0]
        findings.append(
            Finding(
                "Ray's object store",
                f"{number(min(stored))} to {number(max(stored))} MB",
                f"{_STORE_MB:g} MB above the first",
                most <= _STORE_MB,
            )
        )
    return findings


def _judge_role(role: str, samples: Sequence[Sample]) -> list[Finding]:
    def memory(sample: Sample) -> float:
        return sample.roles[role].memory_mb

    known = [sample for sample in samples if role in sample.roles]
    findings = []
    if len(known) < len(samples):
        lacking = f"not in {len(samples) - len(known)} of {len(samples)} samples"
        findings.append(Finding(f"{role}: there", lacking, "in each sample", holds=False))
    findings += _judge_restarts(role, known)
    handles = [sample.handles[role] for sample in known]
    told = "; then ".join(
        "{} files, {} threads, {} processes".format(*each) for each in dict.fromkeys(handles)
    )
    if role in _RAYS:
        most = [each * (1 + _RAYS_SHARE) for each in handles[0]]
        holds = all(a <= b for each in handles for a, b in zip(each, most, strict=True))
        bound = f"{_RAYS_SHARE:.0%} above the first sample"
    else:
        holds, bound = len({*handles}) == 1, "the same in each sample"
    if len(known) > 1:
        findings.append(_judge_memory(f"{role}: memory", known, memory))
    pools = [sample.roles[role] for sample in known]
    if any(each.pool_threads for each in pools):
        found = sorted(each.pool_threads for each in pools)
        largest = max(each.largest_pool for each in pools)
        findings.append(
            Finding(
                f"{role}: gRPC's pools",
                f"{found[0]} to {found[-1]} threads, {largest} in one process",
                f"{_LARGEST_POOL} in one process",
                largest <= _LARGEST_POOL,
            )
        )
    return [*findings, Finding(f"{role}: handles", told, bound, holds)]


def _judge_restarts(role: str, samples: Sequence[Sample]) -> Iterator[Finding]:
    """Tell of processes that others replaced: what those had leaked is gone with them."""
    pids = [sample.roles[role].pids for sample in samples]
    # Records of before have none. Ray's own processes come and go as it likes.
    if role == "Ray" or not all(pids):
        return
    changes = sum(before != after for before, after in pairwise(pids))
    # A version that is deployed begins replicas, and ends those of the one before.
    is_judged = role not in _RAYS
    yield Finding(
        f"{role}: restarts",
        f"other processes than before in {changes} samples",
        "0" if is_judged else "none, since versions begin and end them",
        not changes or not is_judged,
    )


def _judge_memory(
    subject: str, samples: Sequence[Sample], figure: Callable[[Sample], float]
) -> Finding:
    an_hour, a_million = find_growth(samples, figure)
    level = median(map(figure, samples))
    hours = (samples[-1].seconds - samples[0].seconds) / _SECONDS_AN_HOUR
    bound = max(_GROWTH_MB, _GROWTH_SHARE * level) / hours
    return Finding(
        subject,
        f"{number(level)} MB, {an_hour:+.1f} MB an hour, {a_million:+.1f} MB a million requests",
        f"{bound:.1f} MB an hour",
        an_hour <= bound,
    )
