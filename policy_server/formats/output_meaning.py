"""The meaning of a network's outputs, where its file holds no action distribution.

The rule is one for all formats: the graph where it shows the meaning (a Softmax at its end), then
the outputs' names, then schema.yaml; with none of them the file is refused, never guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.errors import ModelError, SchemaError
from policy_server.formats.action_heads import (
    dimensions_of,
    heads_of,
    may_be_heads,
    pointed_at,
)
from policy_server.formats.network_outputs import (
    BY_ENDING,
    FEWEST_CHOICES,
    Ending,
    Form,
    NetworkOutput,
    ReadOutput,
    actors,
    form_by_name,
    form_of,
    may_be_shares,
    name_tells,
)
from policy_server.formats.normal_outputs import NORMALS, normal_part
from policy_server.formats.second_actions import (
    BestChoices,
    has_values_of_action,
    is_integer,
    is_second,
    refuse_second_actions,
)
from policy_server.policy import ActionComponent, ActionOutput, Basis, ComponentKind
from policy_server.schema import ActionField, ActionValues, ServerSchema

__all__ = ["Ending", "Form", "Meaning", "NetworkOutput", "ReadOutput", "name_tells", "read_meaning"]

_DISTRIBUTIONS: Sequence[Form] = ("logits", "probabilities", "q_values")
# An action beside its distribution is its mode, which is compared.
_PREFERRED: Sequence[Form] = (*_DISTRIBUTIONS, "mean", "action", "one_hot")
_BY_VALUES: Mapping[ActionValues, Form] = {
    "action": "action",
    "logits": "logits",
    "normal": "normal",
    "probabilities": "probabilities",
    "q_values": "q_values",
    "squashed_normal": "normal",
}
# An action on the scale of [-1, 1] may leave it a little.
_BEYOND = 1.5
# Logits of float32 that differ by less have the same probabilities.
_SAME = 1e-4
_STATE_IT = "state it as 'values' under 'actions'"


@dataclass(frozen=True)
class Meaning:
    """The action distribution that a network's outputs state.

    Attributes:
        read: the outputs whose numbers make a row of `action_dist_inputs`, one after another:
            `probabilities` and `std` by their logarithm, a `one_hot` vector by the index of its
            largest number, the others as they are.
        components: the distribution's components.
        action_outputs: the actions in order.
        is_value_based: the best action is taken, as by Q values.
        basis: `structure`, `names` or `schema`.
        findings: the outputs and their meanings in words.
        has_own_bounds: the network's own action tells the bounds of the distribution.
    """

    read: tuple[ReadOutput, ...]
    components: tuple[ActionComponent, ...]
    action_outputs: tuple[ActionOutput, ...]
    is_value_based: bool
    basis: Basis
    findings: tuple[str, ...]
    has_own_bounds: bool = False


def read_meaning(
    outputs: Sequence[NetworkOutput], schema: ServerSchema | None, *, subject: str
) -> Meaning:
    """Return the action distribution that a network's outputs state.

    Example:
        Of the outputs `logits` and `value` the first is read: one categorical action, by its name.

    Args:
        outputs: the network's outputs in order, without those that carry state.
        schema: the contents of schema.yaml; None where there is none.
        subject: the file's name, for messages.

    Raises:
        ModelError: if nothing tells the meaning of the outputs, or they contradict each other.
        SchemaError: if schema.yaml does not say enough, or contradicts the network.
    """
    return _Reader(outputs, schema or ServerSchema(), subject).read()


class _Reader:
    def __init__(
        self, outputs: Sequence[NetworkOutput], schema: ServerSchema, subject: str
    ) -> None:
        self._outputs = actors(outputs)
        self._schema = schema
        self._fields: Sequence[ActionField] = schema.actions or ()
        self._subject = subject
        self._notes: list[str] = []
        if not self._outputs:
            names = ", ".join(repr(item.name) for item in outputs)
            raise ModelError(
                f"{subject}: its outputs ({names or 'none'}) hold no action; export the actor's "
                "logits, its mean or its action"
            )

    def read(self) -> Meaning:
        stated = self._stated_values()
        if stated is not None:
            return self._by_values(stated)
        by_form = self._by_form()
        form = next((one for one in _PREFERRED if one in by_form), None)
        heads = heads_of(self._outputs, self._schema) if form in (None, "action") else []
        if heads and all(item.ending is None for item in heads):
            return self._of_heads(heads)
        if form is None:
            return self._by_schema()
        if form == "action" and may_be_heads(by_form[form]) and not self._states_continuous:
            raise self._unknown_heads(by_form[form])
        if form == "mean":
            return self._normal(by_form)
        if form in _DISTRIBUTIONS:
            return self._choices_or_action(form, by_form)
        return self._actions(by_form[form], form, self._basis(by_form[form], form))

    def _of_heads(self, heads: Sequence[NetworkOutput]) -> Meaning:
        """Return the meaning of an output for each action, whose widths schema.yaml states."""
        is_choice = [field.choices is not None for field in self._fields]
        if any(is_choice) and not all(is_choice):
            raise ModelError(
                f"{self._subject}: has an output for each action, choices and continuous ones, "
                "which are not read together; describe them in the metadata of an ONNX file "
                "(docs/onnx.md)"
            )
        if all(is_choice):
            found = self._choices(heads, "logits", "schema")
        else:
            found = self._actions(heads, "action", "schema")
        return replace(found, findings=(*found.findings, *self._left_out(heads)))

    @property
    def _states_continuous(self) -> bool:
        return self._schema.discrete is False or self._dimensions() is not None

    def _unknown_heads(self, items: Sequence[NetworkOutput]) -> ModelError:
        names = ", ".join(f"{item.name!r} ({item.width} wide)" for item in items)
        return ModelError(
            f"{self._subject}: nothing tells whether its outputs {names} are the logits of an "
            f"action each or continuous actions; list them under 'actions' in "
            f"{self._schema.source}, each with its 'choices' or its 'dimensions'"
        )

    def _choices_or_action(
        self, form: Form, by_form: Mapping[Form, Sequence[NetworkOutput]]
    ) -> Meaning:
        """Return the choices that outputs hold, unless they are values of the action beside."""
        items = by_form[form]
        of_action = [item for item in by_form.get("action", ()) if is_second(item)]
        is_choice = self._schema.discrete is True
        if (
            not is_choice
            and of_action
            and has_values_of_action(items, form, (of_action[0], "action"))
        ):
            found = self._actions(of_action, "action", self._basis(of_action, "action"))
            names = ", ".join(repr(item.name) for item in items)
            left = f"{names} of each dimension of the action, and no choices, are left out"
            return replace(found, findings=(*found.findings, left))
        found = self._choices(items, form, self._basis(items, form))
        rows = [item.rows for item in items if item.rows is not None]
        best = None
        if len(rows) == len(items):
            sizes = [part.size for part in found.components]
            best = BestChoices.of(np.concatenate(rows, axis=1), sizes)
        beside = [(item, one) for one, group in by_form.items() if one != form for item in group]
        made = [item for item, _ in beside if is_choice and best is not None and best.gives(item)]
        beside = [(item, one) for item, one in beside if item not in made]
        refuse_second_actions(
            best, items[0].name, form, beside, subject=self._subject, source=self._schema.source
        )
        numbered = [
            f"assumed: the choices are counted from 0, and {item.name!r} gives them other numbers"
            for item, _ in beside
            if best is not None and is_integer(item) and best.are_numbered(item)
        ]
        numbered += [f"{item.name!r} is made from the choice: it is left out" for item in made]
        return replace(found, findings=(*found.findings, *numbered, *self._left_out(items)))

    def _left_out(self, read: Sequence[NetworkOutput]) -> list[str]:
        """Return a finding for the outputs that may hold an action, and tell nothing of it."""
        names = [
            repr(item.name)
            for item in self._outputs
            if item not in read and form_by_name(item.name) in (None, "mean")
        ]
        if not names:
            return []
        return [f"nothing tells that {', '.join(names)} are actions: they are left out"]

    def _by_form(self) -> dict[Form, list[NetworkOutput]]:
        """Return the outputs that tell their meaning themselves."""
        found: dict[Form, list[NetworkOutput]] = {}
        for item in self._outputs:
            if (form := self._form_of(item)) is not None:
                found.setdefault(form, []).append(item)
        if "logits" in found:
            found["logits"] = _distinct(found["logits"])
        return found

    def _form_of(self, item: NetworkOutput) -> Form | None:
        discrete = self._schema.discrete
        is_continuous = discrete is False or (discrete is None and self._dimensions() is not None)
        return form_of(item, is_continuous=is_continuous)

    @staticmethod
    def _basis(items: Sequence[NetworkOutput], form: Form) -> Basis:
        is_shown = all(
            item.is_integer or (item.ending is not None and BY_ENDING.get(item.ending) == form)
            for item in items
        )
        return "structure" if is_shown else "names"

    def _stated_values(self) -> ActionValues | None:
        stated = {field.values for field in self._fields}
        if len(stated) > 1:
            raise SchemaError(
                f"{self._schema.source}: actions: 'values' differs between the actions, and a "
                "network gives all of them alike; state the same for each"
            )
        return stated.pop() if stated else None

    def _by_values(self, values: ActionValues) -> Meaning:
        by_form = self._by_form()
        if values in NORMALS and "mean" in by_form and ("log_std" in by_form or "std" in by_form):
            return self._normal(by_form, stated=values)
        form = _BY_VALUES[values]
        items = by_form.get(form, []) if len(self._outputs) > 1 else []
        heads = heads_of(self._outputs, self._schema) if form != "normal" else []
        if heads and (not items or len(items) != len(heads)):
            items = heads
        items = items or [self._only(f"'values: {values}'")]
        for item in items:
            self._check_ending(item, values)
        if form == "action":
            return self._actions(items, form, "schema")
        if form == "normal":
            return self._mean_and_log_std(items[0], NORMALS[values])
        return self._choices(items, form, "schema")

    def _check_ending(self, item: NetworkOutput, values: ActionValues) -> None:
        """Refuse `values` that the end of an output contradicts."""
        ending = item.ending if item.ending not in ("activation", "tanh") else None
        shown = None if ending is None else BY_ENDING[ending]
        if shown is not None and shown != _BY_VALUES[values]:
            raise SchemaError(
                f"{self._schema.source}: actions.{self._fields[0].name}.values: is {values}, and "
                f"the output {item.name!r} of {self._subject} ends with a "
                f"{item.ending}: it holds {shown}; mend it or leave it out"
            )

    def _only(self, purpose: str) -> NetworkOutput:
        if len(self._outputs) == 1:
            return self._outputs[0]
        if (found := self._pointed_at(self._outputs)) is not None:
            return found
        names = ", ".join(repr(item.name) for item in self._outputs)
        raise ModelError(
            f"{self._subject}: has the outputs {names}, and {purpose} is for one; export the "
            "one that the actions come from, or name the others value"
        )

    def _pointed_at(self, outputs: Sequence[NetworkOutput]) -> NetworkOutput | None:
        """Return the one of several outputs that schema.yaml means, and note how it was told."""
        found, is_stated = pointed_at(outputs, self._schema)
        if found is not None:
            others = ", ".join(repr(item.name) for item in outputs if item != found)
            reason = f"as wide as the actions in {self._schema.source}"
            self._notes.append(
                f"of its outputs {found.name!r} alone is {reason}: {others} are left out"
                if is_stated
                else f"assumed: {found.name!r} holds the actions, as the only output of several "
                f"numbers: {others} are left out"
            )
        return found

    def _by_schema(self) -> Meaning:
        """Return the meaning that schema.yaml gives an output whose file does not tell it."""
        item = self._sole_output()
        is_discrete = self._schema.discrete
        if is_discrete is None and any(field.choices is not None for field in self._fields):
            is_discrete = True
        if is_discrete and item.ending == "activation":
            raise ModelError(
                f"{self._subject}: its output {item.name!r} ends with an activation, as a layer of "
                "features does and logits do not; export the network with its last layer"
            )
        if is_discrete:
            return self._choices([item], "logits", "schema")
        dimensions = self._dimensions()
        if dimensions == item.width:
            return self._actions([item], "action", "schema")
        if dimensions is not None and 2 * dimensions == item.width:
            raise ModelError(
                f"{self._subject}: nothing tells whether the {item.width} numbers of the output "
                f"{item.name!r} are the mean and log of the deviation of a normal distribution, or "
                f"of one before a tanh; {_STATE_IT} of {self._schema.source}: normal or "
                "squashed_normal"
            )
        if is_discrete is False:
            raise ModelError(
                f"{self._subject}: nothing tells the meaning of its output {item.name!r} "
                f"({item.width} wide); {_STATE_IT} of {self._schema.source}: action for the action "
                "itself, normal or squashed_normal for means followed by logs of deviations"
            )
        raise ModelError(
            f"{self._subject}: nothing tells the meaning of its output {item.name!r} "
            f"({item.width} wide); write in {self._schema.source} 'discrete: True' for the logits "
            "of one integer action, 'choices' for those of several, 'values: q_values' for Q "
            "values, or 'dimensions' for continuous actions"
        )

    def _sole_output(self) -> NetworkOutput:
        """Return the only output that may hold the actions."""
        outputs = self._outputs
        if len(outputs) == 1:
            return outputs[0]
        if (found := self._pointed_at(outputs)) is not None:
            return found
        names = ", ".join(repr(item.name) for item in outputs)
        raise ModelError(
            f"{self._subject}: nothing tells which of the outputs {names} holds the actions; "
            "export that one alone, or name it logits, q_values, probabilities, mean and "
            "log_std, or actions"
        )

    def _dimensions(self) -> int | None:
        """Return how many numbers schema.yaml's continuous actions have; None where it is open."""
        sizes = [dimensions_of(field) for field in self._fields]
        known = [size for size in sizes if size is not None]
        return sum(known) if known and len(known) == len(sizes) else None

    def _choices(self, items: Sequence[NetworkOutput], form: Form, basis: Basis) -> Meaning:
        """Return integer actions, of the logits, probabilities or values that outputs hold."""
        if self._schema.discrete is False:
            raise SchemaError(
                f"{self._schema.source}: parameters.discrete: is False, and the output "
                f"{items[0].name!r} of {self._subject} holds {form} of integer actions; set it to "
                "True or leave it out"
            )
        is_one = len(items) == 1
        for item in items:
            self._check_rows(item, form, is_one=is_one)
        sizes = (
            self._sizes(items[0], form)
            if is_one
            else [size for item in items for size in item.joined or (item.width,)]
        )
        parts = [ActionComponent("categorical", size, 0, 0) for size in sizes]
        outputs = (
            [ActionOutput("actions", is_integer=True, columns=len(sizes), is_vector=len(sizes) > 1)]
            if is_one
            else _one_output_each(parts)
        )
        found = self._meaning(
            [ReadOutput(item, form) for item in items],
            parts,
            outputs,
            basis,
            is_value_based=form == "q_values",
        )
        assumed = self._assumed(items[0], form) if len(parts) == 1 else []
        return replace(found, findings=(*found.findings, *assumed))

    def _assumed(self, item: NetworkOutput, form: Form) -> list[str]:
        """Return a finding where one integer action is usual, and nothing says that it is one."""
        if self._fields or self._schema.discrete is not None:
            return []
        if form == "logits" and item.ending != "log_softmax":
            return [
                f"assumed: {item.name!r} is one action of {item.width} choices; if it is several, "
                f"list them under 'actions' of {self._schema.source}, each with its 'choices'"
            ]
        if form == "probabilities" and may_be_shares(item.name):
            return [
                f"assumed: the softmax of {item.name!r} gives the probabilities of {item.width} "
                "choices; if it gives shares of a whole, as a portfolio's, write 'discrete: "
                f"False' under 'parameters' of {self._schema.source}"
            ]
        return []

    def _check_rows(self, item: NetworkOutput, form: str, *, is_one: bool = True) -> None:
        """Refuse several rows of choices that schema.yaml does not state as several actions."""
        if item.joined and is_one:
            self._check_joined(item)
        if item.joined or not item.has_several_rows:
            return
        assert item.row_length is not None, "it has several"
        rows = item.width // item.row_length
        if not is_one or [field.choices for field in self._fields] != [item.row_length] * rows:
            remedy = (
                f"if these are {rows} actions, list them under 'actions' in {self._schema.source} "
                f"with 'choices: {item.row_length}' each"
            )
            raise ModelError(
                f"{self._subject}: the output {item.name!r} holds {rows} rows of "
                f"{item.row_length} {form.replace('_', ' ')}; "
                f"{remedy if is_one else 'export one row in an output'}"
            )

    def _check_joined(self, item: NetworkOutput) -> None:
        """Refuse joined softmaxes of other sizes than schema.yaml's actions."""
        stated = tuple(field.choices for field in self._fields)
        if stated and stated != item.joined:
            sizes = ", ".join(map(str, item.joined))
            raise ModelError(
                f"{self._subject}: the output {item.name!r} holds softmaxes of {sizes} numbers; if "
                f"these are {len(item.joined)} actions, list them under 'actions' in "
                f"{self._schema.source} with these 'choices'"
            )

    def _sizes(self, item: NetworkOutput, form: Form) -> list[int]:
        """Return the sizes of the integer actions whose logits one output holds."""
        if item.joined and not self._fields:
            return list(item.joined)
        if len(self._fields) < 2 and not self._schema.tuple:
            if item.width < FEWEST_CHOICES:
                raise ModelError(
                    f"{self._subject}: the output {item.name!r} is one number, which is no choice "
                    "among several; export one for each choice, of a sigmoid for both of two"
                )
            return [item.width]
        choices = [field.choices for field in self._fields]
        sizes = [size for size in choices if size is not None]
        if len(sizes) < max(len(choices), 2) or sum(sizes) != item.width:
            raise SchemaError(
                f"{self._schema.source}: actions: the output {item.name!r} of {self._subject} "
                f"holds {item.width} {form} and not the sizes of its actions; expected 'choices' "
                f"for each of several actions, {item.width} together"
            )
        return sizes

    def _normal(
        self,
        by_form: Mapping[Form, Sequence[NetworkOutput]],
        *,
        stated: ActionValues | None = None,
    ) -> Meaning:
        """Return the normal distribution of a mean and a deviation, before a tanh or without."""
        mean, *more = by_form["mean"]
        deviations = [
            ReadOutput(item, form) for form in ("log_std", "std") for item in by_form.get(form, ())
        ]
        if not deviations and len(self._outputs) == 1:
            return self._actions([mean], "action", "names")
        if more or len(deviations) != 1 or deviations[0].width != mean.width:
            names = ", ".join(f"{item.name!r} ({item.width} wide)" for item in self._outputs)
            raise ModelError(
                f"{self._subject}: expected one mean and one deviation of the same width, got the "
                f"outputs {names}; name the deviation log_std or std, or export the mean alone"
            )
        part, finding = normal_part(
            mean,
            [item for item in by_form.get("action", ()) if _is_beside(item, mean)],
            stated,
            subject=self._subject,
            source=self._schema.source,
        )
        read = [ReadOutput(mean, "mean"), deviations[0]]
        basis: Basis = "names" if stated is None else "schema"
        found = self._meaning(read, [part], _vector(mean.width), basis)
        findings = (*found.findings, *([finding] if finding else []))
        return replace(found, findings=findings, has_own_bounds=part.low is not None)

    def _mean_and_log_std(self, item: NetworkOutput, kind: ComponentKind) -> Meaning:
        if item.width % 2:
            raise SchemaError(
                f"{self._schema.source}: actions.{self._fields[0].name}.values: the output "
                f"{item.name!r} has {item.width} numbers, which can't be a mean and a deviation "
                "for each dimension; mend it"
            )
        size = item.width // 2
        if item.has_several_rows and item.row_length != size:
            raise ModelError(
                f"{self._subject}: the output {item.name!r} holds "
                f"{item.width // (item.row_length or 1)} rows of {item.row_length} numbers; "
                "expected the means of all dimensions followed by their deviations; export it so"
            )
        parts = [ActionComponent(kind, size, 0, 0)]
        return self._meaning([ReadOutput(item, "normal")], parts, _vector(size), "schema")

    def _actions(self, items: Sequence[NetworkOutput], form: Form, basis: Basis) -> Meaning:
        """Return actions that the network gives alone, without a distribution."""
        for item in items if form == "one_hot" else ():
            self._check_rows(item, form, is_one=False)
        read = [ReadOutput(item, form) for item in items]
        parts: list[ActionComponent] = []
        outputs: list[ActionOutput] = []
        for index, one in enumerate(read):
            is_integer = one.output.is_integer or one.output.ending in ("arg_max", "one_hot")
            self._check_kind(one.output, is_integer=is_integer)
            if is_integer:
                parts += [_alone(1, is_integer=True)] * one.width
            elif len(items) == 1:
                parts += self._continuous(one.width)
            else:
                parts.append(_alone(one.width))
            name = "actions" if len(read) == 1 else f"actions_{index}"
            is_vector = not is_integer or one.width > 1
            outputs.append(ActionOutput(name, is_integer, one.width, is_vector))
        found = self._meaning(read, parts, outputs, basis)
        rescaled = [line for item in items if (line := self._rescaled(item))]
        return replace(found, findings=(*found.findings, *rescaled))

    def _rescaled(self, item: NetworkOutput) -> str:
        """Return a finding where bounds rescale actions that leave [-1, 1]; empty for none."""
        has_bounds = any(one.low and one.high and one.normalized for one in self._fields)
        if not has_bounds or item.is_integer or item.ending is not None or item.rows is None:
            return ""
        low, high = np.nanmin(item.rows), np.nanmax(item.rows)
        if max(-low, high) < _BEYOND:
            return ""
        return (
            f"assumed: low and high rescale {item.name!r} from [-1, 1], and on the probes it is "
            f"between {low:.3g} and {high:.3g}; of a policy that clips, such as "
            "stable-baselines3's PPO and A2C, write 'normalized: False' beside them in "
            f"{self._schema.source}"
        )

    def _check_kind(self, item: NetworkOutput, *, is_integer: bool) -> None:
        if self._schema.discrete and not is_integer:
            raise ModelError(
                f"{self._subject}: the output {item.name!r} is an action of {item.width} "
                f"continuous numbers by its {'end' if item.ending == 'tanh' else 'name'}, and "
                f"{self._schema.source} says discrete: True; {_STATE_IT} if it holds logits or "
                "q_values, or set discrete to False"
            )

    def _continuous(self, width: int) -> list[ActionComponent]:
        """Return one component, or one for each continuous action that schema.yaml names."""
        sizes = [dimensions_of(field) for field in self._fields]
        known = [size for size in sizes if size is not None]
        if len(sizes) < 2:
            known = [width]
        elif len(known) < len(sizes) or sum(known) != width:
            raise SchemaError(
                f"{self._schema.source}: actions: {self._subject} gives {width} continuous numbers "
                f"for {len(sizes)} actions; expected 'dimensions' for each, {width} together"
            )
        return [_alone(size) for size in known]

    def _stated_source(self) -> str:
        """Return the words for what schema.yaml says; only `values` states a meaning itself."""
        source, fields = self._schema.source, self._fields
        if any(field.values is not None for field in fields):
            return f"as {source} states"
        if any(field.choices is not None for field in fields):
            return f"for the choices in {source}"
        if self._schema.discrete:
            return f"for the 'discrete: True' in {source}"
        return f"for the dimensions in {source}"

    def _meaning(
        self,
        read: Sequence[ReadOutput],
        parts: Sequence[ActionComponent],
        outputs: Sequence[ActionOutput],
        basis: Basis,
        *,
        is_value_based: bool = False,
    ) -> Meaning:
        source = {
            "structure": "as the graph shows",
            "names": "by its name",
            "schema": self._stated_source(),
        }[basis]
        findings = [
            f"the output {one.output.name!r} is read as {one.form.replace('_', ' ')}, {source}"
            for one in read
        ]
        findings += self._notes
        if not all(part.has_probability for part in parts):
            findings.append(
                "the file gives the action alone: its distribution is not in it, and its "
                "probability is unknown"
            )
        return Meaning(
            tuple(read), _placed(parts), tuple(outputs), is_value_based, basis, tuple(findings)
        )


