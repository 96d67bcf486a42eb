"""The action mask beside an observation: the integer actions that the environment allows now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from policy_server.errors import ObservationError
from policy_server.observations.annotations import ZERO_OR_ONE, ZeroOrOne, list_of
from policy_server.observations.models import problem
from policy_server.policy import PolicySignature
from policy_server.schema import ObservationField

__all__ = ["ActionMask"]

_ITEM = "mask_item"
_NONE_ALLOWED = "mask_forbids_all"
# The document has a line or more for each, and for each action.
_MOST_PLACES = 100


@dataclass(frozen=True)
class ActionMask:
    """The mask that a policy takes beside its observation.

    A row of such a policy has the observation's numbers first, and the mask's behind them: 1 for
    each choice that is allowed, 0 for each other.

    Attributes:
        field: its name and description, a list of one number a choice.
        sizes: how many choices each integer action has, in order.
        first: how many numbers the observation has, which stand before it in a row.
        is_required: whether named observations must have it, since schema.yaml lists it; left out,
            it allows all choices.
    """

    field: ObservationField
    sizes: tuple[int, ...]
    first: int
    is_required: bool = False

    @classmethod
    def beside(
        cls, fields: Sequence[ObservationField], signature: PolicySignature
    ) -> ActionMask | None:
        """Return the mask that a policy takes beside its observation; None where it takes none.

        Args:
            fields: the observations of schema.yaml, of which one may describe the mask.
            signature: the policy's.
        """
        name, sizes = signature.mask_name, signature.mask_sizes
        if name is None:
            return None
        assert signature.observation_width is not None, "a policy with a mask has a known width"
        listed = next((item for item in fields if item.name == name), None)
        field = ObservationField(name, "int") if listed is None else listed
        choices = sum(sizes)
        words = " + ".join(map(str, sizes))
        of_each = " of each action" if len(sizes) > 1 else ""
        if_absent = "" if listed else "; left out, all are allowed"
        described = replace(
            field,
            is_list=True,
            min_items=choices,
            max_items=choices,
            description=field.description
            or f"The allowed choices of the integer actions: 1 or 0 for each of the {words} in "
            f"order, at least one{of_each}{if_absent}",
        )
        return cls(described, sizes, signature.observation_width, is_required=listed is not None)

    @property
    def name(self) -> str:
        """Return its key in a request."""
        return self.field.name

    @property
    def width(self) -> int:
        """Return how many choices there are in all."""
        return sum(self.sizes)

    @property
    def example(self) -> list[Any]:
        """Return schema.yaml's example, else a mask that allows all choices."""
        if isinstance(self.field.example, list):
            return self.field.example
        return [True if self.field.kind == "bool" else 1] * self.width

    def for_observation(self) -> dict[str, Any]:
        """Return its definition in the pydantic model of a named observation."""
        if self.is_required:
            return {"mask": (self._annotation, self._field())}
        return {"mask": (self._annotation, self._field(lambda: [1] * self.width))}

    def for_raw(self) -> dict[str, Any]:
        """Return its definition in the model of a flat observation: None where it is left out."""
        return {"mask": (self._annotation, self._field(lambda: None))}

    def for_columns(self) -> dict[str, Any]:
        """Return its definition in a model of many observations by column."""
        return {"mask": (list_of(self._annotation), self._field(lambda: None))}

    @property
    def _annotation(self) -> Any:  # noqa: ANN401 -- made at run time
        item = ZeroOrOne(_ITEM).annotation(self.field.kind)
        length = Field(
            min_length=self.width, max_length=self.width, json_schema_extra=self._some_allowed
        )
        return Annotated[list_of(item), length, AfterValidator(self._checked)]

    @property
    def _some_allowed(self) -> dict[str, Any]:
        """Return the JSON schema of lists that allow a choice of each action, where it is short."""
        # 1 and true are two values in JSON Schema, and so are 0 and false.
        if len(self.sizes) == 1:
            return {"contains": {"enum": [1, True]}}
        if self.width > _MOST_PLACES:
            return {}
        forbidden: dict[str, Any] = {"enum": [0, False]}
        # JSON schema has no words for one of the items of a part of a list, but for all of them.
        ends = accumulate(self.sizes)
        without: list[dict[str, Any]] = [
            {"prefixItems": [{}] * (end - size) + [forbidden] * size}
            for end, size in zip(ends, self.sizes, strict=True)
        ]
        return {"not": {"anyOf": without}}

    def _field(self, default_factory: Callable[[], Any] | None = None) -> Any:  # noqa: ANN401 -- pydantic types Field() so
        known: dict[str, Any] = {"alias": self.name, "title": self.name}
        known |= {"description": self.field.description, "examples": [self.example]}
        return (
            Field(**known)
            if default_factory is None
            else Field(**known, default_factory=default_factory)
        )

    def row(
        self, numbers: list[float], given: list[float] | None, *place: str | int
    ) -> list[float]:
        """Return the row of a flat observation.

        Args:
            numbers: those of `obs`, of which the last ones may be the mask.
            given: the mask that came beside `obs`; None where none came.
            place: the path of the observation in the body, for messages.

        Returns:
            The numbers with the mask behind them; their number is wrong where that of `obs` is.

        Raises:
            ObservationError: if `obs` ends with a mask that is none.
        """
        if given is not None:
            return numbers + given
        if len(numbers) != self.first + self.width:
            return numbers + [1] * self.width

        def path(_row: int, column: int) -> list[str | int]:
            return ["body", *place, "obs", self.first + column]

        self.check(np.array([numbers[self.first :]]), path)
        return numbers

    def allowing_all(self, numbers: NDArray[Any]) -> NDArray[Any]:
        """Return rows with a mask behind each that allows all choices.

        Args:
            numbers: number[B, first].
        """
        ones = np.ones((len(numbers), self.width), numbers.dtype)
        return np.concatenate([numbers, ones], axis=1)

    def check(self, masks: NDArray[Any], path: Callable[[int, int], Sequence[str | int]]) -> None:
        """Refuse masks that hold another number than 0 and 1, or forbid all choices of an action.

        Args:
            masks: number[B, width].
            path: gives the path of a number by its row and column.

        Raises:
            ObservationError: naming the first mistake.
        """
        wrong = np.argwhere((masks != 0) & (masks != 1)).tolist()
        if wrong:
            raise ObservationError([problem(_ITEM, path(*wrong[0]), ZERO_OR_ONE)])
        starts = np.cumsum([0, *self.sizes[:-1]])
        is_possible = np.logical_or.reduceat(masks != 0, starts, axis=1)
        for row, part in np.argwhere(~is_possible)[:1].tolist():
            place = path(row, 0)[:-1]
            raise ObservationError([problem(_NONE_ALLOWED, place, self._refusal(part))])

    def _checked(self, mask: list[int]) -> list[int]:
        """Refuse a mask of 0 and 1 that forbids all choices of an action, for pydantic."""
        end = 0
        for part, size in enumerate(self.sizes):
            end += size
            if not any(mask[end - size : end]):
                context = {"refusal": self._refusal(part)}
                raise PydanticCustomError(_NONE_ALLOWED, "{refusal}", context)
        return mask

    def _refusal(self, part: int) -> str:
        if len(self.sizes) == 1:
            return "The mask should allow at least one choice"
        first = sum(self.sizes[:part])
        last = first + self.sizes[part] - 1
        return (
            f"The mask should allow at least one choice of each action; items {first} to {last}, "
            f"those of action {part}, are all 0"
        )
