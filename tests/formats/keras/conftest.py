"""Keras files in tests: their weights are read in the tests' own process."""

from __future__ import annotations

import pytest

from policy_server.formats.keras import keras_policy
from tests.support.keras_weights import read_here


@pytest.fixture(autouse=True)
def _weights_read_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start no process for each file, which takes 0.2 s of the processor for its imports.

    Those of `test_stored_weights.py` ask the process, and loads of Keras files in other rooms do.
    """
    monkeypatch.setattr(keras_policy, "read_weights", read_here)