def _is_beside(item: NetworkOutput, mean: NetworkOutput) -> bool:
    """Return whether an output may be the action around a mean, and no layer of features."""
    return is_second(item) and (form_by_name(item.name) == "action" or item.width == mean.width)


def _distinct(items: Sequence[NetworkOutput]) -> list[NetworkOutput]:
    """Return outputs of logits, without those that give an earlier one's choices once more.

    Those with numbers behind their names are of actions of their own, also before any training.
    """
    found: list[NetworkOutput] = []
    for item in items:
        is_numbered = item.name[-1:].isdigit()
        if is_numbered or not any(_has_same_choices(item, other) for other in found):
            found.append(item)
    return found


def _has_same_choices(one: NetworkOutput, other: NetworkOutput) -> bool:
    """Return whether two outputs are logits of the same probabilities."""
    if one.rows is None or other.rows is None or one.rows.shape != other.rows.shape:
        return False
    cuts = np.cumsum(one.joined or other.joined or (one.width,))[:-1]
    mine, theirs = (
        [_log_softmax(part) for part in np.split(rows, cuts, axis=1)]
        for rows in (one.rows, other.rows)
    )
    return all(np.allclose(part, same, atol=_SAME) for part, same in zip(mine, theirs, strict=True))


def _log_softmax(rows: NDArray[Any]) -> NDArray[Any]:
    shifted = rows.astype(np.float64) - rows.max(axis=1, keepdims=True)
    found: NDArray[Any] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return found


def _alone(size: int, *, is_integer: bool = False) -> ActionComponent:
    return ActionComponent(
        "deterministic", size, 0, 0, has_integers=is_integer, has_probability=False
    )


def _placed(parts: Sequence[ActionComponent]) -> tuple[ActionComponent, ...]:
    """Return the components one after another in inputs and columns."""
    placed: list[ActionComponent] = []
    first_input = first_column = 0
    for part in parts:
        placed.append(replace(part, first_input=first_input, first_column=first_column))
        first_input += part.inputs
        first_column += part.columns
    return tuple(placed)


def _vector(size: int) -> list[ActionOutput]:
    return [ActionOutput("actions", is_integer=False, columns=size, is_vector=True)]


def _one_output_each(parts: Sequence[ActionComponent]) -> list[ActionOutput]:
    return [
        ActionOutput(f"actions_{index}", part.is_integer, part.columns, not part.is_integer)
        for index, part in enumerate(parts)
    ]
