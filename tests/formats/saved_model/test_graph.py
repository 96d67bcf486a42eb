"""Reading SavedModels: every file is a graph with a signature, or refused in one line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tensorflow.core.protobuf import saved_model_pb2

from policy_server.errors import ModelError
from policy_server.formats import load_policy
from policy_server.formats.saved_model.graph import load_graph, natural_key, reason_of, width_of
from policy_server.policy import SignatureTensor
from tests.support.hand_built import Part, V1Policy, save_functions, tf


def refusal(folder: Path) -> str:
    """Return the one line that a folder is refused with."""
    with pytest.raises(ModelError) as caught:
        load_graph(folder)
    assert "\n" not in caught.value.message
    return caught.value.message


def edited(folder: Path, edit: Callable[[saved_model_pb2.SavedModel], None]) -> Path:
    """Change a SavedModel's document."""
    path = folder / "saved_model.pb"
    document = saved_model_pb2.SavedModel()
    document.ParseFromString(path.read_bytes())
    edit(document)
    path.write_bytes(document.SerializeToString())
    return folder


def test_actions_are_in_numeric_order() -> None:
    names = [f"actions_{index}" for index in range(12)]

    assert sorted(sorted(names), key=natural_key) == names


@pytest.mark.parametrize(
    ("shape", "width"),
    [((None, 4), 4), ((None,), 1), ((None, 2, 3), 6), ((None, None), None), (None, None)],
)
def test_width_is_the_product_of_all_dimensions_but_the_batch(
    shape: tuple[int | None, ...] | None, width: int | None
) -> None:
    assert width_of(SignatureTensor("observations", "float32", shape)) == width


def test_only_what_the_actions_need_is_kept(tmp_path: Path) -> None:
    built = V1Policy(outputs=("action_dist_inputs", "action_logp", "vf_preds"))

    loaded = load_graph(built.save(tmp_path / "m"))

    assert {item.name for item in loaded.outputs} == {
        "action_dist_inputs",
        "action_logp",
        "actions_0",
        "vf_preds",
    }
    assert set(loaded.fetches) == {"action_dist_inputs", "action_logp", "actions_0"}
    assert not [node.op for node in loaded.graph_def.node if "Variable" in node.op]


def test_inputs_that_the_signature_leaves_out_are_filled_in(tmp_path: Path) -> None:
    built = V1Policy(exploration="random", inputs=(), unlisted=("timestep",))

    loaded = load_graph(built.save(tmp_path / "m"))

    assert [item.name for item in loaded.feeds.values()] == ["timestep"]
    assert [item.name for item in loaded.inputs] == ["observations"]
    assert loaded.exploring == "policy/is_exploring:0"


def test_inputs_that_no_output_needs_are_left_alone(tmp_path: Path) -> None:
    loaded = load_graph(V1Policy(inputs=("timestep", "prev_reward")).save(tmp_path / "m"))

    assert loaded.feeds == {}


