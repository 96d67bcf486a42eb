"""A graph as it is run: its tensors for probes, and a plan's function."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.engine.proof import batch_sizes, extreme_rows, mixes_rows, probe_rows
from policy_server.errors import ModelError
from policy_server.formats.onnx.library_messages import remedy_for
from policy_server.formats.onnx.measured import Measured
from policy_server.formats.onnx.model_file import OnnxModel
from policy_server.formats.onnx.plan import Plan, rows_first
from policy_server.formats.onnx.roles import Roles
from policy_server.formats.onnx.runtimes import GraphRunError, open_runtime, row_function
from policy_server.formats.onnx.working_range import working_rows

__all__ = ["GraphRuns", "RowFunction"]

Array = NDArray[Any]
RowFunction = Callable[[Array], Array]
"""A function of rows: float[B, D] -> float[B, K]."""

# A number of rows that few other sizes are, so that the axis of the rows is told from others.
_MEASURED_ROWS = 191


class GraphRuns:
    """A graph that is run for observations, row by row where it takes no batch.

    Attributes:
        model: the graph.
        roles: the parts of its inputs and outputs.
        width: how many numbers a row has: the observation, then the state before the step.
        is_batch_fixed: whether an input takes one row alone.
    """

    def __init__(self, model: OnnxModel, roles: Roles) -> None:
        """Own what was measured, for as long as the policy is loaded.

        Args:
            model: the graph.
            roles: the parts of its inputs and outputs.
        """
        self.model = model
        self.roles = roles
        self.width = roles.observation_width + sum(item.size for item in roles.memory)
        fixed = {
            item.name
            for item in model.inputs
            if item.shape is not None and all(size is not None for size in item.shape)
        }
        self.is_batch_fixed = any(
            feed.rows_axis is None or feed.name in fixed for feed in roles.feeds
        )

        self._measured: dict[str, Measured] = {}

    @functools.cached_property
    def probes(self) -> Array:
        """Return observations of many kinds, and of those around the graph's own normaliser."""
        common = probe_rows(self.width, np.float32)
        working = working_rows(self.model, self.roles.feeds, self.width)
        return common if working is None else np.concatenate([common, working])

    def measure(self, tensors: Sequence[str]) -> Mapping[str, Measured]:
        """Return the values of tensors for probes, as a runtime gives them.

        Args:
            tensors: the names of the tensors.

        Raises:
            ModelError: if the graph can't be run.
        """
        new = [name for name in tensors if name not in self._measured]
        if new:
            self._measured |= self._run(new)
        return self._measured

    def _run(self, tensors: Sequence[str]) -> dict[str, Measured]:
        constants = {n: self.model.constants[n] for n in tensors if n in self.model.constants}
        computed = [name for name in tensors if name not in constants]
        rows = self.probes
        size = 1 if self.is_batch_fixed else _MEASURED_ROWS
        rows = rows[: len(rows) // size * size]
        found = {
            name: Measured(
                value.reshape(1, -1),
                value.dtype.kind in "iub",
                is_one_a_row=False,
                shape=value.shape,
            )
            for name, value in constants.items()
        }
        if not computed:
            return found
        runtime = open_runtime(self.model, computed)
        values: list[Mapping[str, Array]] = []
        try:
            for first in range(0, len(rows), size):
                batch = rows[first : first + size]
                values.append(runtime.run({feed.name: feed.of(batch) for feed in self.roles.feeds}))
        except GraphRunError as error:
            raise ModelError(
                f"{self.model.name}: can't be computed: {error}; {remedy_for(str(error))}"
            ) from error
        for name in computed:
            parts = [item[name] for item in values]
            is_of_rows = parts[0].ndim > 0 and len(parts[0]) == size
            tables = [rows_first(part, size, 0 if is_of_rows else None) for part in parts]
            found[name] = Measured(
                np.concatenate(tables),
                has_integer_type=parts[0].dtype.kind in "iub",
                is_one_a_row=is_of_rows and parts[0].ndim == 1,
                shape=parts[0].shape,
            )
        return found

    def function(self, plan: Plan, *, is_literal: bool = True) -> RowFunction:
        """Return a plan's function, as a runtime computes it.

        Args:
            plan: the inputs and results.
            is_literal: see `open_runtime`.
        """
        tensors = [item.tensor for item in plan.pieces if item.tensor not in self.model.constants]
        runtime = open_runtime(self.model, tensors, is_literal=is_literal)
        constants = self.model.constants
        at_once = row_function(runtime, plan, constants, is_row_by_row=False)
        alone = row_function(runtime, plan, constants, is_row_by_row=True)
        if self.is_batch_fixed:
            return alone
        rows = probe_rows(plan.width, np.float32)
        try:
            others = extreme_rows(plan.width, "float32", np.float32)
            mixed = mixes_rows(at_once, rows, others, batch_sizes(0)[:-2], refusal=GraphRunError)
        except GraphRunError:
            return alone
        return at_once if mixed is None else alone
