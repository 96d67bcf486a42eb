"""The observation as peers validate it: schema.yaml of mouse_and_cheese as a pydantic model."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Answer", "Observation"]

Cell = Annotated[float, Field(ge=0, le=5, allow_inf_nan=False)]


class Observation(BaseModel):
    """Six numbers from 0 to 5."""

    model_config = ConfigDict(strict=True, extra="forbid")

    mouse_row: Cell
    mouse_column: Cell
    cheese_row: Cell
    cheese_column: Cell
    cat_row: Cell
    cat_column: Cell

    def row(self) -> list[float]:
        """Return the numbers in the order of training."""
        return list(self.__dict__.values())


class Answer(BaseModel):
    """What `/predict` answers."""

    actions: list[int]
    probability: float
