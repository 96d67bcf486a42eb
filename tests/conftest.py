"""Settings of Python and of Hypothesis for the whole run."""

from __future__ import annotations

import gc

import pytest
from hypothesis import HealthCheck, settings

from tests.support.audit import audited

# How long an example takes is the machine's business.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the modules that watch Python's audit events last; see `tests.support.audit`."""
    items.sort(key=lambda item: getattr(getattr(item, "module", None), "audited", None) is audited)


def pytest_collection_finish() -> None:
    """Leave what the imports made to itself: millions of objects, of TensorFlow's above all.

    Else each full collection of garbage looks at them again, and Streamlit asks for one whenever
    its page has run.
    """
    gc.collect()
    gc.freeze()
