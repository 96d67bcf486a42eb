"""SavedModels whose graph has operations that mean harm: to files, processes, memory or time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tests.support.hand_built import tf

# The import above keeps TensorFlow's notes back.
from tensorflow.core.framework import graph_pb2  # isort: skip
from tensorflow.core.protobuf import saved_model_pb2  # isort: skip
from tensorflow.python.framework import op_def_registry  # isort: skip

__all__ = ["ENDLESS", "HARMS", "WASTE", "with_harm"]

_v1, _raw = tf.compat.v1, tf.raw_ops
# Adds operations to the default graph, which would touch a file of this name.
Harm = Callable[[str], Any]


def _endless(_path: str) -> Any:  # noqa: ANN401 -- TensorFlow is untyped
    _v1.disable_control_flow_v2()
    return _v1.while_loop(lambda _: True, lambda count: count + 1, [tf.constant(0)])


def _element(dataset: Any) -> Any:  # noqa: ANN401 -- TensorFlow is untyped
    return _raw.DatasetToSingleElement(
        dataset=dataset, output_types=[tf.string], output_shapes=[[]]
    )[0]


def _dequeued(_path: str) -> Any:  # noqa: ANN401 -- TensorFlow is untyped
    queue = _raw.FIFOQueueV2(component_types=[tf.float32])
    return _raw.QueueDequeueV2(handle=queue, component_types=[tf.float32])[0]


def _read(path: str) -> Any:  # noqa: ANN401 -- TensorFlow is untyped
    queue = _raw.FIFOQueueV2(component_types=[tf.string])
    return _raw.ReaderReadV2(reader_handle=_raw.WholeFileReaderV2(), queue_handle=queue)[0] + path


def _table(path: str) -> Any:  # noqa: ANN401 -- TensorFlow is untyped
    table = _raw.HashTableV2(key_dtype=tf.string, value_dtype=tf.int64)
    return _raw.InitializeTableFromTextFileV2(
        table_handle=table, filename=path, key_index=-2, value_index=-1
    )


HARMS: Mapping[str, Harm] = {
    "WriteFile": lambda path: _raw.WriteFile(filename=path, contents="harm"),
    "ReadFile": lambda _: _raw.ReadFile(filename="/etc/hostname"),
    "MatchingFiles": lambda _: _raw.MatchingFiles(pattern="/etc/*"),
    "Abort": lambda _: _raw.Abort(error_msg="harm"),
    "Abort quietly": lambda _: _raw.Abort(error_msg="harm", exit_without_error=True),
    "PrintV2 to a file": lambda path: _raw.PrintV2(input="harm", output_stream=f"file://{path}"),
    "SaveV2": lambda path: _raw.SaveV2(
        prefix=path, tensor_names=["x"], shape_and_slices=[""], tensors=[tf.constant(1.0)]
    ),
    "MergeV2Checkpoints": lambda path: _raw.MergeV2Checkpoints(
        checkpoint_prefixes=[path], destination_prefix=f"{path}.whole", delete_old_dirs=True
    ),
    "DebugIdentity": lambda path: _raw.DebugIdentity(
        input=tf.constant(1.0), tensor_name="x:0", debug_urls=[f"file://{path}"]
    ),
    "ImmutableConst": lambda _: _raw.ImmutableConst(
        dtype=tf.uint8, shape=[4], memory_region_name="/etc/hostname"
    ),
    "TextLineDataset": lambda _: _element(
        _raw.TextLineDataset(filenames=["/etc/hostname"], compression_type="", buffer_size=0)
    ),
    "WholeFileReaderV2": _read,
    "InitializeTableFromTextFileV2": _table,
    "CreateSummaryFileWriter": lambda path: _raw.CreateSummaryFileWriter(
        writer=_raw.SummaryWriter(), logdir=path, max_queue=1, flush_millis=1, filename_suffix="x"
    ),
    "QueueDequeueV2": _dequeued,
    "RestoreV2": lambda path: _raw.RestoreV2(
        prefix=path, tensor_names=["x"], shape_and_slices=[""], dtypes=[tf.float32]
    )[0],
    "Restore": lambda path: _raw.Restore(file_pattern=path, tensor_name="x", dt=tf.float32),
    "RestoreSlice": lambda path: _raw.RestoreSlice(
        file_pattern=path, tensor_name="x", shape_and_slice="", dt=tf.float32
    ),
    "a vocabulary": lambda _: _raw.FixedUnigramCandidateSampler(
        **{"true_classes": tf.constant([[1]], tf.int64), "num_true": 1, "num_sampled": 1},
        **{"unique": False, "range_max": 3, "vocab_file": "/etc/hostname"},
    )[0],
}
WASTE: Mapping[str, Harm] = {
    "a callback": lambda _: _raw.PyFunc(input=[1.0], token="pyfunc_0", Tout=[tf.float32])[0],
    "an eager callback": lambda _: _raw.EagerPyFunc(
        input=[tf.constant(1.0)],
        token="pyfunc_0",
        Tout=[tf.float32],
    )[0],
    "a terabyte": lambda _: tf.fill([1 << 38], 1.0),
    "more than there is": lambda _: tf.fill([1 << 62], 1.0),
    "a failing check": lambda _: _raw.Assert(condition=False, data=["harm"]),
    "a line": lambda _: _raw.PrintV2(input="harm", output_stream="stderr"),
    "a division by zero": lambda _: tf.math.floordiv(1, tf.constant(0)),
}
"""What TensorFlow may well run: it fails, or changes nothing."""

ENDLESS: Mapping[str, Harm] = {"a loop without an end": _endless}


def with_harm(content: bytes, name: str, path: str, *, in_function: bool = False) -> bytes:
    """Return a saved_model.pb whose outputs wait for a harmful operation.

    Args:
        content: the file.
        name: one of `HARMS`, `WASTE` or `ENDLESS`.
        path: a file that the operation may write.
        in_function: stand it in the functions that the outputs call, where there are any.
    """
    known = {**HARMS, **WASTE, **ENDLESS}
    graph = tf.Graph()
    with graph.as_default():
        tf.identity_n([tf.constant(0.0)], name="first")
        made = known[name](path)
        last: Any = made[0] if isinstance(made, list | tuple) else made
        last = getattr(last, "op", last)
    added = graph_pb2.GraphDef()
    added.CopyFrom(graph.as_graph_def())
    document = saved_model_pb2.SavedModel.FromString(content)
    for meta in document.meta_graphs:
        functions = meta.graph_def.library.function
        bodies = [function.node_def for function in functions] if in_function else []
        for nodes in bodies or [meta.graph_def.node]:
            _append(nodes, added, last.name, is_function=bool(bodies))
    return bytes(document.SerializeToString())


def _append(nodes: Any, added: Any, last: str, *, is_function: bool) -> None:  # noqa: ANN401 -- protobuf
    before = [node for node in nodes if node.op not in ("Placeholder", "Const", "NoOp")]
    for node in added.node:
        copy = nodes.add()
        copy.CopyFrom(node)
        copy.name = f"harm/{node.name}"
        del copy.input[:]
        copy.input.extend(_renamed(item, added, is_function=is_function) for item in node.input)
    for node in before:
        node.input.append(f"^harm/{last}")


def _renamed(item: str, added: Any, *, is_function: bool) -> str:  # noqa: ANN401 -- protobuf
    if item.startswith("^"):
        return f"^harm/{item[1:]}"
    name, _, port = item.partition(":")
    if not is_function:
        return f"harm/{item}"
    source = next(node for node in added.node if node.name == name)
    output = op_def_registry.get(source.op).output_arg[0].name
    return f"harm/{name}:{output}:{port or 0}"
