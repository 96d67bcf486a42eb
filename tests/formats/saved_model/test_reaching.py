"""Graphs that would touch files, other processes or the server's own: nothing of them is run."""

from __future__ import annotations

import contextlib
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from policy_server.errors import ModelError
from policy_server.formats.saved_model.loading import load_policy
from policy_server.formats.saved_model.reaching import refuse_reaching
from tests.fuzz.harmful_graphs import HARMS, with_harm
from tests.support.folders import EXPORTS
from tests.support.hand_built import V1Policy, tf

# The import above keeps TensorFlow's notes back.
from tensorflow.core.protobuf import saved_model_pb2  # isort: skip

REFUSED = r"has the operation \w+ \('harm/.*, which reaches beyond the policy's own numbers"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return V1Policy().save(tmp_path_factory.mktemp("saved") / "model")


def put_harm(folder: Path, harm: str, path: Path, *, in_function: bool = False) -> None:
    """Change the saved_model.pb of a folder."""
    file = folder / "saved_model.pb"
    file.write_bytes(with_harm(file.read_bytes(), harm, str(path), in_function=in_function))


@pytest.mark.parametrize("harm", HARMS)
def test_harmful_operation_is_refused_by_its_name(saved: Path, harm: str, tmp_path: Path) -> None:
    folder, written = shutil.copytree(saved, tmp_path / "model"), tmp_path / "written"
    written.mkdir()
    put_harm(folder, harm, written / "file")

    with pytest.raises(ModelError, match=REFUSED):
        load_policy(folder)

    assert [*written.iterdir()] == []


@pytest.mark.parametrize("harm", ["WriteFile", "ReadFile", "PrintV2 to a file", "RestoreV2"])
def test_harmful_operation_in_a_function_is_refused(harm: str, tmp_path: Path) -> None:
    folder, path = tmp_path / "model", tmp_path / "written"
    with zipfile.ZipFile(EXPORTS / "ray29_tf2_ppo_discrete" / "saved_model.zip") as archive:
        archive.extractall(folder)
    put_harm(next(folder.rglob("saved_model.pb")).parent, harm, path, in_function=True)

    with pytest.raises(ModelError, match=REFUSED):
        load_policy(next(folder.rglob("saved_model.pb")).parent)

    assert not path.exists()


def test_numbers_of_another_checkpoint_are_not_served(saved: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saved, tmp_path / "model")
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        prefix = str(tmp_path / "elsewhere")
        secret = tf.constant([41.0, 42.0, 43.0])
        session.run(
            tf.raw_ops.SaveV2(
                prefix=prefix, tensor_names=["x"], shape_and_slices=[""], tensors=[secret]
            )
        )
    put_harm(folder, "RestoreV2", tmp_path / "elsewhere")

    with pytest.raises(ModelError, match=REFUSED):
        load_policy(folder)


def changed(folder: Path, change: Callable[[Any], None]) -> Path:
    """Change the only graph of a saved_model.pb; return its folder."""
    file = next(folder.rglob("saved_model.pb"))
    document = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    (meta,) = document.meta_graphs
    change(meta)
    file.write_bytes(document.SerializeToString())
    return file.parent


def add_prefix(nodes: Any) -> None:  # noqa: ANN401 -- protobuf
    """Add a constant, the name of another checkpoint."""
    node = nodes.add(name="elsewhere", op="Const")
    node.attr["dtype"].type = tf.string.as_datatype_enum
    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto("/elsewhere/checkpoint"))


def restore_from_elsewhere(meta: Any) -> None:  # noqa: ANN401 -- protobuf
    """Let the saver read each weight from another checkpoint."""
    add_prefix(meta.graph_def.node)
    for node in meta.graph_def.node:
        if node.op == "RestoreV2":
            node.input[0] = "elsewhere"


def restore_from_elsewhere_in_functions(meta: Any) -> None:  # noqa: ANN401 -- protobuf
    """Let the saver's functions read each weight from another checkpoint."""
    for function in meta.graph_def.library.function:
        reading = [node for node in function.node_def if node.op == "RestoreV2"]
        if reading:
            add_prefix(function.node_def)
        for node in reading:
            node.input[0] = "elsewhere:output:0"


def hand_another_name_to_functions(meta: Any) -> None:  # noqa: ANN401 -- protobuf
    """Call the saver's function with the name of another checkpoint."""
    add_prefix(meta.graph_def.node)
    called = next(
        node for node in meta.graph_def.node if node.name == meta.saver_def.restore_op_name
    )
    called.input[0] = "elsewhere"


def act_on_the_savers_numbers(meta: Any) -> None:  # noqa: ANN401 -- protobuf
    """Let the policy's outputs wait for the saver's reading, whose file is then the file's own."""
    reading = next(node.name for node in meta.graph_def.node if node.op == "RestoreV2")
    for node in meta.graph_def.node:
        if node.op == "MatMul":
            node.input.append(f"^{reading}")


@pytest.mark.parametrize("change", [restore_from_elsewhere, act_on_the_savers_numbers])
def test_saver_reads_the_files_own_weights_alone(
    saved: Path, change: Callable[[Any], None], tmp_path: Path
) -> None:
    folder = changed(shutil.copytree(saved, tmp_path / "model"), change)

    with pytest.raises(ModelError, match="has the operation RestoreV2"):
        load_policy(folder)


@pytest.mark.parametrize(
    "change", [restore_from_elsewhere_in_functions, hand_another_name_to_functions]
)
def test_function_of_the_saver_reads_the_files_own_weights_alone(
    change: Callable[[Any], None], tmp_path: Path
) -> None:
    with zipfile.ZipFile(EXPORTS / "ray29_tf2_ppo_discrete" / "saved_model.zip") as archive:
        archive.extractall(tmp_path)
    folder = changed(tmp_path, change)

    with pytest.raises(ModelError, match="has the operation RestoreV2"):
        load_policy(folder)


def test_line_to_the_log_is_no_harm(saved: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saved, tmp_path / "model")
    put_harm(folder, "a line", tmp_path / "written")

    assert load_policy(folder).signature.family == "categorical(3)"


@pytest.mark.parametrize("word", ["Tpu", "Dataset", "Queue"])
def test_operation_of_a_long_name_is_looked_at_at_once(word: str) -> None:
    graph = tf.compat.v1.GraphDef()
    graph.node.add(name="answer", op=f"{word * 30_000}.")
    began = time.process_time()

    with contextlib.suppress(ModelError):
        refuse_reaching(graph, policy=["answer"], checkpoint="")

    assert time.process_time() - began < 2
