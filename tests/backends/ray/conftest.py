"""A Ray for the tests of a module."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from policy_server.backends.ray.cluster import RayCluster, open_ray_cluster
from tests.support.ray_clusters import SETTINGS


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder for unpacked models: compiled by the first test, kept for the others."""
    return tmp_path_factory.mktemp("models")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster() -> AsyncIterator[RayCluster]:
    """Start a Ray for the tests of this module."""
    async with open_ray_cluster(SETTINGS) as cluster:
        yield cluster
