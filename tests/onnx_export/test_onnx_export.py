"""Policies of every format as .onnx files that describe themselves, read back and computed."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from policy_server import onnx_export
from policy_server.engine.network import CompiledPolicy, NetworkPolicy
from policy_server.errors import ExportError
from policy_server.formats import load_policy
from policy_server.formats.onnx.graph_writing.model_writing import model_bytes
from policy_server.formats.onnx.policy_metadata import POLICY_KEY, VECTORS_KEY
from policy_server.formats.unpacking import unpack_model
from policy_server.onnx_export import export_onnx
from policy_server.onnx_export.probes import probe_vectors
from policy_server.policy import Policy, PolicyInputs, PolicySignature
from policy_server.schema import ServerSchema, parse_schema, read_schema
from policy_server.settings import Engine
from tests.support.compiled import COMPILED
from tests.support.folders import EXPORTS, ROOT
from tests.support.library_policies import POLICIES
from tests.support.onnx_models import node, tensor, weights, write_model

Array = NDArray[Any]

# Files of a policy that hold several, with the name of one.
MODULES = {"rllib_agents": "hunter", "rllib_ppo_multiagent": "left", "multi.zip": "left"}
# Folders whose schema.yaml has several policies, with the name of one.
NAMED = {"pursuit": "hunter"}
REFUSED = {
    "policies/tf_agents/dqn_collect.zip": "tensorflow computes it, since its family is unknown",
}
OLD_ONES = "custom_dist custom_model dqn_noisy dqn_param_noise ppo_attention r2d2"
OLD_ONES += " tf2_ppo tf_cnn tf_dqn"
NOT_SERVED = {
    "policies/onnx_external_data_missing/policy.onnx",
    *(f"policies/rllib_old/{name}.zip" for name in OLD_ONES.split()),
}
# Images that take seconds each, of the same layers as sb3_ppo_cnn and sb3_recurrent_dict_image.
LEFT_OUT = (
    *("sb3_ppo_dict_image", "sb3_qrdqn_cnn", "sb3_v16_vecnorm_image", "sb3_vecnorm_keys_image"),
)
# Its schema.yaml has the mask as a part of the observation.
WITHOUT_SCHEMA = ("onnx_mlagents_discrete",)


def policy_files() -> list[Path]:
    """Return the files of all policies that come with the repository."""
    return [
        *sorted(ROOT.glob("examples/*/saved_model.zip")),
        *sorted(EXPORTS.glob("*/saved_model.zip")),
        *sorted(
            path
            for path in POLICIES.glob("*/*")
            if path.suffix in (".zip", ".onnx", ".keras") and path.parent.name not in LEFT_OUT
        ),
    ]


def short(path: Path) -> str:
    return path.relative_to(path.parents[2]).as_posix()


def schema_of(path: Path) -> ServerSchema | None:
    """Return the schema.yaml beside a policy, with the name of one of several policies."""
    file = path.parent / "schema.yaml"
    is_used = file.exists() and path.parent.name not in WITHOUT_SCHEMA
    schema = read_schema(file, NAMED.get(path.parent.name)) if is_used else None
    module = MODULES.get(path.parent.name) or MODULES.get(path.name)
    if module is None or path.name.startswith("module_"):
        return None if path.name.startswith("module") else schema
    return replace(schema or ServerSchema(), module=module)


def unpacked(path: Path, tmp_path: Path) -> Path:
    return unpack_model(path, tmp_path / "source", max_bytes=2**31)


def told(signature: PolicySignature) -> Mapping[str, Any]:
    """Return what a signature says about the policy, but for the engine and the file."""
    return {
        key: getattr(signature, key)
        for key in (
            *("action_outputs", "components", "is_tuple_of_one", "is_value_based", "memory"),
            *(
                "mask_name",
                "mask_sizes",
                "module",
                "observation_dtype",
                "observation_width",
                "row_dtype",
            ),
        )
    }


def assert_same_answers(written: Policy, policy: Policy, inputs: PolicyInputs) -> None:
    found, expected = (one.infer(inputs) for one in (written, policy))
    for ours, theirs in (
        (found.distribution, expected.distribution),
        (found.actions, expected.actions),
        (found.log_probability, expected.log_probability),
        (found.state, expected.state),
    ):
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            largest = np.abs(np.where(np.isfinite(theirs), theirs, 0)).max(initial=1.0)
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * largest)


def assert_vectors_by_onnxruntime(path: Path) -> None:
    """Run the file as a stranger would, by its own description, and compare its test vectors."""
    model = onnx.load(path)
    metadata = {item.key: json.loads(item.value) for item in model.metadata_props}
    policy, vectors = metadata[POLICY_KEY], metadata[VECTORS_KEY]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    inputs = {item.name: item for item in session.get_inputs()}
    names = policy["observation"]["inputs"]
    feeds = {names[0]: np.array(vectors["observations"])}
    expected = {policy["distribution"]["output"]: np.array(vectors["distributions"], float)}
    first = 0
    for item in policy["memory"]:
        shape = [-1, *inputs[item["input"]].shape[1:]]
        last = first + int(np.prod(shape[1:]))
        feeds[item["input"]] = np.array(vectors["states"])[:, first:last].reshape(shape)
        expected[item["output"]] = np.array(vectors["states_after"])[:, first:last].reshape(shape)
        first = last
    if policy["mask"] is not None:
        feeds[policy["mask"]] = np.array(vectors["masks"])
    types = {"tensor(float)": np.float32, "tensor(double)": np.float64}
    found = session.run(
        list(expected), {key: value.astype(types[inputs[key].type]) for key, value in feeds.items()}
    )
    assert len(vectors["observations"]) == 20
    for ours, theirs in zip(found, expected.values(), strict=True):
        numbers = np.where(np.isnan(theirs), -np.inf, theirs)
        largest = np.abs(np.where(np.isfinite(numbers), numbers, 0)).max(initial=1.0)
        np.testing.assert_allclose(ours, numbers, rtol=0, atol=1e-5 * largest)


def test_every_file_has_its_outcome() -> None:
    known = {short(path) for path in policy_files()}

    assert {*REFUSED, *NOT_SERVED} < known
    assert len(known) - len(REFUSED) - len(NOT_SERVED) > 140


@pytest.mark.parametrize(
    "path",
    [path for path in policy_files() if short(path) not in {*REFUSED, *NOT_SERVED}],
    ids=short,
)
def test_policy_is_written_and_read_back_with_its_answers(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "written" / "policy.onnx"
    folder, schema = unpacked(path, tmp_path), schema_of(path)
    policy = load_policy(folder, schema)

    def loaded(
        source: Path, stated: ServerSchema | None = None, *, engine: Engine = "auto"
    ) -> Policy:
        is_the_same = (source, stated, engine) == (folder, schema, "auto")
        return policy if is_the_same else load_policy(source, stated, engine=engine)

    # Loading a policy takes longer than writing it.
    monkeypatch.setattr(onnx_export, "load_policy", loaded)
    export_onnx(folder, schema, target)

    written = load_policy(target.parent)
    assert isinstance(policy, NetworkPolicy)
    assert told(written.signature) == told(policy.signature)
    assert_same_answers(written, policy, probe_vectors(policy, most=64).inputs)
    assert_vectors_by_onnxruntime(target)


@pytest.mark.parametrize("name", REFUSED)
def test_policy_that_numpy_does_not_compute_is_refused(name: str, tmp_path: Path) -> None:
    (path,) = (path for path in policy_files() if short(path) == name)
    target = tmp_path / "written" / "policy.onnx"

    with pytest.raises(ExportError, match=f"can't be written as ONNX: {REFUSED[name]}"):
        export_onnx(unpacked(path, tmp_path), schema_of(path), target)

    assert not target.exists()


def test_written_file_is_the_same_each_time(tmp_path: Path) -> None:
    folder = unpacked(POLICIES / "rllib_modules" / "linear.zip", tmp_path)

    for name in ("a", "b"):
        export_onnx(folder, None, tmp_path / name / "policy.onnx")

    first, second = ((tmp_path / name / "policy.onnx").read_bytes() for name in ("a", "b"))
    assert first == second


def test_names_of_schema_yaml_are_in_the_file(tmp_path: Path) -> None:
    path = ROOT / "examples" / "mouse_and_cheese" / "saved_model.zip"
    target = tmp_path / "written" / "policy.onnx"

    export_onnx(unpacked(path, tmp_path), schema_of(path), target)

    signature = load_policy(target.parent).signature
    assert [part.key for part in signature.observation_parts][:2] == ["mouse_row", "mouse_column"]
    (part,) = signature.components or ()
    assert (part.name, part.labels) == ("move", ("up", "right", "down", "left"))


def test_file_that_exists_is_kept(tmp_path: Path) -> None:
    folder = unpacked(POLICIES / "rllib_modules" / "linear.zip", tmp_path)
    target = tmp_path / "policy.onnx"
    target.write_bytes(b"mine")

    with pytest.raises(ExportError, match="exists; give another folder, or overwrite it with"):
        export_onnx(folder, None, target)
    assert target.read_bytes() == b"mine"

    export_onnx(folder, None, target, overwrite=True)
    assert onnx.load(target).producer_name == "policy-server"


def test_normalization_outside_of_the_policy_is_refused(tmp_path: Path) -> None:
    folder = unpacked(POLICIES / "rllib_modules" / "linear.zip", tmp_path)
    width = load_policy(folder).signature.observation_width
    schema = parse_schema(
        f"observations: {{x: {{type: 'List[float]', shape: [{width}], "
        "normalize: {mean: 1, std: 2}}}\nparameters: {}"
    )

    with pytest.raises(ExportError, match=r"schema\.yaml normalizes 'x' outside of it"):
        export_onnx(folder, schema, tmp_path / "policy.onnx")


def test_mask_keeps_its_name(tmp_path: Path) -> None:
    write_model(
        tmp_path,
        [
            node("MatMul", ["obs", "w"], ["numbers"]),
            node("Cast", ["avail_actions"], ["allowed"], to=9),
            node("Where", ["allowed", "numbers", "lowest"], ["logits"]),
        ],
        [tensor("obs", ["batch", 4]), tensor("avail_actions", ["batch", 3])],
        [tensor("logits", ["batch", 3])],
        {"w": weights(4, 3), "lowest": np.array(-1e9, np.float32)},
    )
    target = tmp_path / "written" / "policy.onnx"

    export_onnx(tmp_path, None, target)

    assert load_policy(tmp_path).signature.mask_name == "avail_actions"
    assert load_policy(target.parent).signature.mask_name == "avail_actions"


def test_mask_forbids_choices_in_the_graph(tmp_path: Path) -> None:
    path = POLICIES / "sb3_maskable_ppo" / "policy.zip"
    target = tmp_path / "written" / "policy.onnx"
    export_onnx(unpacked(path, tmp_path), None, target)
    session = onnxruntime.InferenceSession(target, providers=["CPUExecutionProvider"])
    width = session.get_inputs()[0].shape[1]
    mask = np.array([[0, 1, 1, 0, 1]], np.float32)

    (found,) = session.run(
        None, {"observation": np.ones((1, width), np.float32), "action_mask": mask}
    )

    assert np.array_equal(np.isneginf(found), mask == 0)


def test_policy_of_one_row_at_a_time_is_written_for_one_row(tmp_path: Path) -> None:
    network = replace(COMPILED.network, is_row_by_row=True)
    policy = NetworkPolicy(CompiledPolicy(COMPILED.signature, network))
    vectors = probe_vectors(policy, most=20)

    (tmp_path / "policy.onnx").write_bytes(model_bytes(policy.compiled, vectors))

    written = load_policy(tmp_path)
    assert written.signature.inputs[0].shape == (1, 2)
    assert_same_answers(written, policy, vectors.inputs)


def test_operation_that_onnx_lacks_is_named() -> None:
    step = replace(COMPILED.network.steps[0], operation="MatMul", attributes=())
    network = replace(
        COMPILED.network, steps=(step,), constants={1: np.ones((2, 2, 2), np.float32)}
    )

    with pytest.raises(ExportError, match="its operation MatMul: it multiplies arrays of more"):
        model_bytes(
            replace(COMPILED, network=network), probe_vectors(NetworkPolicy(COMPILED), most=5)
        )


def test_without_onnxruntime_the_reference_of_onnx_proves_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    folder = unpacked(POLICIES / "rllib_modules" / "linear.zip", tmp_path)

    export_onnx(folder, None, tmp_path / "written" / "policy.onnx")

    signature = load_policy(tmp_path / "written").signature
    assert signature.engine == "numpy"
    assert "equal to onnx's reference" in signature.engine_reason
