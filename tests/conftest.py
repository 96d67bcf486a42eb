"""Settings of Python and of Hypothesis for the whole run."""

from __future__ import annotations

import gc
import os
import random
import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from policy_server.formats import compiling_process
from tests.support.audit import audited
from tests.support.compiling import compiling_once
from tests.support.steady_coverage import steady_coverage

# How long an example takes is the machine's business.
settings.register_profile("drawing", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# The same examples each time: what is new may not be refused for a drawing of what is old.
settings.register_profile("any machine", settings.get_profile("drawing"), derandomize=True)
settings.load_profile("any machine")
# Keras draws its first weights from here, at the import of a module and in a test.
_SEED = 20
random.seed(_SEED)
# Before any test module imports onnxruntime, which else reports to its maker.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"


_compile_anew = compiling_process._compile  # noqa: SLF001 -- see `_compiled_once`
_compile_once = compiling_once()


@pytest.fixture(scope="session", autouse=True)
def _compiled_once() -> Iterator[None]:
    """Compile each policy once, and here; a test of the process asks for `compiled_anew`."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(compiling_process, "_compile", _compile_once)
        yield


@pytest.fixture
def compiled_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have each policy compiled in a process, as a server has it, also where it was before."""
    monkeypatch.setattr(compiling_process, "_compile", _compile_anew)


def pytest_configure() -> None:
    """Let programs hear the signals that a background shell, or nohup, has them ignore.

    The imports of all modules make millions of objects and next to no garbage: until they are done,
    each collection would look at them in vain.
    """
    gc.disable()
    steady_coverage()
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        # Programs that are started don't ignore what has a handler here; nohup's run goes on.
        signal.signal(signal.SIGHUP, lambda *_: None)


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
    gc.enable()
