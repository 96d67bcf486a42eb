"""The YAML of LEAPP beside a model: its digest, and the outputs that feed the next step."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from policy_server.errors import ModelError
from policy_server.formats.known_formats import load_policy
from policy_server.policy import PolicyInputs
from tests.support.onnx_models import (
    node,
    refused,
    tensor,
    weights,
    write_model,
)


def described(folder: Path, **pipeline: Any) -> Path:  # noqa: ANN401 -- YAML
    """Write a graph whose memory only its description tells, and the description."""
    path = write_model(
        folder,
        [
            node("Add", ["obs", "past"], ["sum"]),
            node("Tanh", ["sum"], ["kept"]),
            node("MatMul", ["kept", "w"], ["actions"]),
        ],
        [tensor("obs", [1, 4]), tensor("past", [1, 4])],
        [tensor("actions", [1, 2]), tensor("kept", [1, 4])],
        {"w": weights(4, 2)},
        name="policy.onnx",
    )
    described = {
        "models": {
            "policy": {
                "inputs": [{"name": "obs"}, {"name": "past"}],
                "outputs": [{"name": "actions"}, {"name": "kept"}],
                "parameters": {
                    "model_path": path.name,
                    "backend": "onnx",
                    "sha256sum": hashlib.sha256(path.read_bytes()).hexdigest(),
                },
            }
        },
        "pipeline": {"feedback_flow": {"policy/kept": ["policy/past"]}, **pipeline},
        "system information": {},
    }
    (folder / "walker.yaml").write_text(yaml.safe_dump(described))
    return path


def test_flow_of_the_description_is_the_policys_memory(tmp_path: Path) -> None:
    described(tmp_path)
    (tmp_path / "schema.yaml").write_text("parameters: {api_key: k}\n")

    policy = load_policy(tmp_path)

    assert [(item.name, item.shape) for item in policy.signature.memory] == [("past", (4,))]
    assert "read: walker.yaml, a description by LEAPP; state: past" in policy.signature.findings
    observation, state = np.full((1, 4), 0.3, np.float32), np.full((1, 4), 0.2, np.float32)
    outputs = policy.infer(PolicyInputs.of(observation, is_deterministic=True, state=state))
    kept = np.tanh(observation + state)
    assert outputs.state is not None
    np.testing.assert_allclose(outputs.state, kept, atol=1e-6)
    np.testing.assert_allclose(outputs.actions, kept @ weights(4, 2), atol=1e-6)


def test_description_of_another_file_is_refused(tmp_path: Path) -> None:
    path = described(tmp_path)
    path.write_bytes(path.read_bytes() + b"\x0a\x01x")

    assert refused(tmp_path) == (
        "walker.yaml: describes another file than policy.onnx, whose SHA-256 differs; copy both "
        "again, as they were exported together"
    )


def test_description_of_several_models_is_refused(tmp_path: Path) -> None:
    described(tmp_path)
    path = tmp_path / "walker.yaml"
    content = yaml.safe_load(path.read_text())
    content["models"]["filter"] = content["models"]["policy"]
    path.write_text(yaml.safe_dump(content))

    assert refused(tmp_path) == (
        "walker.yaml: describes a pipeline of 2 models (filter, policy), expected one; export the "
        "whole pipeline as one node"
    )


def test_flow_to_an_input_that_is_not_there_is_refused(tmp_path: Path) -> None:
    described(tmp_path, feedback_flow={"policy/kept": ["policy/other"]})

    assert refused(tmp_path) == (
        "policy.onnx: its description says that 'kept' becomes 'other' of the next step, and the "
        "graph has no such output and input; export both again"
    )


def renamed(folder: Path, inputs: list[str], outputs: list[str], flow: dict[str, str]) -> None:
    """Give the description other names than the graph's."""
    path = folder / "walker.yaml"
    content = yaml.safe_load(path.read_text())
    content["models"]["policy"]["inputs"] = [{"name": name} for name in inputs]
    content["models"]["policy"]["outputs"] = [{"name": name} for name in outputs]
    content["pipeline"]["feedback_flow"] = {
        f"policy/{after}": [f"policy/{before}"] for before, after in flow.items()
    }
    path.write_text(yaml.safe_dump(content))


def test_other_names_are_matched_by_their_places(tmp_path: Path) -> None:
    described(tmp_path)
    renamed(tmp_path, ["seen", "known"], ["act", "next"], {"known": "next"})

    assert load_policy(tmp_path).signature.memory[0].name == "past"


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        (["unused", "known", "seen"], ["actions", "kept"]),
        (["seen", "known"], ["values", "act", "kept"]),
    ],
    ids=["inputs", "outputs"],
)
def test_other_names_of_another_number_are_refused(
    inputs: list[str], outputs: list[str], tmp_path: Path
) -> None:
    described(tmp_path)
    after = "kept" if "kept" in outputs and len(outputs) == 2 else "act"
    renamed(tmp_path, inputs, outputs, {"known": after})

    assert "the graph has no such output and input; export both again" in refused(tmp_path)


def test_flow_between_other_sizes_is_refused(tmp_path: Path) -> None:
    described(tmp_path, feedback_flow={"policy/actions": ["policy/past"]})

    assert refused(tmp_path) == (
        "policy.onnx: its description says that 'actions' becomes 'past' of the next step, and "
        "their shapes are [1, 2] and [1, 4]; export both again"
    )


