"""Other servers, each with the same network in a virtual environment of its own."""

from __future__ import annotations

import json
import sys
import sysconfig
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.load import Request
from benchmarks.peers.network import WEIGHTS_VARIABLE
from benchmarks.subjects.subject import OBSERVATION, ROOT, Subject, Workplace

__all__ = ["PEERS"]

_HEADERS = {"content-type": "application/json"}
_NAMED = Request("/predict", json.dumps(OBSERVATION).encode(), _HEADERS)
_WRAPPED = Request("/predict", json.dumps({"observation": OBSERVATION}).encode(), _HEADERS)
_ARRAY = Request(
    "/predict", json.dumps({"observations": [list(OBSERVATION.values())]}).encode(), _HEADERS
)
_TENSOR = {
    "name": "observations",
    "shape": [1, len(OBSERVATION)],
    "datatype": "FP32",
    "data": list(OBSERVATION.values()),
}
# The Open Inference Protocol, version 2: tensors, without names of their columns.
_V2 = Request("/v2/models/policy/infer", json.dumps({"inputs": [_TENSOR]}).encode(), _HEADERS)
_MLSERVER_BATCHING = {"max_batch_size": 256, "max_batch_time": 0.0005}


def _read(answer: Any) -> tuple[int, float]:  # noqa: ANN401 -- JSON
    return answer["actions"][0], answer["probability"]


def _read_array(answer: Any) -> tuple[int, float]:  # noqa: ANN401 -- JSON
    action, probability = answer[0]
    return int(action), probability


def _read_v2(answer: Any) -> tuple[int, float]:  # noqa: ANN401 -- JSON
    outputs = {output["name"]: output["data"] for output in answer["outputs"]}
    return outputs["actions"][0], outputs["probability"][0]


def _program(workplace: Workplace, peer: str, name: str) -> str:
    return str(workplace.environments / peer / "bin" / name)


def _variables(workplace: Workplace, _ports: list[int]) -> Mapping[str, str]:
    return {WEIGHTS_VARIABLE: str(workplace.weights), "PYTHONPATH": str(ROOT)}


def _ray_variables(workplace: Workplace, ports: list[int]) -> Mapping[str, str]:
    return {
        **_variables(workplace, ports),
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def _pytriton_variables(workplace: Workplace, ports: list[int]) -> Mapping[str, str]:
    # Its backend loads libpython by name, and would take another Python's.
    libraries = str(sysconfig.get_config_var("LIBDIR"))
    return {**_variables(workplace, ports), "LD_LIBRARY_PATH": libraries}


def _mlserver(name: str, title: str, batching: Mapping[str, float]) -> Subject:
    """Return MLServer in one process: its pool is for models that keep a core busy."""

    def folder(workplace: Workplace, ports: list[int]) -> Path:
        place = workplace.scratch / name
        place.mkdir(exist_ok=True)
        settings = {
            "debug": False,
            "host": "127.0.0.1",
            "http_port": ports[0],
            "grpc_port": ports[1],
            "metrics_endpoint": None,
            "parallel_workers": 0,
        }
        model = {
            "name": "policy",
            "implementation": "benchmarks.peers.mlserver_runtime.PolicyRuntime",
            **batching,
        }
        (place / "settings.json").write_text(json.dumps(settings))
        (place / "model-settings.json").write_text(json.dumps(model))
        return place

    return Subject(
        name=name,
        title=title,
        group="peer",
        request=_V2,
        read=_read_v2,
        command=lambda workplace, _ports: [
            *(_program(workplace, "mlserver", "mlserver"), "start", "."),
        ],
        environment=_variables,
        ports=2,
        folder=folder,
        peer="mlserver",
    )


def _bentoml(
    name: str,
    title: str,
    service: str,
    request: Request,
    read: Callable[[Any], tuple[int, float]],
) -> Subject:
    return Subject(
        name=name,
        title=title,
        group="peer",
        request=request,
        read=read,
        command=lambda workplace, ports: [
            *(_program(workplace, "bentoml", "bentoml"), "serve"),
            f"benchmarks.peers.bentoml_service:{service}",
            *("--host", "127.0.0.1", "--port", str(ports[0]), "--do-not-track", "--quiet"),
        ],
        environment=_variables,
        peer="bentoml",
    )


def _litserve(name: str, title: str, *arguments: str) -> Subject:
    return Subject(
        name=name,
        title=title,
        group="peer",
        request=_NAMED,
        read=_read,
        command=lambda workplace, ports: [
            *(_program(workplace, "litserve", "python"), "-m"),
            *("benchmarks.peers.litserve_server", str(ports[0]), *arguments),
        ],
        environment=_variables,
        peer="litserve",
    )


PEERS = (
    _mlserver("mlserver", "MLServer", {}),
    _mlserver("mlserver-batching", "MLServer, adaptive batching", _MLSERVER_BATCHING),
    _bentoml("bentoml", "BentoML", "PolicyService", _WRAPPED, _read),
    _bentoml(
        "bentoml-batching", "BentoML, adaptive batching", "BatchingService", _ARRAY, _read_array
    ),
    _litserve("litserve", "LitServe"),
    _litserve("litserve-batching", "LitServe, dynamic batching", "batching"),
    Subject(
        name="ray-http",
        title="Ray Serve's HTTP ingress",
        group="peer",
        request=_NAMED,
        read=_read,
        command=lambda _workplace, ports: [
            *(sys.executable, "-m", "benchmarks.peers.ray_http_server", str(ports[0])),
        ],
        environment=_ray_variables,
    ),
    Subject(
        name="pytriton",
        title="PyTriton",
        group="peer",
        request=_V2,
        read=_read_v2,
        command=lambda workplace, ports: [
            *(_program(workplace, "pytriton", "python"), "-m"),
            *("benchmarks.peers.pytriton_server", *map(str, ports)),
        ],
        environment=_pytriton_variables,
        ports=3,
        peer="pytriton",
    ),
)
