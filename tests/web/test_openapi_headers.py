"""The forms of headers in the OpenAPI document, held against what the server takes."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis.strategies import from_regex

from policy_server.errors import ObservationError
from policy_server.policy import ActionOutput, PolicySignature, StateTensor
from policy_server.serving import StatedStep
from policy_server.serving.previous_step import PreviousStep
from policy_server.web.openapi_headers import previous_action_pattern
from tests.support.fakes import components_of, previous_backend, signature_of, summing_backend
from tests.support.web import serve

_MEMORY = (StateTensor("prev_actions", (4,), role="previous_action"),)
_CHOICES = ActionOutput("actions_0", is_integer=True, columns=1, is_vector=False)
_VECTOR = ActionOutput("actions_1", is_integer=False, columns=3, is_vector=True)
TUPLE = replace(
    signature_of(components_of(("categorical", 57), ("normal", 3)), outputs=(_CHOICES, _VECTOR)),
    memory=_MEMORY,
)
ONE = previous_backend().signature


def is_taken(signature: PolicySignature, text: str) -> bool:
    previous = PreviousStep(signature)
    state = np.zeros(signature.memory_width, np.float32)
    try:
        stated = StatedStep.of({"x-previous-action": text, "x-previous-reward": "0"})
        previous.check(stated)
        previous.write(state, stated, has_action=True)
    except ObservationError:
        return False
    return True


@pytest.mark.parametrize("signature", [TUPLE, ONE, None], ids=["tuple", "choice", "any"])
def test_text_of_the_form_of_an_action_is_taken(signature: PolicySignature | None) -> None:
    @given(from_regex(previous_action_pattern(signature), fullmatch=True))
    def check(text: str) -> None:
        assert is_taken(signature or summing_backend().signature, text.strip())

    check()


@pytest.mark.parametrize(
    ("signature", "text"),
    [
        (ONE, ""),
        (ONE, "[3]"),
        (ONE, "3"),
        (ONE, "[0.5]"),
        (ONE, "[0, 1]"),
        (ONE, "[]"),
        (ONE, "true"),
        (TUPLE, "[57, 0, 0, 0]"),
        (TUPLE, "[56, 0, 0]"),
        (TUPLE, "56"),
        (None, ""),
        (None, "01"),
        (None, ".5"),
        (None, "NaN"),
        (None, "1e999"),
        (None, '"1"'),
        (None, "{}"),
        (None, "[1,]"),
    ],
    ids=str,
)
def test_other_text_is_neither_documented_nor_taken(
    signature: PolicySignature | None, text: str
) -> None:
    assert re.search(previous_action_pattern(signature), text) is None
    assert not is_taken(signature or summing_backend().signature, text)


@pytest.mark.parametrize(
    ("signature", "action"),
    [
        (ONE, 2),
        (ONE, [2]),
        (ONE, [2.0]),
        (TUPLE, [56, [0.5, -1e-7, 3]]),
        (TUPLE, [0, -0.25, 1e16, 3]),
        (None, [4, [0.5, [][:0]]][:1]),
        (None, None),
    ],
    ids=str,
)
def test_actions_as_clients_write_them_are_documented(
    signature: PolicySignature | None, action: object
) -> None:
    for text in (json.dumps(action), json.dumps(action, separators=(",", ":"))):
        assert re.search(previous_action_pattern(signature), text)
        assert is_taken(signature or summing_backend().signature, text)


@pytest.mark.parametrize("size", [1, 2, 10, 11, 57, 100, 101, 1234])
def test_choices_are_those_below_the_size(size: int) -> None:
    signature = replace(
        signature_of(components_of(("categorical", size)), outputs=(_CHOICES,)), memory=()
    )
    form = re.compile(previous_action_pattern(signature))

    assert [text for text in range(2000) if form.search(str(text))] == [*range(size)]


async def test_document_has_the_forms_of_headers_and_names() -> None:
    async with serve(previous_backend()) as client:
        paths = (await client.get("/openapi.json")).json()["paths"]
        token = await client.post("/predict_raw", json={"obs": [1, 1]}, headers={"x-state": "new"})
        session = (await client.post("/sessions")).json()["session_id"]

    def schema_of(path: str, name: str) -> dict[str, Any]:
        found = {item["name"]: item["schema"] for item in paths[path]["post"]["parameters"]}
        return dict(found[name])

    step = "/sessions/{session_id}/predict"
    state = schema_of("/predict_raw", "x-state")["pattern"]
    assert [bool(re.search(state, text)) for text in (token.headers["x-state"], "new", "")] == [
        True,
        True,
        False,
    ]
    assert re.search(schema_of(step, "session_id")["pattern"], session)
    assert schema_of(step, "x-step")["maximum"] == 2**63 - 1
    for path in ("/predict", "/predict_raw", step):
        assert schema_of(path, "x-previous-action")["pattern"] == previous_action_pattern(ONE)
    for path in ("/predict", "/predict/batch"):
        assert schema_of(path, "x-episode-id")["maxLength"] == 256
        assert schema_of(path, "x-policy-version")["type"] == "string"
    begin = {item["name"] for item in paths["/sessions"]["post"]["parameters"]}
    assert begin == {"x-policy-version"}


async def test_document_says_when_headers_of_an_episode_are_not_read_or_refused() -> None:
    made_up, wrong = {"x-state": "A" * 60}, {"x-previous-reward": "much"}
    async with serve(previous_backend()) as client:
        paths = (await client.get("/openapi.json")).json()["paths"]
        refused = await client.post("/predict_raw", json={"obs": [1, 1]}, headers=made_up)
        unread = await client.post("/predict_raw", json={"obs": [1, 1]}, headers=wrong)

    told = {
        item["name"]: item["description"] for item in paths["/predict_raw"]["post"]["parameters"]
    }
    assert (refused.status_code, unread.status_code) == (422, 200)
    assert "what this server has not signed is 422" in told["x-state"]
    for name in ("x-previous-reward", "x-previous-action"):
        assert told[name].endswith("; not read without `x-state`")
