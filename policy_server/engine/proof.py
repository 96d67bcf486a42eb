"""Comparing a compiled network with the graph, on common observations and on extreme ones.

TensorFlow and NumPy could differ where a number is tiny, huge or no index, or where the size of a
batch matters; there the two are compared on purpose. A network that differs is not served.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.engine.building import NotCompiledError
from policy_server.engine.network import FAILURES, NumpyNetwork
from policy_server.engine.overflow import widened

__all__ = [
    "EngineProof",
    "batch_sizes",
    "extreme_rows",
    "hold_against_graph",
    "mixes_rows",
    "probe_rows",
]

_TOLERANCE = 1e-5
# Where observations are huge, float32 itself has lost digits in either engine.
_EXTREME_TOLERANCE = 1e-3
_FEWEST_PROBES = 32
_ROWS_A_KIND = 16
_PROBES_A_KIND = 32
# Past the largest call (1,024) and the rows that NumPy computes at once (512).
_BATCH_SIZES = (1, 2, 3, 5, 7, 64, 513, 1025)
_MOST_MULTIPLICATIONS = 50_000_000
_FLOAT32 = np.finfo(np.float32)
_LARGEST = {"float16": 65504.0, "bfloat16": 3e38}
# Numbers of 32 bits may overflow on the way from an observation with a larger one; which sums do
# depends on their order, which no library promises.
_MAY_OVERFLOW = 1e30
# Brings any of 32 bits below that.
_SMALLER = 1e-9

Rows = NDArray[Any]
Run = Callable[[Rows], NDArray[Any]]


def probe_rows(width: int, dtype: type[np.float32] | type[np.float64]) -> NDArray[Any]:
    """Return observations of many kinds: masks, one-hots, counts and continuous values.

    Args:
        width: how many numbers an observation has.
        dtype: the rows' type.

    Returns:
        float[N, width], the same at every call.
    """
    generator = np.random.default_rng(20)
    size = (_PROBES_A_KIND, width)
    one_hot = np.zeros(size)
    kinds = (
        generator.standard_normal(size),
        generator.random(size),
        generator.integers(0, 2, size),
        generator.integers(0, 5, size),
        generator.standard_normal(size) * 10,
        one_hot,
        np.ones((1, width)),
        np.zeros((1, width)),
    )
    one_hot[np.arange(_PROBES_A_KIND), generator.integers(0, width, _PROBES_A_KIND)] = 1
    return np.concatenate([np.asarray(kind, dtype) for kind in kinds])


@dataclass(frozen=True)
class EngineProof:
    """The result of comparing a network with the graph.

    Attributes:
        probes: how many common observations were compared.
        extremes: how many extreme ones.
        largest: the largest difference on the common ones, relative above 1.
        largest_on_extremes: the largest on the extreme ones, relative to the row's largest number.
        overflows: how many extreme ones are beyond numbers of 32 bits on the way to an answer,
            which says nothing then. They were compared a billion times smaller.
        answers: how many different answers the common ones have; of a saturated network few.
    """

    probes: int
    extremes: int
    largest: float
    largest_on_extremes: float
    overflows: int
    answers: int

    def told(self, library: str) -> str:
        """Return the result in words.

        Args:
            library: the library that computes the graph.
        """
        extremes, within = f"{self.extremes}", f"within {self.largest_on_extremes:.1e}"
        if self.overflows:
            extremes = f"{self.extremes - self.overflows} of {extremes}"
            within += "; the others overflow 32 bits"
        few = ""
        if self.answers == 1:
            few = ", all with the same answer"
        elif self.answers < _FEWEST_PROBES:
            few = f", with {self.answers} different answers"
        return (
            f"equal to {library} on {self.probes} probes{few} (within {self.largest:.1e}) and on "
            f"{extremes} extreme ones ({within})"
        )


def extreme_rows(width: int, observation_dtype: str, row_dtype: type[Any]) -> Rows:
    """Return observations that few policies meet: tiny, huge, negative, and at a type's ends.

    Args:
        width: how many numbers an observation has.
        observation_dtype: the type that the policy takes, in which all of them can be held.
        row_dtype: the rows' type.

    Returns:
        float[N, width], the same at every call.
    """
    generator = np.random.default_rng(21)
    size = (_ROWS_A_KIND, width)
    kind = np.dtype(observation_dtype).kind if observation_dtype != "bfloat16" else "f"
    if kind == "b":
        return generator.integers(0, 2, size).astype(row_dtype)
    if kind in "iu":
        limits = np.iinfo(observation_dtype)
        # The integers that a float64 holds exactly.
        low, high = max(limits.min, -(2**53)), min(limits.max, 2**53)
        ends = np.where(generator.random(size) < 0.5, low, high)
        kinds = [
            generator.integers(max(low, -3), 300, size).clip(low, high),
            generator.integers(low, high, size, endpoint=True),
            ends,
            np.where(generator.random(size) < 0.2, ends, generator.integers(0, 5, size)),
        ]
        return np.concatenate(kinds).astype(row_dtype)
    largest = _LARGEST.get(observation_dtype, float(_FLOAT32.max))
    common = generator.standard_normal(size)
    masks = generator.integers(0, 2, size)
    huge = np.sign(common) * largest * (1 - generator.random(size) / 2)
    kinds = [
        *(common * scale for scale in (1e2, 1e4, 1e8, 1e20, 1e30)),
        *(common * scale for scale in (1e-20, 1e-38, 1e-40, 1e-45)),
        huge,
        *(common * scale for scale in (1e36, 5e36, 2e37, 1e38)),
        np.where(generator.random(size) < 0.5, common * 1e-39, huge),
        np.where(generator.random(size) < 0.1, huge, common),
        np.where(generator.random(size) < 0.1, -largest, masks),
        np.where(masks == 0, 1e-40, masks),
        generator.integers(-3, 300, size),
    ]
    with np.errstate(over="ignore"):
        rows = np.concatenate(kinds).clip(-largest, largest).astype(np.float32)
    return rows.astype(row_dtype)


def batch_sizes(in_convolutions: int) -> list[int]:
    """Return the sizes of the batches in which a network is compared.

    Args:
        in_convolutions: how many multiplications one observation takes; large images take few.
    """
    return [size for size in _BATCH_SIZES if size * in_convolutions <= _MOST_MULTIPLICATIONS]


def hold_against_graph(
    network: NumpyNetwork,
    graph: Run,
    probes: Rows,
    extremes: Rows,
    sizes: list[int],
    *,
    refusal: type[Exception],
    library: str = "TensorFlow",
) -> EngineProof:
    """Compare a network with the graph.

    Args:
        network: the network.
        graph: gives the graph's result for observations.
        probes: float[N, D], common observations that the policy answers.
        extremes: float[M, D], others, which it may refuse.
        sizes: the sizes of the batches to try.
        refusal: the error of `graph` for an observation that it refuses.
        library: the library that computes `graph`, for messages.

    Returns:
        The number of observations compared, and the largest differences.

    Raises:
        NotCompiledError: saying where they differ.
    """
    run = _without_warnings(network.compile())
    expected = graph(probes)
    is_finite = np.isfinite(expected).all(axis=1)
    if is_finite.sum() < _FEWEST_PROBES:
        raise NotCompiledError(f"fewer than {_FEWEST_PROBES} probes have finite outputs")
    largest = 0.0
    for size in sorted({*sizes, len(probes)}):
        try:
            found = run(np.resize(probes, (size, probes.shape[1])))
        except FAILURES as error:
            raise NotCompiledError(f"NumPy refuses a step: {error}") from error
        theirs = np.resize(expected, (size, expected.shape[1]))
        if found.shape != theirs.shape:
            raise NotCompiledError(f"NumPy's result has the shape {found.shape}")
        largest = max(
            largest, _compared(found, theirs, _TOLERANCE, f"{library} in batches of {size}")
        )
    run_wide = _without_warnings(widened(network).compile())
    on_extremes, overflows = _compare_extremes(run, run_wide, graph, extremes, refusal, library)
    answers = len(np.unique(expected, axis=0))
    return EngineProof(len(probes), len(extremes), largest, on_extremes, overflows, answers)


def _compare_extremes(
    run: Run, run_wide: Run, graph: Run, rows: Rows, refusal: type[Exception], library: str
) -> tuple[float, int]:
    """Return the largest difference, and how many rows overflow; those are compared smaller."""
    theirs, refused = _answers(graph, rows, refusal)
    ours, failed = _answers(run, rows, *FAILURES)
    if (refused != failed).any():
        which = int(np.flatnonzero(refused != failed)[0])
        words = ("answers", "refuses") if refused[which] else ("refuses", "answers")
        raise NotCompiledError(f"NumPy {words[0]} an extreme observation, {library} {words[1]} it")
    known = ~refused
    # As the network is served: what overflowed in its order of a sum is computed again.
    lost = known & ~_is_finite(ours) & _is_finite(theirs)
    if lost.any():
        ours[lost] = _wide(run_wide, rows[lost])
    overflows = known & _overflows(ours, theirs, run_wide, rows)
    known &= ~overflows
    largest = 0.0
    if known.any():
        where = f"{library} on extreme observations"
        largest = _compared(ours[known], theirs[known], _EXTREME_TOLERANCE, where)
    if overflows.any():
        # A mask of minus infinity is one for smaller numbers too.
        smaller = rows[overflows] * rows.dtype.type(_SMALLER)
        again, _ = _compare_extremes(run, run_wide, graph, smaller, refusal, library)
        largest = max(largest, again)
    return largest, int(overflows.sum())


def _overflows(ours: Rows, theirs: Rows, run_wide: Run, rows: Rows) -> NDArray[np.bool_]:
    """Return for each row whether numbers of 32 bits overflow on the way to an answer.

    One that is finite all the same, such as behind a `tanh`, is told by the network's answer in 64
    bits: it is the other one's.
    """
    is_large = np.logical_or.reduce(np.abs(rows) > _MAY_OVERFLOW, axis=1)
    is_finite = _is_finite(theirs)
    found: NDArray[np.bool_] = is_large & ~is_finite
    is_other = is_large & is_finite & _is_finite(ours)
    is_other[is_other] = _differences(ours[is_other], theirs[is_other]) > _EXTREME_TOLERANCE
    if is_other.any():
        wide = _wide(run_wide, rows[is_other])
        apart = np.minimum(_differences(ours[is_other], wide), _differences(theirs[is_other], wide))
        found[is_other] = apart <= _EXTREME_TOLERANCE
    return found


def _wide(run_wide: Run, rows: Rows) -> Rows:
    """Return the network's answers in 64 bits; what is beyond 32 bits is the largest of them."""
    found: Rows = run_wide(rows.astype(np.float64)).clip(-_FLOAT32.max, _FLOAT32.max)
    return found


