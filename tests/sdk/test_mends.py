"""Corrections to generated files."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest

from policy_server.sdk.mends import mend

OBSERVATION = b"""
  @jakarta.annotation.Nonnull
  private List<Double> obs = new ArrayList<>();

  @jakarta.annotation.Nullable
  private List<Long> actionMask = new ArrayList<>();
"""


def test_list_that_is_left_out_is_not_sent_by_java() -> None:
    mended = mend(PurePosixPath("model/RawObservation.java"), OBSERVATION, {})

    assert b"obs = new ArrayList<>();" in mended
    assert b"private List<Long> actionMask;" in mended
    assert mend(PurePosixPath("model/Component.java"), OBSERVATION, {}) == OBSERVATION


@pytest.mark.parametrize(
    ("file", "text", "mended"),
    [
        (
            "policy_client/api/sessions_api.py",
            b"            _header_params['x-previous-reward'] = x_previous_reward\n",
            b"            _header_params['x-previous-reward'] = str(x_previous_reward)\n",
        ),
        (
            "src/api/SessionsApi.scala",
            b'      .header("x-previous-reward", xPreviousReward)\n',
            b'      .header("x-previous-reward", xPreviousReward.map(_.toString))\n',
        ),
        (
            "R/sessions_api.R",
            b'      header_params["x-step"] <- `x_step`\n',
            b"      if (!is.null(`x_step`)) {\n"
            b'        header_params["x-step"] <- '
            b"format(`x_step`, digits = 15, scientific = FALSE)\n"
            b"      }\n",
        ),
    ],
    ids=["python", "scala", "r"],
)
def test_headers_of_a_request_are_text(file: str, text: bytes, mended: bytes) -> None:
    assert mend(PurePosixPath(file), text, {}) == mended


def test_retries_of_r_sleep_for_no_429_and_for_no_longer_than_a_bound() -> None:
    text = (
        b"      req <- req %>% retry_max_tries(self$max_retry_attempts)\n"
        b"      req <- req %>% retry_max_seconds(self$timeout)\n"
    )

    mended = mend(PurePosixPath("R/api_client.R"), text, {}).decode()

    assert "is_transient = function(resp) resp_status(resp) == 503" in mended
    assert "after = function(resp) min(resp_retry_after(resp), 5)" in mended
