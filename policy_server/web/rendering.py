"""Answers as JSON: many rows of a call are rendered at once, few one by one.

A batch is rendered by column: one `orjson` call writes a column's numbers, which then go into a
template row by row. That costs less than a tenth of writing each answer by itself, and the digits
are the same: float32's shortest.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from policy_server.distributions.action_distribution import (
    ActionDistribution,
    ComponentDistribution,
)
from policy_server.errors import DistributionError
from policy_server.policy import (
    LARGEST,
    ActionOutput,
    AnswerKind,
    Float32Array,
    Float64Array,
    PolicyOutputs,
)
from policy_server.web.single_answers import NOT_FINITE, single_distribution, single_prediction

__all__ = ["ROWS_ONE_BY_ONE", "BatchAnswers", "RenderedAnswers"]

_AT_BOUND, _AT_BOUND_COLUMN = b',"at_bound":%b}', b',"at_bound":[%b]}'
# The columns of an array are known by their index, which must not change.
_JSON_ONLY = (b"mass_at_low", b"mass_at_high")
# So many rows cost less one by one than in columns: `python -m benchmarks.few_rows` measures it.
ROWS_ONE_BY_ONE = 4


class RenderedAnswers:
    """The answers of one call: those of many rows are rendered together, with the first."""

    def __init__(
        self,
        outputs: PolicyOutputs,
        layout: Sequence[ActionOutput],
        distribution: ActionDistribution | None,
        *,
        rows_one_by_one: int = ROWS_ONE_BY_ONE,
    ) -> None:
        """Own the outputs until the last answer is rendered.

        Args:
            outputs: the answers of one call.
            layout: the actions in order.
            distribution: reads `outputs.distribution`; None where the family is unknown.
            rows_one_by_one: so many rows are not rendered together.
        """
        self._outputs = outputs
        self._rows_one_by_one = rows_one_by_one
        self._layout = layout
        self._distribution = distribution
        # The predictions of many rows, once the first is asked for; None where each is looked at.
        self._ready: list[bytes] | None = None

    def answer(self, kind: AnswerKind, index: int) -> bytes:
        """Return the JSON that answers one row.

        Args:
            kind: the kind of answer.
            index: the row's index.

        Raises:
            DistributionError: if its action holds NaN or infinity, or it is no distribution.
        """
        if kind == "distribution":
            return self.distribution(index)
        return self.prediction(index) if self._ready is None else self._ready[index]

    def prediction(self, index: int) -> bytes:
        """Return the JSON of `{"actions": [...], "probability": ..., "log_probability": ...}`.

        `at_bound` follows where schema.yaml's bounds cut the policy's distribution.

        Args:
            index: the row's index.

        Raises:
            DistributionError: if its action holds NaN or infinity.
        """
        if len(self._outputs) <= self._rows_one_by_one:
            return single_prediction(self._outputs, index, self._layout, self._distribution)
        if self._is_finite is None:
            self._ready = self._predictions
        elif not self._is_finite[index]:
            raise DistributionError(NOT_FINITE)
        return self._predictions[index]

    def distribution(self, index: int) -> bytes:
        """Return the JSON of `{"components": [...]}` for one row.

        Args:
            index: the row's index.

        Raises:
            DistributionError: if it is no distribution.
        """
        # A distribution takes twice as long as an action.
        is_single = 2 * len(self._outputs) <= self._rows_one_by_one
        if is_single and (found := self._single(index)) is not None:
            return found
        if self._distributions is None:
            # Another row of the call may be to blame.
            return self._rendered_distributions(slice(index, index + 1))[0]
        return self._distributions[index]

    def _single(self, index: int) -> bytes | None:
        """Return the JSON of one row's distribution; None where it costs more by itself."""
        distribution, inputs = self._distribution, self._outputs.distribution
        if distribution is None or inputs is None or not distribution.few_rows.most_rows:
            return None
        return single_distribution(inputs[index], distribution)

    @functools.cached_property
    def _is_finite(self) -> NDArray[np.bool_] | None:
        """Return bool[B]; None where every action is finite."""
        values = np.isfinite(self._outputs.actions)
        return None if values.all() else np.asarray(values.all(axis=1))

    @functools.cached_property
    def _predictions(self) -> list[bytes]:
        actions = self._outputs.actions
        if self._is_finite is not None:
            actions = np.where(self._is_finite[:, None], actions, 0.0)
        columns = _action_columns(actions, self._layout)
        columns += [chances.split(b",") for chances in _chances(self._outputs)]
        has_masses = self._distribution is not None and self._distribution.has_masses
        if self._distribution is not None and has_masses:
            columns.append(_true_columns(self._distribution.at_bound(actions)))
        template = _prediction_template(tuple(self._layout), has_masses=has_masses)
        return [template % row for row in zip(*columns, strict=True)]

    @functools.cached_property
    def _distributions(self) -> list[bytes] | None:
        """Return the JSON of every row; None where a row is no distribution."""
        try:
            return self._rendered_distributions(slice(None))
        except DistributionError:
            return None

    def _rendered_distributions(self, rows: slice) -> list[bytes]:
        assert self._distribution is not None, "the route answers 501 where the family is unknown"
        assert self._outputs.distribution is not None, "a known family has its inputs"
        parts = self._distribution.describe(self._outputs.distribution[rows])
        columns = [_rows(values) for part in parts for _, values in _fields(part)]
        template = (
            b'{"components":[' + b",".join(_component_template(part) for part in parts) + b"]}"
        )
        return [template % row for row in zip(*columns, strict=True)]


