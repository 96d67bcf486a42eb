"""FastAPI without what a start does not need."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.support.folders import ROOT

STARTED = """
import json, sys
from pathlib import Path
from pydantic import BaseModel
from policy_server import create_app

app = create_app(Path("examples/mouse_and_cheese"))
from fastapi.openapi.models import Info, PathItem
from policy_server.web.policy_list import PolicyList
from policy_server.web.admin_routes import DeploymentStatus

def is_built(model):
    return type(model.__pydantic_validator__).__name__ == "SchemaValidator"

models = Info, PathItem, DeploymentStatus, PolicyList, type("Later", (BaseModel,), {})
print(json.dumps({
    "built": [model.__name__ for model in models if is_built(model)],
    "pydantic 1": "pydantic.v1" in sys.modules,
    "pages": len(app.openapi()["paths"]),
}))
"""


def test_start_builds_no_model_of_openapi_and_brings_no_pydantic_1() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", STARTED], cwd=ROOT, capture_output=True, text=True, check=True
    )

    found = json.loads(ended.stdout)
    assert found["built"] == ["Later"]
    assert not found["pydantic 1"]
    assert found["pages"] > 10
