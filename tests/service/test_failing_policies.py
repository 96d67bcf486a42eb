"""A policy on Ray that fails, takes too much memory or hangs on some observations."""

from __future__ import annotations

import json
import time
from pathlib import Path

import httpx
import pytest

from tests.support.onnx_models import (
    DEADLY,
    FAILING,
    HARMLESS,
    HUNGRY,
    LASTING,
    UNKNOWN,
    failing_actor,
)
from tests.support.server_processes import KEY, Server, running_server
from tests.support.web import assert_error

pytestmark = [pytest.mark.service, pytest.mark.timeout(400)]

# A replica that hangs is ended after this, and a second more.
SHORTEST_HANG_S = 5.0
# A replica takes seconds to come up, on a busy machine many.
_REPLACED_WITHIN_S = 120.0
SETTINGS = {
    "POLICY_SERVER_ENGINE": "onnxruntime",
    "POLICY_SERVER_REQUEST_TIMEOUT_S": "2",
    "POLICY_SERVER_MAX_CALL_MEMORY_BYTES": "1000000000",
}


def events_of(server: Server) -> list[str]:
    """Return the events in the server's log."""
    return [json.loads(line)["event"] for line in server.output().splitlines()]


def test_observation_that_harms_a_replica_costs_its_own_request_alone(tmp_path: Path) -> None:
    failing_actor(tmp_path, is_lasting=True)
    (tmp_path / "schema.yaml").write_text(f"parameters: {{api_key: {KEY}, discrete: true}}")

    with running_server(tmp_path, environment=SETTINGS) as server, server.client() as client:

        def asked(row: list[float]) -> httpx.Response:
            return client.post("/predict_deterministic_raw", json={"obs": row})

        alone = asked(HARMLESS)
        for row, reason in ((FAILING, "policy"), (UNKNOWN, "NaN"), (HUNGRY, "policy")):
            assert_error(asked(row), 500, reason)
            assert asked(HARMLESS).json() == alone.json()
        # Three replicas take longer to come up than a request waits here.
        server.child.wait_until(
            lambda: asked(DEADLY).status_code == httpx.codes.INTERNAL_SERVER_ERROR,
            timeout_s=_REPLACED_WITHIN_S,
        )
        lost = events_of(server).count("replica_lost")
        refused = asked(DEADLY)
        lost_since = events_of(server).count("replica_lost")
        server.child.wait_until(
            lambda: events_of(server).count("replica_connected") >= 4,
            timeout_s=_REPLACED_WITHIN_S,
        )
        began = time.monotonic()
        late = asked(LASTING)
        given_up_s = time.monotonic() - began
        is_ready = client.get("/readyz").status_code == httpx.codes.OK
        server.child.wait_until(
            lambda: asked(HARMLESS).status_code == httpx.codes.OK, timeout_s=_REPLACED_WITHIN_S
        )
        replaced_s = time.monotonic() - began
        events = events_of(server)

    assert_error(refused, 500, "ended its process")
    assert lost == lost_since == 3
    assert late.status_code == httpx.codes.SERVICE_UNAVAILABLE, late.text
    assert "retry-after" in late.headers
    assert given_up_s < SHORTEST_HANG_S
    assert not is_ready
    assert replaced_s > SHORTEST_HANG_S
    assert events.count("replica_hung") == 1
    assert events.count("replica_lost") == 4