class BatchAnswers:
    """The answers of a batch, in columns, added call by call in the rows' order."""

    def __init__(
        self,
        layout: Sequence[ActionOutput],
        distribution: ActionDistribution | None,
        *,
        kind: AnswerKind,
        is_npy: bool,
        has_log_probability: bool = False,
    ) -> None:
        """Own the columns, which are empty at first.

        Args:
            layout: the actions in order.
            distribution: reads `outputs.distribution`; None where the family is unknown.
            kind: the kind of answer.
            is_npy: whether the answer is an array in npy format, instead of JSON.
            has_log_probability: whether an array has it as its last column.
        """
        self._layout = layout
        self._distribution = distribution
        self._is_distribution = kind == "distribution"
        self._is_npy = is_npy
        self._has_log_probability = has_log_probability
        self._parts: dict[int, Any] = {}
        self._template = b'{"actions":[%b],"probability":[%b],"log_probability":[%b]}'
        if distribution is not None and distribution.has_masses:
            self._template = self._template[:-1] + _AT_BOUND_COLUMN

    def add(self, first: int, outputs: PolicyOutputs) -> None:
        """Render the answers of one call.

        Args:
            first: the index of its first row in the batch.
            outputs: the answers.

        Raises:
            DistributionError: naming the first row whose action holds NaN or infinity, or that is
                no distribution.
        """
        if self._is_distribution:
            self._add_distributions(first, outputs)
            return
        is_finite = np.isfinite(outputs.actions).all(axis=1)
        if not is_finite.all():
            row = first + int(is_finite.argmin())
            raise DistributionError(f"observation {row}: {NOT_FINITE}")
        if self._is_npy:
            self._parts[first] = self._table(outputs)
            return
        columns = [_actions(outputs, self._layout), *_chances(outputs)]
        if self._distribution is not None and self._distribution.has_masses:
            columns.append(b",".join(_true_columns(self._distribution.at_bound(outputs.actions))))
        self._parts[first] = columns

    def _table(self, outputs: PolicyOutputs) -> NDArray[np.float32]:
        """Return float32[B, A + 1], or one column more."""
        columns = [outputs.actions, outputs.probability[:, None]]
        if self._has_log_probability:
            columns.append(_finite(outputs.log_probability)[:, None])
        return np.hstack(columns).astype(np.float32)

    def finish(self) -> bytes:
        """Return the body of the answer, once every call was added."""
        parts = [self._parts[first] for first in sorted(self._parts)]
        if self._is_npy:
            file = io.BytesIO()
            np.save(file, np.concatenate(parts))
            return file.getvalue()
        columns = [b",".join(texts) for texts in zip(*parts, strict=True)]
        return self._template % tuple(columns)

    def _add_distributions(self, first: int, outputs: PolicyOutputs) -> None:
        assert self._distribution is not None, "the route answers 501 where the family is unknown"
        assert outputs.distribution is not None, "a known family has its inputs"
        parts = _describe_rows(self._distribution, outputs.distribution, first)
        columns = [
            values.astype(np.float32)
            for part in parts
            for name, values in _fields(part)
            if not (self._is_npy and name in _JSON_ONLY)
        ]
        self._parts[first] = np.hstack(columns) if self._is_npy else [_inner(c) for c in columns]
        # A column is a list: its template differs from that of one observation by the brackets.
        components = b",".join(_component_template(part, b"[%b]") for part in parts)
        self._template = b'{"components":[' + components + b"]}"


