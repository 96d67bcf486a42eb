"""One call of the policy by every engine: `python -m benchmarks.measures.engines HOME`.

It runs in a process of its own: TensorFlow changes the process that imports it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import numpy as np

from benchmarks.own_process import median_us, run_module
from benchmarks.progress import say
from benchmarks.results import EngineCell, Results
from policy_server.errors import PolicyServerError
from policy_server.formats import load_policy
from policy_server.formats.finding import prepare_model
from policy_server.policy import PolicyInputs
from policy_server.schema import read_schema
from policy_server.settings import Engine, Settings

__all__ = ["measure_engines"]

_BATCHES = (1, 32, 256, 1024)


def measure_engines(results: Results, home: Path, environment: Mapping[str, str]) -> None:
    """Time one call by each engine and batch size.

    Args:
        results: gets the cells.
        home: holds schema.yaml and the policy.
        environment: what the process inherits.
    """
    document = run_module("engines", home, environment, results)
    if document is None:
        return
    results.engines = [EngineCell(**item) for item in document["cells"]]
    results.missing |= document["missing"]
    for cell in results.engines:
        say(f"engine   {cell.engine:<18} batch {cell.batch:>5}: {cell.call_us:.0f} us a call")


def _measure(home: Path) -> dict[str, Any]:
    folder, schema = prepare_model(Settings(home=home)), read_schema(home / "schema.yaml")
    cells, missing = [], {}
    engines: list[Engine] = [name for name in get_args(Engine) if name != "auto"]
    for engine in engines:
        try:
            policy: Any = load_policy(folder, schema, engine=engine)
        except PolicyServerError as error:
            missing[f"engine {engine}"] = error.message
            continue
        cells += [_cell(engine, policy, batch) for batch in _BATCHES]
    return {"cells": [asdict(cell) for cell in cells], "missing": missing}


def _cell(engine: str, policy: Any, batch: int) -> EngineCell:  # noqa: ANN401 -- one class an engine
    width = policy.signature.observation_width
    rows = np.random.default_rng(0).uniform(0, 5, (batch, width)).astype(np.float32)
    inputs = PolicyInputs.of(rows)
    forward = _forward(policy)
    call_us = median_us(lambda: policy.infer(inputs))
    return EngineCell(
        engine=engine,
        batch=batch,
        forward_us=None if forward is None else round(median_us(lambda: forward(rows)), 2),
        call_us=round(call_us, 2),
    )


def _forward(policy: Any) -> Callable[[Any], Any] | None:  # noqa: ANN401 -- one class an engine
    if hasattr(policy, "distribution_inputs"):
        forward: Callable[[Any], Any] = policy.distribution_inputs
        return forward
    compiled = getattr(policy, "compiled", None)
    return None if compiled is None else compiled.network.compile()


if __name__ == "__main__":
    print(json.dumps(_measure(Path(sys.argv[1]))))
