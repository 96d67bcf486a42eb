"""A small policy as NumPy operations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from policy_server.engine.network import CompiledPolicy, NumpyNetwork, Step
from tests.support.fakes import components_of, signature_of

__all__ = ["COMPILED"]

COMPILED = CompiledPolicy(
    replace(signature_of(components_of(("categorical", 2))), findings=("proved",), engine="numpy"),
    NumpyNetwork(
        {1: np.eye(2, dtype=np.float32)},
        (Step("MatMul", (0, 1), 2, (("transpose_a", False), ("transpose_b", True))),),
        result=2,
        registers=3,
    ),
)
