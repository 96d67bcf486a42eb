"""Corrections to generated files."""

from __future__ import annotations

from pathlib import PurePosixPath

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
