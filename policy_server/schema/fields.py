"""The contents of a schema.yaml, as frozen values that the rest of the program trusts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from policy_server.access_keys import AccessKey

__all__ = [
    "FLOAT32_MAX",
    "ActionField",
    "ActionValues",
    "Kind",
    "Normalization",
    "Number",
    "ObservationField",
    "ServerSchema",
    "public_schema",
]

Kind = Literal["int", "float", "bool"]
Number = int | float
ActionValues = Literal["logits", "probabilities", "q_values", "action", "normal", "squashed_normal"]

# The largest number that rounds to a finite 32-bit float, half a step beyond the float itself.
FLOAT32_MAX = 3.4028235677973362e38


@dataclass(frozen=True)
class Normalization:
    """The rule clip((x - mean) / (std + epsilon), -clip, clip) for the numbers of an observation.

    Attributes:
        mean: one for all numbers, or one for each.
        std: one for all numbers, or one for each.
        clip: the largest size of a normalized number; None for no clipping.
        epsilon: added to each of `std`; the sum is positive.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    clip: float | None = None
    epsilon: float = 0.0


@dataclass(frozen=True)
class ObservationField:
    """One named observation.

    Attributes:
        name: its key in a request.
        kind: the type of its value or, for a list, of each item.
        is_list: whether it is a list.
        min_items: the fewest items of a list.
        max_items: the most items of a list; None for no bound.
        description: its meaning, for people.
        example: a value as a client would send it.
        minimum: the smallest value, of each item in a list.
        maximum: the largest value, of each item in a list.
        one_hot: how many columns of the row each integer becomes, with a 1 at its place and 0
            elsewhere: one for all items, or one for each; None leaves integers as they are.
        first: the integer that has the first place of `one_hot`.
        normalize: how the numbers are normalized on their way into the row; None leaves them.
        shape: the lengths of nested lists from the outermost on, whose items are in the row in C
            order; None for a flat list. `min_items` and `max_items` are then the product.
        takes_flags: whether 0, 1, true and false are taken alike, as the policy's file tells.
    """

    name: str
    kind: Kind
    is_list: bool = False
    min_items: int = 0
    max_items: int | None = None
    description: str | None = None
    example: Any = None
    minimum: Number | None = None
    maximum: Number | None = None
    one_hot: tuple[int, ...] | None = None
    first: int = 0
    normalize: Normalization | None = None
    shape: tuple[int, ...] | None = None
    takes_flags: bool = False

    @property
    def min_columns(self) -> int:
        """Return the fewest columns of the row that it takes."""
        return self.columns_of(self.min_items if self.is_list else 1)

    @property
    def max_columns(self) -> int | None:
        """Return the most columns of the row that it takes; None for a list without a bound."""
        if self.is_list and self.max_items is None:
            return None
        return self.columns_of(self.max_items or 0 if self.is_list else 1)

    @property
    def has_fixed_length(self) -> bool:
        """Return whether each of its values has as many items."""
        return not self.is_list or self.min_items == self.max_items

    @property
    def items(self) -> int:
        """Return how many numbers a value has; of a list of open length, how many at least."""
        return self.min_items if self.is_list else 1

    def columns_of(self, items: int) -> int:
        """Return how many columns of the row a number of items takes.

        Args:
            items: at least 0; as many as `one_hot` has where that gives a size for each.
        """
        if self.one_hot is None:
            return items
        return sum(self.one_hot) if len(self.one_hot) > 1 else items * self.one_hot[0]


@dataclass(frozen=True)
class ActionField:
    """The entry of one action component under `actions`.

    Attributes:
        name: the component's name.
        description: its meaning, for people.
        choices: how many integer choices it has.
        labels: the names of the integer choices, in order.
        dimensions: how many numbers a continuous action has.
        low: lower bounds in the environment's units: one for all dimensions, or one a dimension.
        high: upper bounds, in the same units and number.
        normalized: the policy's numbers lie in [-1, 1] and are rescaled to [low, high], as RLlib's
            `normalize_actions` does; False for numbers that are in the environment's units already
            and are only clipped.
        values: the meaning of the numbers that the policy's network gives for the action, where its
            file does not tell: `normal` and `squashed_normal` are the mean of each dimension
            followed by the logarithm of each deviation. None leaves it to the file.
    """

    name: str
    description: str | None = None
    choices: int | None = None
    labels: tuple[str, ...] | None = None
    dimensions: int | None = None
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None
    normalized: bool = True
    values: ActionValues | None = None


_Field = TypeVar("_Field", ObservationField, ActionField)