def _describe_rows(
    distribution: ActionDistribution, inputs: Float32Array, first: int
) -> list[ComponentDistribution]:
    """Return the distributions of a batch's rows; an error names the row's index in the batch."""
    try:
        return distribution.describe(inputs)
    except DistributionError as error:
        if len(inputs) == 1:
            raise DistributionError(f"observation {first}: {error.message}") from error
    # The first half that fails has the row to blame.
    middle = len(inputs) // 2
    _describe_rows(distribution, inputs[:middle], first)
    return _describe_rows(distribution, inputs[middle:], first + middle)


def _chances(outputs: PolicyOutputs) -> tuple[bytes, bytes]:
    """Return the JSON of every row's probability, and of its logarithm, without the brackets."""
    chances = np.empty((2, len(outputs.log_probability)), np.float32)
    chances[0] = outputs.probability
    chances[1] = _finite(outputs.log_probability)
    # One call for both costs a single row less than two.
    probability, _, log_probability = _inner(chances)[1:-1].partition(b"],[")
    return probability, log_probability


def _finite(values: Float64Array) -> Float64Array:
    """Return numbers that float32 holds; NaN stays."""
    finite: Float64Array = np.minimum(np.maximum(values, -LARGEST), LARGEST)
    return finite


def _true_columns(is_at: NDArray[np.bool_]) -> list[bytes]:
    """Return the JSON of the indices of the columns that are True, for each row."""
    return [
        orjson.dumps([column for column, is_there in enumerate(row) if is_there])
        for row in is_at.tolist()
    ]


def _action_columns(actions: Float64Array, layout: Sequence[ActionOutput]) -> list[list[bytes]]:
    """Return the JSON of each value, by column."""
    columns: list[list[bytes]] = []
    for output in layout:
        dtype = np.int64 if output.is_integer else np.float32
        for _ in range(output.columns):
            columns.append(_numbers(actions[:, len(columns)].astype(dtype)))
    return columns


def _actions(outputs: PolicyOutputs, layout: Sequence[ActionOutput]) -> bytes:
    """Return the JSON of every row's `actions`, without the outer brackets."""
    if len({output.is_integer for output in layout}) == 1 and (
        len(layout) == 1 or not any(output.is_vector for output in layout)
    ):
        dtype = np.int64 if layout[0].is_integer else np.float32
        return _inner(outputs.actions.astype(dtype))
    if not len(outputs.actions):
        return b""
    rows = zip(*_action_columns(outputs.actions, layout), strict=True)
    template = b"[" + _actions_template(tuple(layout)) + b"]"
    return b",".join([template % row for row in rows])


def _inner(values: NDArray[Any]) -> bytes:
    """Return the JSON of an array without the outer brackets; NaN is null."""
    return orjson.dumps(np.ascontiguousarray(values), option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]


def _numbers(column: NDArray[Any]) -> list[bytes]:
    """Return the JSON of each number; NaN is null."""
    return _inner(column).split(b",")


def _rows(values: NDArray[Any]) -> list[bytes]:
    """Return the JSON of each row of a matrix, with its brackets."""
    return [b"[" + row + b"]" for row in _inner(values.astype(np.float32))[1:-1].split(b"],[")]


@functools.lru_cache(maxsize=16)
def _prediction_template(layout: tuple[ActionOutput, ...], *, has_masses: bool) -> bytes:
    actions = b'{"actions":[' + _actions_template(layout)
    end = _AT_BOUND if has_masses else b"}"
    return actions + b'],"probability":%b,"log_probability":%b' + end


def _actions_template(layout: tuple[ActionOutput, ...]) -> bytes:
    if len(layout) == 1:
        return b",".join([b"%b"] * layout[0].columns)
    return b",".join(
        b"[" + b",".join([b"%b"] * output.columns) + b"]" if output.is_vector else b"%b"
        for output in layout
    )


def _fields(part: ComponentDistribution) -> list[tuple[bytes, NDArray[Any]]]:
    named = [
        (b"probabilities", part.probabilities),
        (b"mean", part.mean),
        (b"std", part.std),
        (b"mass_at_low", part.mass_at_low),
        (b"mass_at_high", part.mass_at_high),
        (b"value", part.value),
    ]
    return [(name, values) for name, values in named if values is not None]


def _component_template(part: ComponentDistribution, value: bytes = b"%b") -> bytes:
    component = part.component
    head: dict[str, Any] = {"kind": component.kind}
    if component.name is not None:
        head["name"] = component.name
    labels = (
        b"" if component.labels is None else b',"labels":' + orjson.dumps(list(component.labels))
    )
    values = b"".join(b',"' + name + b'":' + value for name, _ in _fields(part))
    return (
        orjson.dumps(head)[:-1].replace(b"%", b"%%") + values + labels.replace(b"%", b"%%") + b"}"
    )
