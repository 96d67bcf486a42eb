"""Policies that fail, hang or take too much memory on some observations, beside ordinary ones."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tests.faults.expectations import Expectation, Limits
from tests.faults.load import Harmful, Load, Question
from tests.faults.measuring import Fault, Scene, temporary
from tests.support.onnx_models import (
    DEADLY,
    FAILING,
    HUNGRY,
    LASTING,
    UNKNOWN,
    failing_actor,
)
from tests.support.server_processes import KEY, running_server

__all__ = ["FAULTS", "never", "question_of"]

_ROUTE = "/predict_deterministic_raw"
_OBSERVATIONS = 32
_FAILED = 500
_MEMORY_BYTES = 1_000_000_000
_AFTER_S, _AFTER_A_HANG_S = 25.0, 50.0
# What hangs holds up ten seconds of calls, and four of those that were asked with it.
_HERE_S = 17.0
# With Ray up to a second more until the first replica ends, and the time in which others start.
_APART_S = 20.0
# One that comes again before it is known may hold up a third.
_TWICE_S = 25.0
_OTHERS, _THOSE = "all others", "those"


@contextmanager
def _serving(
    folder: Path,
    hostile: Sequence[Sequence[float]],
    *,
    backend: str = "ray",
    replicas: int = 1,
    pause_s: float = 1.0,
    after_s: float = _AFTER_S,
    **settings: str,
) -> Iterator[Scene]:
    """Serve a policy that onnxruntime computes; from the fault on one client asks what harms it."""
    home = folder / "home"
    home.mkdir()
    model = failing_actor(home, is_lasting=True)
    (home / "schema.yaml").write_text(f"parameters: {{api_key: {KEY}, discrete: true}}")
    environment = {
        "TMPDIR": str(temporary(folder)),
        "POLICY_SERVER_BACKEND": backend,
        "POLICY_SERVER_ENGINE": "onnxruntime",
        "POLICY_SERVER_NUM_REPLICAS": str(replicas),
        **settings,
    }
    with running_server(home, environment=environment) as server:
        questions = [question_of(row, never)._replace(failure=_FAILED) for row in hostile]
        harmful = Harmful(server.url, questions, 1, pause_s=pause_s)
        loads = {_OTHERS: Load(server.url, _questions(model)), _THOSE: harmful}
        yield Scene(server, loads, harmful.begins.set, after_s=after_s)


def _questions(model: Path) -> list[Question]:
    """Return ordinary observations, with the modes that onnxruntime gives here."""
    # Else it writes files, and reports to its maker.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    session = onnxruntime.InferenceSession(model)
    rows = np.random.default_rng(0).random((_OBSERVATIONS, 4), np.float32)
    modes = [int(session.run(None, {"obs": row[None]})[0].argmax()) for row in rows]
    return [
        question_of(row.tolist(), partial(_is_mode, mode))
        for row, mode in zip(rows, modes, strict=True)
    ]


def _is_mode(mode: int, answer: dict[str, Any]) -> bool:
    return bool(answer["actions"] == [mode])


def never(_: object) -> bool:
    """Return False: an observation that harms a policy has no right answer."""
    return False


def question_of(row: Sequence[float], is_right: Callable[[Any], bool]) -> Question:
    """Return a question about one observation.

    Args:
        row: its numbers.
        is_right: whether the JSON of a 200 is the right answer.
    """
    return Question(_ROUTE, json.dumps({"obs": list(row)}), is_right)


def _fault(
    told: str,
    *hostile: Sequence[float],
    expected: Expectation,
    **options: Any,  # noqa: ANN401 -- those of `_serving`
) -> Fault:
    return Fault(told, partial(_serving, hostile=hostile, **options), expected)


_FAIL = Expectation({_THOSE: Limits(failed=math.inf)})
_END = Expectation({_THOSE: Limits(failed=1)})
# The others of its call are asked again one by one, some behind the one at which the policy hangs.
_HANG = Expectation(
    {_OTHERS: Limits(slowest_s=_APART_S), _THOSE: Limits(refused=1, slowest_s=_APART_S)},
    ready_s=_APART_S,
)
_HANG_HERE = Expectation(
    {_OTHERS: Limits(slowest_s=_HERE_S), _THOSE: Limits(refused=1, slowest_s=_HERE_S)}
)
# Asked alone it holds up one more replica, or a thread apart; from then on it is refused at once.
_HANG_ON_HERE = Expectation(
    {_OTHERS: Limits(slowest_s=_HERE_S), _THOSE: Limits(refused=math.inf, slowest_s=_HERE_S)}
)
_HANG_ON = Expectation(
    {_OTHERS: Limits(slowest_s=_TWICE_S), _THOSE: Limits(refused=math.inf, slowest_s=_TWICE_S)},
    ready_s=_TWICE_S,
)
_BOUND = {"POLICY_SERVER_MAX_CALL_MEMORY_BYTES": str(_MEMORY_BYTES)}
_ONCE = {"pause_s": 1000.0, "after_s": _AFTER_A_HANG_S}

FAULTS = {
    "fails": _fault(
        "observations that fail or give NaN, ten a second",
        FAILING,
        UNKNOWN,
        expected=_FAIL,
        pause_s=0.1,
    ),
    "fails-local": _fault(
        "the same, BACKEND=local", FAILING, UNKNOWN, expected=_FAIL, backend="local", pause_s=0.1
    ),
    "ends": _fault("an observation that ends its process", DEADLY, expected=_END, **_ONCE),
    "ends-two": _fault(
        "an observation that ends its process, two replicas",
        DEADLY,
        expected=_END,
        replicas=2,
        **_ONCE,
    ),
    "hangs": _fault("an observation that takes minutes", LASTING, expected=_HANG, **_ONCE),
    "hangs-two": _fault(
        "an observation that takes minutes, two replicas",
        LASTING,
        expected=_HANG,
        replicas=2,
        **_ONCE,
    ),
    "hangs-local": _fault(
        "the same, BACKEND=local", LASTING, expected=_HANG_HERE, backend="local", **_ONCE
    ),
    "hangs-on": _fault(
        "the same observation again and again, a second after each answer",
        LASTING,
        expected=_HANG_ON,
        after_s=_AFTER_A_HANG_S,
    ),
    "hangs-on-local": _fault(
        "the same, BACKEND=local",
        LASTING,
        expected=_HANG_ON_HERE,
        backend="local",
        after_s=_AFTER_A_HANG_S,
    ),
    "eats": _fault(
        "an observation that takes 4 GB, where calls may take 1 GB",
        HUNGRY,
        expected=_FAIL,
        **_BOUND,
    ),
}
