"""Drafted schemas take what the environment gives, and make the library's own rows of it."""

from __future__ import annotations

import io
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from policy_server.commands.drafted_observations import draft_observations
from policy_server.commands.model_report import inspect_model, report_as_text
from policy_server.commands.schema_drafts import draft_schema
from policy_server.errors import SchemaError
from policy_server.formats import load_policy
from policy_server.observation_fit import fit_observations
from policy_server.observations import ObservationSpace
from policy_server.policy import ObservationPart, PolicySignature
from policy_server.schema import parse_schema
from policy_server.schema_fit import check_schema_fits
from policy_server.settings import Settings
from tests.support.fakes import components_of, signature_of
from tests.support.library_policies import POLICIES, cases_of, raw_rows, unzipped

ARCHIVES = {
    "rllib_ppo_dict": "checkpoint.zip",
    "rllib_ppo_box": "checkpoint.zip",
    "rllib_ppo_meanstd": "checkpoint.zip",
    "sb3_ppo_dict_order": "policy.zip",
    "sb3_ppo_cnn": "policy.zip",
}
# The environment of this one gives an array, and `native` its numbers.
IMAGES = {"sb3_ppo_cnn": (36, 36, 3)}


def native_of(name: str, case: dict[str, Any]) -> dict[str, Any]:
    """Return an observation as the environment gives it, by the names of the draft."""
    if isinstance(case.get("native"), dict):
        return dict(case["native"])
    values = np.array(case["raw"])
    if name in IMAGES:
        return {"observation": values.reshape(IMAGES[name]).astype(int).tolist()}
    return {"observation": values.tolist()}


def space_of(text: str, signature: PolicySignature) -> ObservationSpace:
    """Return the observations that a policy takes by a schema.yaml."""
    schema = parse_schema(text)
    check_schema_fits(schema, signature)
    return ObservationSpace(fit_observations(schema, signature))


@pytest.mark.parametrize("name", ARCHIVES)
def test_draft_takes_what_the_environment_gives(tmp_path: Path, name: str) -> None:
    cases = cases_of(name)
    folder = unzipped(name, ARCHIVES[name], tmp_path)
    space = space_of(draft_schema(folder, Settings()), load_policy(folder).signature)

    rows = [space.parse_named(json.dumps(native_of(name, case)).encode()) for case in cases]

    assert np.array_equal(np.array(rows, np.float32), raw_rows(cases))


@pytest.mark.parametrize("kind", [int, bool])
def test_binary_part_is_zeros_and_ones_or_truth_values(tmp_path: Path, kind: type) -> None:
    name = "sb3_ppo_dict_order"
    cases = cases_of(name)
    folder = unzipped(name, "policy.zip", tmp_path)
    space = space_of((POLICIES / name / "schema.yaml").read_text(), load_policy(folder).signature)

    rows = []
    for case in cases:
        native = case["native"] | {"mike": [kind(value) for value in case["native"]["mike"]]}
        rows.append(space.parse_named(json.dumps(native).encode()))

    assert np.array_equal(np.array(rows, np.float32), raw_rows(cases))


def test_plain_integers_are_those_of_the_file(tmp_path: Path) -> None:
    name = "rllib_ppo_dict"
    cases = cases_of(name)
    text = (
        "observations: {alpha: {type: 'List[float]'}, beta: {type: int}, "
        "gamma: {type: 'List[int]', min_items: 2, max_items: 2}, zulu: {type: 'List[float]'}}"
    )
    folder = unzipped(name, "checkpoint.zip", tmp_path)
    space = space_of(text, load_policy(folder, parse_schema(text)).signature)

    rows = [space.parse_named(json.dumps(case["native"]).encode()) for case in cases]

    assert np.array_equal(np.array(rows, np.float32), raw_rows(cases))


def test_order_of_the_files_keys_is_told(tmp_path: Path) -> None:
    folder = unzipped("sb3_ppo_dict_order", "policy.zip", tmp_path)
    text = (
        "observations: {alpha: {type: 'List[float]'}, mike: {type: 'List[int]'}, "
        "zulu: {type: 'List[float]'}}"
    )

    with pytest.raises(SchemaError, match="order them as zulu, alpha, mike"):
        load_policy(folder, parse_schema(text))


def test_image_of_the_file_may_come_as_an_array(tmp_path: Path) -> None:
    signature = load_policy(unzipped("sb3_ppo_cnn", "policy.zip", tmp_path)).signature
    (part,) = signature.observation_parts
    space = ObservationSpace(None, shape=part.shape)
    image = np.array(cases_of("sb3_ppo_cnn")[0]["raw"], np.uint8).reshape(36, 36, 3)
    body = io.BytesIO()
    np.save(body, image)

    row = space.arrays.parse(body.getvalue(), is_raw=True, width=3888)

    assert np.array_equal(row, image.ravel())


def test_statistics_of_the_file_are_not_stated_again(tmp_path: Path) -> None:
    folder = unzipped("rllib_ppo_meanstd", "checkpoint.zip", tmp_path)
    text = "observations: {a: {type: 'List[float]', shape: [4], normalize: {mean: 0, std: 2}}}"

    with pytest.raises(SchemaError, match="normalizes observations already"):
        load_policy(folder, parse_schema(text))


