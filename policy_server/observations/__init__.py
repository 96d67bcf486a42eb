"""Observations: a request's bytes are validated, and become rows of numbers.

`models` generates the pydantic models from schema.yaml, `space` reads one observation with them,
and `json_batches` and `npy_batches` read many, piece by piece as they arrive.
"""

from __future__ import annotations

from policy_server.observations.action_mask import ActionMask
from policy_server.observations.agents import check_agents, parse_agents
from policy_server.observations.batch_layout import BatchLayout, BatchReader, Matrix
from policy_server.observations.json_batches import JsonBatchReader
from policy_server.observations.models import problem, validate
from policy_server.observations.npy_batches import NpyBatchReader
from policy_server.observations.row_encoding import Row
from policy_server.observations.space import ObservationSpace

__all__ = [
    "ActionMask",
    "BatchLayout",
    "BatchReader",
    "JsonBatchReader",
    "Matrix",
    "NpyBatchReader",
    "ObservationSpace",
    "Row",
    "check_agents",
    "parse_agents",
    "problem",
    "validate",
]
