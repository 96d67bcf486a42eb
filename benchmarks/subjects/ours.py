"""Policy Server itself, the floor below it, and one Ray call a request."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.load import Request
from benchmarks.subjects.subject import OBSERVATION, Group, Subject, Workplace
from policy_server.settings import Settings

__all__ = ["KEY", "OURS"]

# That of examples/mouse_and_cheese/schema.yaml.
KEY = "1234567asdfgh"
_BODY = json.dumps(OBSERVATION).encode()
_HEADERS = {"content-type": "application/json"}
_REQUEST = Request("/predict", _BODY, {**_HEADERS, "access-token": KEY})
_QUIET = ("--no-access-log",)
_APP = ("app:app", *_QUIET)


def _read(answer: Any) -> tuple[int, float]:  # noqa: ANN401 -- JSON
    return answer["actions"][0], answer["probability"]


def _uvicorn(*arguments: str) -> Callable[[Workplace, list[int]], list[str]]:
    return lambda _workplace, ports: [
        *(sys.executable, "-m", "uvicorn", *arguments),
        *("--host", "127.0.0.1", "--port", str(ports[0])),
    ]


def _settings(
    backend: str, replicas: int = 1, *, has_dashboard: bool = True
) -> Callable[[Workplace, list[int]], Mapping[str, str]]:
    def variables(workplace: Workplace, ports: list[int]) -> Mapping[str, str]:
        # Where it is not turned off, it runs if it does for users; only its port is another.
        is_shown = has_dashboard and Settings.model_fields["dashboard_port"].default != 0
        return {
            "POLICY_SERVER_HOME": str(workplace.home),
            "POLICY_SERVER_BACKEND": backend,
            "POLICY_SERVER_NUM_REPLICAS": str(replicas),
            "POLICY_SERVER_METRICS_PORT": str(ports[1]),
            "POLICY_SERVER_DASHBOARD_PORT": str(ports[2] if is_shown else 0),
        }

    return variables


def _ours(
    name: str,
    title: str,
    *arguments: str,
    group: Group = "ours",
    backend: str = "local",
    replicas: int = 1,
    has_dashboard: bool = True,
) -> Subject:
    return Subject(
        name=name,
        title=title,
        group=group,
        request=_REQUEST,
        read=_read,
        command=_uvicorn(*arguments),
        environment=_settings(backend, replicas, has_dashboard=has_dashboard),
        ports=3,
    )


OURS = (
    _ours("ray", "Policy Server, Ray", *_APP, backend="ray"),
    _ours("ray-logs", "Policy Server, Ray, with access log", "app:app", backend="ray"),
    _ours(
        *("ray-no-dashboard", "Policy Server, Ray, without its dashboard"),
        *_APP,
        backend="ray",
        has_dashboard=False,
    ),
    _ours("local", "Policy Server, local", *_APP),
    _ours("local-logs", "Policy Server, local, with access log", "app:app"),
    _ours("ray-2", "Policy Server, Ray, 2 replicas", *_APP, backend="ray", replicas=2),
    _ours("ray-4", "Policy Server, Ray, 4 replicas", *_APP, backend="ray", replicas=4),
    _ours("local-workers-2", "Policy Server, local, --workers 2", *_APP, "--workers", "2"),
    Subject(
        name="floor",
        title="floor: a bare protocol, a constant answer",
        group="floor",
        request=_REQUEST,
        read=_read,
        command=lambda _workplace, ports: [
            *(sys.executable, "-m", "benchmarks.floor", str(ports[0]))
        ],
    ),
    _ours(
        *("bare-asgi", "bare ASGI under uvicorn, a constant answer"),
        *("--factory", "benchmarks.apps.floor:bare_asgi", *_QUIET),
        group="floor",
    ),
    _ours(
        *("fastapi-route", "local, FastAPI's own route instead of the fast path"),
        *("--factory", "benchmarks.apps.floor:without_fast_path", *_QUIET),
        group="floor",
    ),
    _ours(
        *("ray-call", "FastAPI, one Ray call a request"),
        *("--factory", "benchmarks.apps.ray_calls:default", *_QUIET),
        group="ray",
        backend="ray",
    ),
    _ours(
        *("ray-call-tuned", "FastAPI, one Ray call a request, tuned"),
        *("--factory", "benchmarks.apps.ray_calls:tuned", *_QUIET),
        group="ray",
        backend="ray",
    ),
)
