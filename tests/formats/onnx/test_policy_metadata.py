"""The description of a policy in an .onnx file, as docs/onnx.md has it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from policy_server.commands.schema_drafts import draft_schema
from policy_server.errors import ModelError, SchemaError
from policy_server.formats.known_formats import load_policy
from policy_server.formats.onnx.policy_metadata import POLICY_KEY, VECTORS_KEY
from policy_server.policy import PolicyInputs
from policy_server.schema import parse_schema
from policy_server.settings import read_settings
from tests.support.documents import code_blocks
from tests.support.folders import ROOT
from tests.support.onnx_models import node, tensor

PAGE = ROOT / "docs" / "onnx.md"
ROWS: NDArray[np.float32] = np.array([[1.0, -0.5], [0.2, 2.0]], np.float32)
Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the file that the page's example writes."""
    (example,) = code_blocks(PAGE, "python")
    monkeypatch.chdir(tmp_path)
    exec(compile(example, str(PAGE), "exec"), {})  # noqa: S102 -- the page's own example
    return tmp_path


def change(folder: Path, key: str, mend: Change) -> None:
    """Change the JSON object of a key."""
    path = folder / "policy.onnx"
    model = onnx.load(path)
    (entry,) = (item for item in model.metadata_props if item.key == key)
    content = json.loads(entry.value)
    mend(content)
    entry.value = json.dumps(content)
    onnx.save(model, path)