def test_fed_back_output_may_be_the_action(tmp_path: Path) -> None:
    path = write_model(
        tmp_path,
        [
            node("Concat", ["obs", "last"], ["row"], axis=1),
            node("MatMul", ["row", "w"], ["actions"]),
        ],
        [tensor("obs", [1, 4]), tensor("last", [1, 2])],
        [tensor("actions", [1, 2])],
        {"w": weights(6, 2)},
    )
    model = {
        "inputs": [{"name": "obs"}, {"name": "last"}],
        "outputs": [{"name": "actions"}],
        "parameters": {"model_path": path.name},
    }
    flow = {"feedback_flow": {"policy/actions": ["policy/last"]}}
    (tmp_path / "walker.yaml").write_text(
        yaml.safe_dump({"models": {"policy": model}, "pipeline": flow})
    )

    policy = load_policy(tmp_path)

    observation, state = np.full((1, 4), 0.3, np.float32), np.full((1, 2), 0.2, np.float32)
    outputs = policy.infer(PolicyInputs.of(observation, is_deterministic=True, state=state))
    expected = np.concatenate([observation, state], axis=1) @ weights(6, 2)
    np.testing.assert_allclose(outputs.actions, expected, atol=1e-6)
    assert outputs.state is not None
    np.testing.assert_allclose(outputs.state, expected, atol=1e-6)


@pytest.mark.parametrize("first", [0.0, 0.5], ids=["zeros", "other numbers"])
def test_state_that_begins_with_other_numbers_than_zeros_is_refused(
    first: float, tmp_path: Path
) -> None:
    described(tmp_path, initial_values="first.safetensors")
    values = np.full(4, first, np.float32).tobytes()
    (tmp_path / "first.safetensors").write_bytes(stored({"policy/past": [0, 16]}, values))

    if first == 0.0:
        assert load_policy(tmp_path).signature.memory_width == 4
        return
    assert refused(tmp_path) == (
        "walker.yaml: its state begins with the numbers of first.safetensors, expected zeros; "
        "export a policy whose memory starts at zero"
    )


def stored(places: Mapping[str, object], data: bytes, *, length: int | None = None) -> bytes:
    """Return a safetensors file: the length of its header, the header, and the numbers' bytes."""
    tensors = {
        name: {"dtype": "F32", "shape": [1, 4], "data_offsets": place}
        for name, place in places.items()
    }
    header = json.dumps({"__metadata__": {"by": "a test"}, **tensors}).encode()
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


DAMAGED = {
    "no file at all": b"",
    "a header of another length": stored({"past": [0, 16]}, bytes(16), length=2**64 - 1),
    "an empty header": stored({"past": [0, 16]}, bytes(16), length=0),
    "a list": (2).to_bytes(8, "little") + b"[]",
    "lists in lists": (10**6).to_bytes(8, "little") + b"[" * 10**6,
    "numbers that are cut off": stored({"past": [0, 16]}, bytes(15)),
    "numbers of no tensor": stored({"past": [0, 16]}, bytes(17)),
    "numbers of two tensors": stored({"past": [0, 16], "other": [8, 24]}, bytes(24)),
    "a place before the numbers": stored({"past": [-16, 16]}, bytes(16)),
    "a place that is no number": stored({"past": [0, "16"]}, bytes(16)),
    "no place": stored({"past": None}, bytes(16)),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_damaged_initial_values_are_refused(content: bytes, tmp_path: Path) -> None:
    described(tmp_path, initial_values="first.safetensors")
    (tmp_path / "first.safetensors").write_bytes(content)

    assert refused(tmp_path) == (
        "walker.yaml: first.safetensors beside it is damaged; copy or export both again"
    )


def test_initial_values_of_several_tensors_are_read(tmp_path: Path) -> None:
    described(tmp_path, initial_values="first.safetensors")
    content = stored({"other": [16, 20], "none": [20, 20], "past": [0, 16]}, bytes(20))
    (tmp_path / "first.safetensors").write_bytes(content)

    assert load_policy(tmp_path).signature.memory_width == 4


# Each line stands for ten times the one before: some 400 bytes of text, a million values.
BOMB = "".join(
    f"b{level}: &b{level} [{', '.join([f'*b{level - 1}'] * 10) if level else 'x'}]\n"
    for level in range(7)
)


def test_aliases_that_stand_for_too_many_values_are_no_description(tmp_path: Path) -> None:
    path = described(tmp_path)
    text = (tmp_path / "walker.yaml").read_text()
    text = text.replace("pipeline:\n", "pipeline:\n  initial_values: *b6\n")
    (tmp_path / "walker.yaml").write_text(BOMB + text)

    assert path.exists()
    assert not load_policy(tmp_path).signature.memory


@pytest.mark.parametrize("value", [["start.safetensors"], {"a": 1}, 3])
def test_initial_values_that_name_no_file_are_refused(value: object, tmp_path: Path) -> None:
    described(tmp_path, initial_values=value)

    with pytest.raises(ModelError, match=r"walker\.yaml: is no whole description"):
        load_policy(tmp_path)


def test_names_that_are_no_text_are_refused(tmp_path: Path) -> None:
    described(tmp_path)
    text = (tmp_path / "walker.yaml").read_text()
    (tmp_path / "walker.yaml").write_text(text.replace("name: past", "name: [past]"))

    with pytest.raises(ModelError, match=r"walker\.yaml: is no whole description"):
        load_policy(tmp_path)
