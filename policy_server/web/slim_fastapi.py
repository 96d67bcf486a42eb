"""FastAPI without what a start does not need.

FastAPI's import has pydantic build a validator for each of the 35 models of an OpenAPI document,
and our own pages add theirs; most servers are never asked for the document. To tell whether a type
belongs to pydantic 1, FastAPI imports the copy of pydantic 1 that pydantic 2 carries along.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import BaseModel, ConfigDict

from policy_server.left_out import without_packages

__all__ = ["built_when_used", "without_pydantic_1"]


@contextmanager
def built_when_used() -> Iterator[None]:
    """Have pydantic build the models that the block defines when each is first used."""
    known = BaseModel.model_config
    BaseModel.model_config = ConfigDict(**{**known, "defer_build": True})
    try:
        yield
    finally:
        BaseModel.model_config = known


@contextmanager
def without_pydantic_1() -> Iterator[None]:
    """Hide pydantic 1 from this thread while the block runs, unless it is there already."""
    with without_packages("pydantic.v1"):
        yield