def test_report_has_the_parts_in_order() -> None:
    archive = POLICIES / "rllib_ppo_dict" / "checkpoint.zip"

    lines = [" ".join(line.split()) for line in report_as_text(inspect_model(archive, Settings()))]

    first = lines.index("observation 14 values of float32")
    assert lines[first + 1 : first + 5] == [
        "alpha 2 numbers",
        "beta an integer from 0 to 3",
        "gamma integers from 0 to 1, 0 to 2",
        "zulu 3 numbers",
    ]


def test_each_part_is_drafted_with_a_name_of_its_own() -> None:
    parts = (
        ObservationPart("speed x", "box", (), low=-2.5, high=3.0),
        ObservationPart("speed-x", "box", (2,)),
        ObservationPart("grid.cells", "one_hot", (2,), (2, 2), is_integer=True),
        ObservationPart("lit", "binary", (2, 2), is_integer=True, low=0.0, high=1.0),
    )
    signature = signature_of(components_of(("categorical", 2)), width=11)
    signature = PolicySignature(**{**vars(signature), "observation_parts": parts})

    text = draft_observations(signature)

    assert text == (
        "  speed_x: {type: float, description: \"'speed x' in the environment\", "
        "minimum: -2.5, maximum: 3}\n"
        '  speed_x_2: {type: "List[float]", description: "\'speed-x\' in the environment", '
        "min_items: 2, max_items: 2}\n"
        '  grid_cells: {type: "List[int]", description: "\'grid.cells\' in the environment", '
        "one_hot: [2, 2]}\n"
        '  lit: {type: "List[int]", shape: [2, 2], minimum: 0, maximum: 1}\n'
    )
    schema = parse_schema(f"observations:\n{text}parameters: {{api_key: k}}")
    assert schema.width == 11
    assert schema.observations is not None
    assert schema.observations[0].description == "'speed x' in the environment"


BOUNDS = [
    (None, None),
    (0.0, None),
    (None, 1.0),
    (-2.5, 3.0),
    (0.75, 1.5),
    (1.0, 1.0),
    (0.0, 1e16),
    (-1e300, 1e300),
    (3.0, 1.0),
]


def parts_of(
    kind: Literal["box", "one_hot", "binary"], shape: tuple[int, ...], *, is_integer: bool | None
) -> Iterator[ObservationPart]:
    """Give the parts of a kind that a file can tell; None leaves out whether it has integers."""
    items = math.prod(shape)
    sizes = [(4,) * items, tuple(range(2, 2 + items))] if kind == "one_hot" else [()]
    told = {} if is_integer is None else {"is_integer": is_integer}
    for size, (low, high), is_normalized in itertools.product(sizes, BOUNDS, [False, True]):
        bounds = {"low": low, "high": high, "is_normalized": is_normalized}
        yield ObservationPart("gear", kind, shape, size, **{**told, **bounds})  # type: ignore[arg-type]  # of several types


@pytest.mark.parametrize("is_integer", [True, False, None], ids=["whole", "any", "left out"])
@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3), (1, 1)], ids=str)
@pytest.mark.parametrize("kind", ["box", "one_hot", "binary"])
def test_draft_of_each_part_is_taken_by_its_policy(
    kind: Literal["box", "one_hot", "binary"], shape: tuple[int, ...], *, is_integer: bool | None
) -> None:
    for part in parts_of(kind, shape, is_integer=is_integer):
        signature = signature_of(components_of(("categorical", 2)), width=part.columns)
        signature = PolicySignature(**{**vars(signature), "observation_parts": (part,)})
        text = draft_observations(signature)

        space = space_of(f"observations:\n{text}parameters: {{api_key: k}}", signature)

        value = np.ones(shape if "shape:" in text else part.items, int).tolist()
        body = {"gear": value if shape else value[0]}
        row = space.parse_named(json.dumps(body).encode())
        places = [int(column == 1) for size in part.sizes for column in range(size)]
        assert list(row) == (places or [1] * part.items), text


def test_draft_of_flags_has_their_bounds_and_of_integers_whole_ones() -> None:
    parts = (
        ObservationPart("lit", "binary", (2,)),
        ObservationPart("gear", "box", (), is_integer=True, low=-2.5, high=3.5),
        ObservationPart("grid", "one_hot", (2, 2), (3, 3, 3, 3)),
        ObservationPart("none", "box", (), is_integer=True, low=0.25, high=0.75),
    )
    signature = signature_of(components_of(("categorical", 2)), width=16)
    signature = PolicySignature(**{**vars(signature), "observation_parts": parts})

    assert draft_observations(signature) == (
        '  lit: {type: "List[int]", min_items: 2, max_items: 2, minimum: 0, maximum: 1}\n'
        "  gear: {type: int, minimum: -2, maximum: 3}\n"
        '  grid: {type: "List[int]", one_hot: 3, shape: [2, 2]}\n'
        "  none: {type: int}\n"
    )
