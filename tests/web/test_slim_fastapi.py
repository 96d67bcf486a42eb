"""FastAPI without what a start does not need."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from pydantic import BaseModel, ConfigDict

from policy_server.web.slim_fastapi import built_when_used
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


def test_model_that_is_built_when_used_validates_and_the_next_one_is_built_at_once() -> None:
    with built_when_used():

        class Deferred(BaseModel):
            model_config = ConfigDict(extra="forbid")
            count: int

    class Ordinary(BaseModel):
        count: int

    kinds = [type(model.__pydantic_validator__).__name__ for model in (Deferred, Ordinary)]
    assert kinds == ["MockValSer", "SchemaValidator"]
    assert Deferred(count=2).count == 2
    with pytest.raises(ValueError, match="extra"):
        Deferred.model_validate({"count": 2, "more": 1})