def component(policy: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = policy["distribution"]["components"][0]
    return found


def continuous(policy: dict[str, Any], **part: Any) -> dict[str, Any]:  # noqa: ANN401 -- JSON
    """Return the distribution of three continuous numbers."""
    parts = [{"kind": "deterministic", "size": 3, **part}]
    return {**policy["distribution"], "components": parts}


@pytest.mark.parametrize("role", ["previous_action", "previous_reward"])
def test_previous_step_of_another_size_is_refused(role: str, folder: Path) -> None:
    path = folder / "policy.onnx"
    model = onnx.load(path)
    model.graph.input.append(tensor("before", ["batch", 3]))
    model.graph.output.append(tensor("after", ["batch", 3]))
    (last,) = (item for item in model.graph.node if "logits" in item.output)
    last.output[:] = ["net"]
    model.graph.node.extend(
        [node("Add", ["net", "before"], ["logits"]), node("Identity", ["before"], ["after"])]
    )
    onnx.save(model, path)
    entry = {"name": "last", "input": "before", "output": "after", "role": role}
    change(folder, POLICY_KEY, lambda p: p.update(memory=[entry]))

    with pytest.raises(ModelError, match=f"memory.0: the {role} has 3 numbers, expected 1"):
        load_policy(folder)


def test_file_of_the_page_is_served_without_schema_yaml(folder: Path) -> None:
    policy = load_policy(folder)

    (part,) = policy.signature.components or ()
    assert (part.name, part.labels) == ("gear", ("first", "second", "third"))
    assert policy.signature.basis == "metadata"
    assert policy.signature.engine == "numpy"
    assert [item.key for item in policy.signature.observation_parts] == ["speed", "slope"]
    assert "20 test vectors in the file agree" in policy.signature.findings[-1]
    outputs = policy.infer(PolicyInputs.of(ROWS, is_deterministic=True))
    model = onnx.load(folder / "policy.onnx")
    weights, bias = map(onnx.numpy_helper.to_array, model.graph.initializer)
    assert outputs.distribution is not None
    np.testing.assert_allclose(outputs.distribution, ROWS @ weights + bias, atol=1e-6)


def test_schema_is_drafted_with_the_names_of_the_file(folder: Path) -> None:
    schema = parse_schema(draft_schema(folder / "policy.onnx", read_settings()))

    policy = load_policy(folder, schema)

    (part,) = policy.signature.components or ()
    assert (part.name, part.labels) == ("gear", ("first", "second", "third"))
    assert [item.name for item in schema.observations or ()] == ["speed", "slope"]


def test_schema_is_drafted_where_integers_are_told_by_their_kind_alone(folder: Path) -> None:
    gear = {"key": "gear", "kind": "one_hot", "sizes": [2]}
    change(folder, POLICY_KEY, lambda p: p["observation"].update(parts=[gear]))

    schema = parse_schema(draft_schema(folder / "policy.onnx", read_settings()))

    assert load_policy(folder, schema).signature.observation_width == 2
    (field,) = schema.observations or ()
    assert (field.kind, field.one_hot) == ("int", (2,))


@pytest.mark.parametrize(
    ("told", "name", "labels"),
    [
        ({"name": "a: b"}, "a__b", ("first", "second", "third")),
        ({"name": ""}, "_", ("first", "second", "third")),
        ({"name": "1"}, "_1", ("first", "second", "third")),
        ({"labels": ["a", "a", "b"]}, "gear", None),
        ({"labels": ["", "", ""]}, "gear", None),
    ],
    ids=["no word", "empty", "digit", "labels that repeat", "empty labels"],
)
def test_schema_is_drafted_where_the_file_has_words_that_it_cannot_have(
    told: dict[str, Any], name: str, labels: tuple[str, ...] | None, folder: Path
) -> None:
    change(folder, POLICY_KEY, lambda p: component(p).update(told))

    schema = parse_schema(draft_schema(folder / "policy.onnx", read_settings()))

    load_policy(folder, schema)
    (action,) = schema.actions or ()
    assert (action.name, action.labels, action.choices) == (name, labels, 3)


def test_schema_of_another_name_leaves_the_labels_of_the_file(folder: Path) -> None:
    policy = load_policy(folder, parse_schema("actions: {shift: {choices: 3}}\nparameters: {}"))

    (part,) = policy.signature.components or ()
    assert (part.name, part.labels) == ("shift", ("first", "second", "third"))


def test_schema_that_contradicts_the_file_is_refused(folder: Path) -> None:
    with pytest.raises(SchemaError, match="gives 4 choices, the policy has 3"):
        load_policy(folder, parse_schema("actions: {shift: {choices: 4}}\nparameters: {}"))


@pytest.mark.parametrize(
    ("mend", "message"),
    [
        pytest.param(lambda p: p.pop("distribution"), "distribution: Field required", id="missing"),
        pytest.param(lambda p: p.update(kind="x"), "kind: Extra inputs", id="unknown key"),
        pytest.param(
            lambda p: component(p).update(kind="uniform"), r"components.0.kind: Input", id="kind"
        ),
        pytest.param(
            lambda p: component(p).update(size=-3), "size: Input should be greater", id="negative"
        ),
        pytest.param(
            lambda p: component(p).update(size=4, labels=None),
            "its components take 4 numbers, 'logits' has 3",
            id="too wide",
        ),
        pytest.param(
            lambda p: component(p).update(labels=["a"]), "has 1 labels for 3 choices", id="labels"
        ),
        pytest.param(
            lambda p: component(p).update(first_column=2), "is 2, expected 0", id="columns"
        ),
        pytest.param(lambda p: component(p).update(low=[0.0]), "low or high alone", id="one bound"),
        pytest.param(
            lambda p: component(p).update(low=[0.0], high=[1.0]), "expected one bound", id="bounds"
        ),
        pytest.param(
            lambda p: p.update(actions=[{"name": "a", "is_integer": True, "columns": 2}]),
            "actions: have 2 columns, the components 1",
            id="actions",
        ),
        pytest.param(
            lambda p: p["observation"].update(inputs=["state"]),
            r"observation.inputs is \['state'\], the graph has \['observation'\]",
            id="inputs",
        ),
        pytest.param(
            lambda p: p.update(mask="mask"), "mask is mask, the graph has None", id="mask"
        ),
        pytest.param(
            lambda p: p.update(memory=[{"name": "h", "input": "h_in", "output": "h_out"}]),
            "has no such output and input",
            id="memory",
        ),
        pytest.param(
            lambda p: p["distribution"].update(output="q"), "no output of the graph", id="output"
        ),
        pytest.param(
            lambda p: p["observation"].update(dtype="complex64"),
            "observation.dtype: String should match",
            id="type",
        ),
        pytest.param(
            lambda p: p["observation"].update(parts=[{"shape": [3]}]),
            "observation.parts have 3 columns, the graph takes 2",
            id="parts",
        ),
        pytest.param(
            lambda p: p["observation"].update(parts=[{"kind": "one_hot", "sizes": [1, 1]}]),
            "has 2 for 1 integers",
            id="one-hot",
        ),
        pytest.param(
            lambda p: p["distribution"].update(
                components=[{"kind": "deterministic", "size": 3}], is_value_based=True
            ),
            "is_value_based: is for categorical",
            id="values",
        ),
        pytest.param(
            lambda p: p.update(
                distribution=continuous(p),
                actions=[{"name": "a", "is_integer": True, "columns": 3, "is_vector": True}],
            ),
            "actions.0.is_integer: is True, its components give continuous numbers",
            id="integers",
        ),
        pytest.param(
            lambda p: p.update(distribution=continuous(p, low=[0.0, 2.0, 0.0], high=[1.0] * 3)),
            "components.0.low: is 2.0, above the high of 1.0",
            id="low above high",
        ),
        pytest.param(
            lambda p: p.update(distribution=continuous(p, mean_bounds=[2.0, -2.0])),
            "components.0.mean_bounds: is 2.0, above the high of -2.0",
            id="mean bounds",
        ),
        pytest.param(
            lambda p: p["observation"].update(parts=[{"shape": [2], "low": 1.0, "high": -1.0}]),
            "observation.parts.0.low: is 1.0, above the high of -1.0",
            id="part's bounds",
        ),
    ],
)
def test_mistake_in_the_description_is_one_line(folder: Path, mend: Change, message: str) -> None:
    change(folder, POLICY_KEY, mend)

    with pytest.raises(ModelError, match=message) as caught:
        load_policy(folder)

    assert caught.value.message.startswith("policy.onnx: ")
    assert "\n" not in caught.value.message


def test_description_of_another_version_is_refused(folder: Path) -> None:
    path = folder / "policy.onnx"
    model = onnx.load(path)
    for entry in model.metadata_props:
        entry.key = entry.key.replace("v1", "v2")
    onnx.save(model, path)

    with pytest.raises(
        ModelError, match=r"describes its policy by policy_server\.policy\.v2, this"
    ):
        load_policy(folder)


def test_text_that_is_no_json_is_refused(folder: Path) -> None:
    path = folder / "policy.onnx"
    model = onnx.load(path)
    for entry in model.metadata_props:
        entry.value = entry.value[:-1]
    onnx.save(model, path)

    with pytest.raises(ModelError, match=f"{POLICY_KEY}: the text: Invalid JSON"):
        load_policy(folder)


def test_values_are_taken_greedily_where_the_file_says_so(folder: Path) -> None:
    change(folder, POLICY_KEY, lambda p: p["distribution"].update(is_value_based=True))

    assert load_policy(folder).signature.family == "greedy over categorical(3)"


def test_open_bounds_are_null(folder: Path) -> None:
    def mend(policy: dict[str, Any]) -> None:
        bounds = {"low": [-1.0, None, 0.0], "high": [None, 2.0, 0.5], "is_normalized": False}
        part = {"kind": "deterministic", "size": 3, **bounds}
        policy["distribution"]["components"] = [part]

    def act(vectors: dict[str, Any]) -> None:
        actions = np.array(vectors["distributions"])
        low, high = [-1.0, -np.inf, 0.0], [np.inf, 2.0, 0.5]
        vectors["actions"] = np.clip(actions, low, high).tolist()

    change(folder, POLICY_KEY, mend)
    change(folder, VECTORS_KEY, act)

    policy = load_policy(folder)

    (part,) = policy.signature.components or ()
    assert part.low == (-1.0, -np.inf, 0.0)
    assert part.high == (np.inf, 2.0, 0.5)
    assert policy.signature.action_outputs[0].is_vector


def add_mask(folder: Path, *, output: Sequence[Any]) -> None:
    """Give the file an action mask as an input, on which its `logits` depend."""
    path = folder / "policy.onnx"
    model = onnx.load(path)
    (last,) = (item for item in model.graph.node if "logits" in item.output)
    last.output[:] = ["net"]
    model.graph.input.append(tensor("action_mask", ["batch", 3]))
    model.graph.node.extend(output)
    onnx.save(model, path)
    change(folder, POLICY_KEY, lambda p: p.update(mask="action_mask"))


def test_mask_of_continuous_numbers_is_refused(folder: Path) -> None:
    add_mask(folder, output=[node("Mul", ["net", "action_mask"], ["logits"])])
    part = {"kind": "deterministic", "size": 3}
    change(folder, POLICY_KEY, lambda p: p["distribution"].update(components=[part]))

    with pytest.raises(ModelError, match="mask is 'action_mask', which changes more than the"):
        load_policy(folder)


def test_mask_that_the_file_names_as_an_observation_is_one(folder: Path) -> None:
    add_mask(folder, output=[node("Mul", ["net", "action_mask"], ["logits"])])
    part = {"kind": "deterministic", "size": 3}

    def mend(policy: dict[str, Any]) -> None:
        policy["distribution"]["components"] = [part]
        policy["observation"] = {"inputs": ["observation", "action_mask"]}
        policy["mask"] = None

    def forbid(vectors: dict[str, Any]) -> None:
        for row in vectors["observations"]:
            row += [0.0] * 3
        vectors["distributions"] = [[0.0] * 3] * len(vectors["observations"])
        vectors["actions"] = vectors["distributions"]

    change(folder, POLICY_KEY, mend)
    change(folder, VECTORS_KEY, forbid)

    policy = load_policy(folder)

    assert policy.signature.observation_width == 5
    rows = np.concatenate([ROWS, np.zeros((2, 3), np.float32)], axis=1)
    assert policy.infer(PolicyInputs.of(rows)).actions.tolist() == [[0.0] * 3] * 2
