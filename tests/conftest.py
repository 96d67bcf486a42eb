"""A setting of Python's for the whole run."""

from __future__ import annotations

import gc


def pytest_collection_finish() -> None:
    """Leave what the imports made to itself: millions of objects, of TensorFlow's above all.

    Else each full collection of garbage looks at them again, and Streamlit asks for one whenever
    its page has run.
    """
    gc.collect()
    gc.freeze()
