"""Settings of Python and of Hypothesis for the whole run."""

from __future__ import annotations

import gc
import random
import signal

import pytest
from hypothesis import HealthCheck, settings

from tests.support.audit import audited

# How long an example takes is the machine's business.
settings.register_profile("drawing", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# The same examples each time: what is new may not be refused for a drawing of what is old.
settings.register_profile("any machine", settings.get_profile("drawing"), derandomize=True)
settings.load_profile("any machine")
# Keras draws its first weights from here, at the import of a module and in a test.
_SEED = 20
random.seed(_SEED)


def pytest_configure() -> None:
    """Let interrupted programs hear it where a background shell has them ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the modules that watch Python's audit events last; see `tests.support.audit`."""
    items.sort(key=lambda item: getattr(getattr(item, "module", None), "audited", None) is audited)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Have each test draw the same, whichever ran before it."""
    random.seed(_SEED)


def pytest_collection_finish() -> None:
    """Leave what the imports made to itself: millions of objects, of TensorFlow's above all.

    Else each full collection of garbage looks at them again, and Streamlit asks for one whenever
    its page has run.
    """
    gc.collect()
    gc.freeze()