def _differences(ours: Rows, theirs: Rows) -> NDArray[np.float64]:
    """Return each row's largest difference, relative to its largest number above 1."""
    wide = theirs.astype(np.float64)
    found: NDArray[np.float64] = np.abs(ours - wide).max(axis=1) / (1 + np.abs(wide).max(axis=1))
    return found


def _is_finite(rows: Rows) -> NDArray[np.bool_]:
    """Return for each row whether all its numbers are finite."""
    found: NDArray[np.bool_] = np.logical_and.reduce(np.isfinite(rows), axis=1)
    return found


def _answers(
    run: Run, rows: Rows, *failures: type[Exception]
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return the answers, and a mask of the observations that are refused."""
    try:
        return run(rows), np.zeros(len(rows), bool)
    except failures:
        answers: list[NDArray[Any] | None] = []
        for row in rows:
            try:
                answers.append(run(row[None])[0])
            except failures:
                answers.append(None)
    known = next((answer for answer in answers if answer is not None), np.empty(0))
    values = [np.zeros_like(known) if answer is None else answer for answer in answers]
    return np.stack(values), np.array([answer is None for answer in answers])


def _compared(ours: NDArray[Any], theirs: NDArray[Any], tolerance: float, where: str) -> float:
    """Return the largest difference, relative to the row's largest number above 1."""
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    is_finite = np.isfinite(theirs)
    others = (np.isnan(theirs) == np.isnan(ours)) & (np.isposinf(theirs) == np.isposinf(ours))
    others &= np.isneginf(theirs) == np.isneginf(ours)
    if not others.all():
        raise NotCompiledError(f"NumPy gives NaN or infinity apart from {where}")
    known = np.where(is_finite, theirs, 0.0)
    scale = 1 + np.abs(known) if tolerance == _TOLERANCE else 1 + np.abs(known).max(axis=1)[:, None]
    difference = np.where(is_finite, np.abs(np.where(is_finite, ours, 0.0) - known) / scale, 0.0)
    largest = float(difference.max(initial=0.0))
    if not largest <= tolerance:
        raise NotCompiledError(f"NumPy differs by {largest:.1e} from {where}")
    return largest


def _without_warnings(run: Run) -> Run:
    def quiet(rows: Rows) -> NDArray[Any]:
        with np.errstate(all="ignore"):
            return run(rows)

    return quiet


def mixes_rows(
    graph: Run, rows: Rows, others: Rows, sizes: list[int], *, refusal: type[Exception]
) -> int | None:
    """Return the size of a batch in which other observations change an answer; None for none.

    It stands in where a network's operations are not all known.

    Args:
        graph: gives the graph's result for observations.
        rows: float[N, D], observations that the policy answers.
        others: float[M, D], observations that share their batches.
        sizes: the sizes of the batches to try.
        refusal: the error of `graph` for an observation that it refuses.
    """
    own = rows[:4]
    try:
        alone = np.concatenate([graph(row[None]) for row in own]).astype(np.float64)
        for size in sizes:
            if size <= len(own):
                continue
            crowd = np.resize(np.concatenate([others, rows]), (size - len(own), rows.shape[1]))
            found = graph(np.concatenate([own, crowd]))[: len(own)].astype(np.float64)
            scale = 1 + np.abs(np.nan_to_num(alone))
            if not np.allclose(found / scale, alone / scale, rtol=0, atol=1e-4, equal_nan=True):
                return size
    except refusal:
        # A graph that checks its observations fails with the batch of one that it refuses.
        if others is rows:
            return None
        return mixes_rows(graph, rows, rows, sizes, refusal=refusal)
    return None
