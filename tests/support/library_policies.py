"""Policies that training libraries wrote, with the library's own answers."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.support.folders import ROOT

__all__ = ["POLICIES", "cases_of", "changed_data", "raw_rows", "unzipped", "unzipped_sb3"]

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


def unzipped_sb3(name: str, folder: Path) -> Path:
    """Unzip a policy of stable-baselines3, with the statistics that lie beside it."""
    source = POLICIES / name
    with zipfile.ZipFile(source / "policy.zip") as archive:
        archive.extractall(folder)
    if (source / "vec_normalize.pkl").exists():
        shutil.copy(source / "vec_normalize.pkl", folder)
    return folder


def changed_data(folder: Path, **changes: object) -> None:
    """Change settings of an unzipped policy of stable-baselines3."""
    data = json.loads((folder / "data").read_text())
    (folder / "data").write_text(json.dumps(data | changes))