@dataclass(frozen=True)
class ServerSchema:
    """A whole schema.yaml.

    Attributes:
        source: the file's name, for messages.
        observations: the named observations in the order of training; None serves the raw routes
            only.
        actions: the action components; None where the file has no such section.
        discrete: whether the actions are integers; None is inferred from the policy.
        tuple: whether the policy gives several actions; None is inferred from the policy.
        module: the name of the policy to serve, in a file that holds several; None where it holds
            one.
        is_unscaled: the observations were not scaled in training, whatever the policy's file shows.
        api_key: the access key; None where the environment has to give it.
        url_path: the prefix that a reverse proxy strips, without slashes at its ends; empty for
            none.
        api_keys: the keys with a name and scopes.
    """

    source: str = "schema.yaml"
    observations: tuple[ObservationField, ...] | None = None
    actions: tuple[ActionField, ...] | None = None
    discrete: bool | None = None
    tuple: bool | None = None
    module: str | None = None
    is_unscaled: bool = False
    api_key: str | None = field(default=None, repr=False)
    url_path: str = ""
    api_keys: Sequence[AccessKey] = ()

    def without(self, name: str | None) -> ServerSchema:
        """Return the schema without an observation, such as the action mask beside the others.

        Args:
            name: the observation's; None, or a name that is not there, leaves all.
        """
        if self.observations is None or name is None:
            return self
        return replace(
            self, observations=tuple(item for item in self.observations if item.name != name)
        )

    @property
    def min_width(self) -> int:
        """Return the fewest numbers that the row of an observation can have."""
        return sum(item.min_columns for item in self.observations or ())

    @property
    def max_width(self) -> int | None:
        """Return the most numbers that a row can have; None where a list has no upper bound."""
        columns = [item.max_columns for item in self.observations or ()]
        return None if None in columns else sum(filter(None, columns))

    @property
    def width(self) -> int | None:
        """Return how many numbers every row has; None where that is open."""
        is_exact = self.observations is not None and self.min_width == self.max_width
        return self.max_width if is_exact else None

    @property
    def root_path(self) -> str:
        """Return the proxy's prefix as ASGI's `root_path`: empty, or with a leading slash."""
        return f"/{self.url_path}" if self.url_path else ""

    def difference(self, other: ServerSchema) -> str | None:
        """Return how the observations of another schema differ from these, in words.

        Args:
            other: the other schema.

        Returns:
            The first difference, such as `has observations.speed.maximum: 5 in its schema.yaml in
            place of the 3`; None where a client of the one can be a client of the other.
        """
        mine, theirs = (
            None
            if item.observations is None
            else tuple(replace(one, description=None, example=None) for one in item.observations)
            for item in (self, other)
        )
        return None if mine == theirs else _difference(mine, theirs)

    def policy_part(self) -> ServerSchema:
        """Return the part of the schema that a policy's answers depend on.

        It goes to the processes that compile and compute the policy, and into the digest of the
        results. It has no access key, proxy prefix or descriptions, so that a new key needs no new
        compiling and no new replicas. It has the examples: those who read the policy's file refuse
        one that the policy does not take, which a kept result would hide.
        """
        return replace(
            self,
            api_key=None,
            api_keys=(),
            url_path="",
            observations=_undescribed(self.observations),
            actions=_undescribed(self.actions),
        )


def _undescribed(fields: tuple[_Field, ...] | None) -> tuple[_Field, ...] | None:
    return None if fields is None else tuple(replace(item, description=None) for item in fields)


def _difference(
    mine: tuple[ObservationField, ...] | None, theirs: tuple[ObservationField, ...] | None
) -> str:
    """Return where the second observations differ from the first, in words."""
    kept, changed = (
        {item.name: _public_observation(item) for item in fields or ()} for fields in (mine, theirs)
    )
    if mine is None or theirs is None:
        return _unlike("observations", is_there=mine is None)
    alone = next(
        (name for name in (*kept, *changed) if name not in kept or name not in changed), None
    )
    if alone is not None:
        return _unlike(f"observations.{alone}", is_there=alone in changed)
    if [*kept] != [*changed]:
        orders = [", ".join(names) for names in (changed, kept)]
        return f"has the observations {orders[0]} in its schema.yaml in place of the {orders[1]}"
    for name, before in kept.items():
        for key in {**before, **changed[name]}:
            old, new = (item.get(key, "none") for item in (before, changed[name]))
            if old != new:
                where = f"observations.{name}.{key}"
                return f"has {where}: {new} in its schema.yaml in place of the {old}"
    return "has other observations in its schema.yaml than those"


def _unlike(place: str, *, is_there: bool) -> str:
    return f"has {'' if is_there else 'no '}{place} in its schema.yaml, unlike that"


def public_schema(schema: ServerSchema) -> dict[str, Any]:
    """Return the schema as a client may see it: schema.yaml's own shape, without the key.

    Args:
        schema: a whole schema.yaml.

    Returns:
        A document that JSON can carry; `parameters` states `discrete` and `tuple` as they stand in
        `schema`.
    """
    document: dict[str, Any] = {} if schema.module is None else {"module": schema.module}
    if schema.observations is not None:
        document["observations"] = {
            item.name: _public_observation(item) for item in schema.observations
        }
    if schema.actions is not None:
        document["actions"] = {item.name: _public_action(item) for item in schema.actions}
    document["parameters"] = {
        "discrete": schema.discrete,
        "tuple": schema.tuple,
        "url_path": schema.url_path,
    }
    if schema.is_unscaled:
        document["parameters"]["normalization"] = "none"
    return document


def _public_observation(item: ObservationField) -> dict[str, Any]:
    known: dict[str, Any] = {"type": f"List[{item.kind}]" if item.is_list else item.kind}
    if item.is_list and item.shape is None:
        known |= {"min_items": item.min_items, "max_items": item.max_items}
    if item.shape is not None:
        known["shape"] = list(item.shape)
    known |= {key: getattr(item, key) for key in ("description", "example", "minimum", "maximum")}
    if item.one_hot is not None:
        known["one_hot"] = _one_or_list(item.one_hot)
    if item.normalize is not None:
        known["normalize"] = _public_normalization(item.normalize)
    return {key: value for key, value in known.items() if value is not None}


def _public_normalization(rule: Normalization) -> dict[str, Any]:
    known = {"mean": _one_or_list(rule.mean), "std": _one_or_list(rule.std)}
    return known | ({} if rule.clip is None else {"clip": rule.clip}) | {"epsilon": rule.epsilon}


def _one_or_list(values: tuple[Any, ...]) -> Any:  # noqa: ANN401 -- as in schema.yaml
    return values[0] if len(values) == 1 else list(values)


def _public_action(item: ActionField) -> dict[str, Any]:
    keys = ("description", "choices", "labels", "dimensions", "low", "high", "values")
    known = {key: getattr(item, key) for key in keys}
    if item.low is not None:
        known["normalized"] = item.normalized
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in known.items()
        if value is not None
    }
