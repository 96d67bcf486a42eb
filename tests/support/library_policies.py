"""Policies that training libraries wrote, with the library's own answers."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.support.folders import ROOT

__all__ = ["POLICIES", "cases_of", "raw_rows", "unzipped"]

POLICIES = ROOT / "tests" / "data" / "policies"


def cases_of(name: str, file: str = "cases.json") -> list[dict[str, Any]]:
    """Return the observations of a policy with the answers that its library gave."""
    cases: list[dict[str, Any]] = json.loads((POLICIES / name / file).read_text())
    assert len(cases) == 20, "a file of cases is whole"
    return cases


def raw_rows(cases: list[dict[str, Any]]) -> NDArray[np.float32]:
    """Return the flat observations of cases, as a client sends them."""
    return np.array([case["raw"] for case in cases], np.float32)


def unzipped(name: str, archive: str, folder: Path) -> Path:
    """Unpack an archive of a policy, and return the folder."""
    with zipfile.ZipFile(POLICIES / name / archive) as file:
        file.extractall(folder)
    return folder
