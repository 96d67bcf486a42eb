"""Where the repository and what lies in it is found."""

from __future__ import annotations

from pathlib import Path

__all__ = ["EXPORTS", "ROOT"]

ROOT = Path(__file__).parents[2]
# Real exports of RLlib, each with its schema and the answers that it has to give.
EXPORTS = ROOT / "tests" / "data" / "exports"