def test_input_with_a_default_keeps_it(tmp_path: Path) -> None:
    def network(_rows: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        return logits * tf.compat.v1.placeholder_with_default(2.0, [], name="policy/scale")

    loaded = load_graph(V1Policy(network=network).save(tmp_path / "m"))

    assert loaded.feeds == {}


def test_keras_learning_phase_is_off(tmp_path: Path) -> None:
    def network(_rows: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        phase = tf.compat.v1.placeholder_with_default(np.True_, [], name="keras_learning_phase")
        return tf.where(phase, logits * 0.0, logits)

    loaded = load_graph(V1Policy(network=network).save(tmp_path / "m"))

    assert [item.name for item in loaded.feeds.values()] == ["is_training"]


def test_unknown_input_that_the_signature_leaves_out_is_refused(tmp_path: Path) -> None:
    built = V1Policy(unlisted=("action_mask",))

    assert refusal(built.save(tmp_path / "m")) == (
        "saved_model.pb: its actions need the input 'policy/action_mask', which the signature "
        "leaves out; export the policy with export_policy_model"
    )


def test_memory_of_open_length_has_the_length_that_training_fed(tmp_path: Path) -> None:
    def network(_rows: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        tf.compat.v1.placeholder(tf.float32, [1, 6, 8], name="policy/memory_of_training")
        tf.compat.v1.placeholder(tf.float32, None, name="policy/anything")
        return logits

    built = V1Policy(inputs=("memory", "seq_lens"), network=network)

    loaded = load_graph(built.save(tmp_path / "m"))

    shapes = {item.name: item.shape for item in loaded.feeds.values()}
    assert shapes == {"memory": (None, 6, 8), "seq_lens": (None,)}


@pytest.mark.parametrize("content", [b"no protobuf", b"\xff" * 40], ids=["text", "bytes"])
def test_damaged_document_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").write_bytes(content)

    assert refusal(tmp_path).startswith("saved_model.pb: is damaged or no SavedModel (")


def test_empty_document_is_refused(tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").write_bytes(b"")

    assert "holds no graph for serving; expected the tag 'serve'" in refusal(tmp_path)


def test_graph_without_the_tag_for_serving_is_refused(tmp_path: Path) -> None:
    folder = V1Policy(tags=("train",)).save(tmp_path / "m")

    assert "holds no graph for serving; expected the tag 'serve'" in refusal(folder)


def test_model_without_a_signature_is_refused(tmp_path: Path) -> None:
    folder = edited(
        V1Policy().save(tmp_path / "m"),
        lambda document: document.meta_graphs[0].signature_def.clear(),
    )

    assert "has no signature 'serving_default', got none" in refusal(folder)


def test_several_signatures_of_other_names_are_refused(tmp_path: Path) -> None:
    def copy(document: saved_model_pb2.SavedModel) -> None:
        signatures = document.meta_graphs[0].signature_def
        signatures["b"].CopyFrom(signatures["a"])

    folder = edited(V1Policy(signature="a").save(tmp_path / "m"), copy)

    assert "has no signature 'serving_default', got a, b" in refusal(folder)


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    folder = V1Policy().save(tmp_path / "m")
    shutil.rmtree(folder / "variables")

    assert refusal(folder) == (
        "saved_model.pb: its weights are missing; expected the folder variables/ beside it, as "
        "export_policy_model writes it"
    )


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    folder = V1Policy().save(tmp_path / "m")
    (folder / "variables" / "variables.data-00000-of-00001").write_bytes(b"")

    message = refusal(folder)

    assert message.startswith(f"saved_model.pb: can't be restored by TensorFlow {tf.__version__} (")
    assert message.endswith("); export the policy again")


@pytest.mark.parametrize("index", ["9999999999", "-1", "x", ""])
def test_signature_of_a_tensor_that_can_not_be_is_refused(index: str, tmp_path: Path) -> None:
    names = []

    def change(document: saved_model_pb2.SavedModel) -> None:
        info = document.meta_graphs[0].signature_def["serving_default"].outputs["actions_0"]
        info.name = f"{info.name.partition(':')[0]}:{index}"
        names.append(info.name)

    assert refusal(edited(V1Policy().save(tmp_path / "m"), change)) == (
        f"saved_model.pb: the signature has '{names[0]}', expected a tensor, such as 'logits:0'; "
        "export the policy again"
    )


def test_signature_of_a_tensor_that_is_not_there_is_refused(tmp_path: Path) -> None:
    def rename(document: saved_model_pb2.SavedModel) -> None:
        signature = document.meta_graphs[0].signature_def["serving_default"]
        signature.outputs["actions_0"].name = "nowhere:0"

    folder = edited(V1Policy().save(tmp_path / "m"), rename)

    assert "(the graph has no node nowhere)" in refusal(folder)


@pytest.mark.parametrize("dtype", [0, 9999], ids=["none", "unknown"])
@pytest.mark.parametrize("side", ["inputs", "outputs"])
def test_signature_of_a_type_that_is_none_is_refused(side: str, dtype: int, tmp_path: Path) -> None:
    def change(document: saved_model_pb2.SavedModel) -> None:
        (signature,) = document.meta_graphs[0].signature_def.values()
        for item in getattr(signature, side).values():
            item.dtype = dtype

    folder = edited(V1Policy().save(tmp_path / "m"), change)

    with pytest.raises(ModelError, match=r"can't be restored by TensorFlow .* export the policy"):
        load_policy(folder)


def test_operation_that_tensorflow_does_not_know_is_refused(tmp_path: Path) -> None:
    def rename(document: saved_model_pb2.SavedModel) -> None:
        node = next(n for n in document.meta_graphs[0].graph_def.node if n.op == "MatMul")
        node.op = "MatMulOfTheFuture"

    folder = edited(V1Policy().save(tmp_path / "m"), rename)

    assert "MatMulOfTheFuture" in refusal(folder)


def test_operation_that_only_training_needs_does_not_matter(tmp_path: Path) -> None:
    def add(document: saved_model_pb2.SavedModel) -> None:
        node = document.meta_graphs[0].graph_def.node.add()
        node.name, node.op = "training/step", "TrainOfThePast"

    folder = edited(V1Policy().save(tmp_path / "m"), add)

    assert load_graph(folder).graph_def.node


@pytest.mark.parametrize("name", ["name"])
def test_input_of_text_is_refused(name: str, tmp_path: Path) -> None:
    folder = V1Policy(inputs=(name,)).save(tmp_path / "m")

    assert "the input 'name' takes string, expected numbers" in refusal(folder)


def test_several_inputs_that_may_be_the_observation_are_refused(tmp_path: Path) -> None:
    def policy(left: tf.Tensor, right: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"actions_0": tf.argmax(left + right, axis=1)}

    inputs = {"left": ([None, 3], "float32"), "right": ([None, 3], "float32")}
    folder = save_functions(tmp_path / "m", policy, inputs)

    assert "expected an input 'observations', got left, right" in refusal(folder)


def test_reason_is_what_stands_between_tensorflows_traces() -> None:
    text = (
        "Graph execution error:\n\nat (most recent):\nNode: 'a/b'\ntoo\nlarge\n\t [[{{node a/b}}]]"
    )

    assert reason_of(ValueError(text)) == "too large"
    assert reason_of(ValueError("no  such\nnode")) == "no such node"


def test_training_graph_of_several_actions_is_restored_without_its_optimiser(
    tmp_path: Path,
) -> None:
    def network(_rows: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        tf.compat.v1.get_variable("training/momentum", initializer=1.0)
        return logits

    loaded = load_graph(V1Policy(parts=(Part(), Part()), network=network).save(tmp_path / "m"))

    assert not [node.name for node in loaded.graph_def.node if "momentum" in node.name]
