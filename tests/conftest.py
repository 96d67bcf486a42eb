"""Settings of Python and of Hypothesis for the whole run."""

from __future__ import annotations

import gc

from hypothesis import HealthCheck, settings

# How long an example takes is the machine's business.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")


def pytest_collection_finish() -> None:
    """Leave what the imports made to itself: millions of objects, of TensorFlow's above all.

    Else each full collection of garbage looks at them again, and Streamlit asks for one whenever
    its page has run.
    """
    gc.collect()
    gc.freeze()
