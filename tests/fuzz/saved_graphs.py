"""SavedModels whose graph has changes that nobody means."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from tests.fuzz.harmful_graphs import ENDLESS, HARMS, WASTE, with_harm

# The imports above keep TensorFlow's notes back.
from tensorflow.core.protobuf import saved_model_pb2  # isort: skip

__all__ = ["changed_graph"]

_OPERATIONS = [
    *("Identity", "MatMul", "Reshape", "ConcatV2", "Split", "SplitV", "Softmax", "Sub", "Cast"),
    *("Const", "Placeholder", "PlaceholderWithDefault", "NoOp", "VariableV2", "VarHandleOp"),
    *("ReadVariableOp", "RestoreV2", "Assign", "Switch", "Merge", "Enter", "Exit", "While", "If"),
    *("NextIteration", "LoopCond", "StatefulPartitionedCall", "Multinomial", "RandomUniform"),
    *("StridedSlice", "Pack", "Unpack", "Fill", "Range", "Shape", "ArgMax", "Squeeze", "Conv2D"),
    *("TensorListReserve", "TensorListStack", "TensorArrayV3", "SparseToDense", "GatherV2"),
    *("Transpose", "BiasAdd", "FusedBatchNormV3", "TopKV2", "XlaLaunch", "Nothing", ""),
    *("WriteFile", "ReadFile", "Abort", "PyFunc", "EagerPyFunc", "SaveV2", "QueueDequeueV2"),
]
_TYPES = [0, 1, 2, 3, 7, 9, 10, 14, 19, 20, 21, 101, 120, 9999, -1]
_SIZES = [-2, -1, 0, 1, 2, 3, 7, 1 << 16, 1 << 31, 1 << 40, (1 << 62), (1 << 63) - 1]


def changed_graph(content: bytes, choose: random.Random) -> bytes:
    """Return a saved_model.pb with some parts of its graph changed.

    Args:
        content: the file.
        choose: draws the changes.
    """
    if choose.random() < 0.15:
        endless = ENDLESS if choose.random() < 0.1 else {}
        name = choose.choice([*HARMS, *WASTE, *endless])
        return with_harm(content, name, "harm", in_function=choose.random() < 0.5)
    document = saved_model_pb2.SavedModel.FromString(content)
    for _ in range(choose.choice([1, 1, 1, 2, 4, 8])):
        meta = choose.choice(document.meta_graphs)
        choose.choice(_CHANGES)(meta, choose)
    return bytes(document.SerializeToString())


def _nodes(meta: Any, choose: random.Random) -> Any:  # noqa: ANN401 -- protobuf
    functions = [function.node_def for function in meta.graph_def.library.function]
    found = [nodes for nodes in (meta.graph_def.node, *functions) if len(nodes)]
    return choose.choice(found) if choose.random() < 0.6 else found[0]


def _node(meta: Any, choose: random.Random) -> Any:  # noqa: ANN401 -- protobuf
    return choose.choice(_nodes(meta, choose))


def _operation(meta: Any, choose: random.Random) -> None:  # noqa: ANN401 -- protobuf
    _node(meta, choose).op = choose.choice([*_OPERATIONS, _node(meta, choose).op])


def _left_out(meta: Any, choose: random.Random) -> None:  # noqa: ANN401 -- protobuf
    nodes = _nodes(meta, choose)
    del nodes[choose.randrange(len(nodes))]


def _input(meta: Any, choose: random.Random) -> None:  # noqa: ANN401 -- protobuf
    nodes = _nodes(meta, choose)
    node, other = choose.choice(nodes), choose.choice(nodes).name
    new = choose.choice(
        [
            *(other, other, node.name, f"^{other}", f"{other}:{choose.choice([1, 7, -1])}"),
            *("", ":", "^", "nothing", f"{other}:output:0", "\x00"),
        ]
    )
    if node.input and choose.random() < 0.8:
        place = choose.randrange(len(node.input))
        if choose.random() < 0.2:
            del node.input[place:]
        else:
            node.input[place] = new
    else:
        node.input.append(new)


def _name(meta: Any, choose: random.Random) -> None:  # noqa: ANN401 -- protobuf
    nodes = _nodes(meta, choose)
    choose.choice(nodes).name = choose.choice(
        [choose.choice(nodes).name, "", "x" * 5000, "../x", "a b", "^x", "policy_server/rows"]
    )


def _attribute(meta: Any, choose: random.Random) -> None:  # noqa: ANN401 -- protobuf
    node = _node(meta, choose)
    keys = sorted(node.attr)
    if not keys:
        return
    key = choose.choice(keys)
    value = node.attr[key]
    match choose.randrange(7):
        case 0:
            del node.attr[key]
        case 1:
            value.type = max(choose.choice(_TYPES), 0)
        case 2:
            value.i = choose.choice(_SIZES)
        case 3:
            value.s = choose.choice([b"", b"x", b"\xff", b"NHWC", b"VALID", b"a" * 5000])
        case 4:
            _resize(value.shape, choose)
        case 5:
            node.attr[choose.choice(["T", "dtype", "value", "N", "axis", "x"])].CopyFrom(value)
        case _:
            _tensor(value.tensor, choose)


def _constant(meta: Any, choose: random.Random) -> None:  # noqa: ANN401 -- protobuf
    constants = [node for node in _nodes(meta, choose) if node.op == "Const"]
    if constants:
        _tensor(choose.choice(constants).attr["value"].tensor, choose)


def _tensor(tensor: Any, choose: random.Random) -> None:  # noqa: ANN401 -- protobuf
    match choose.randrange(4):
        case 0:
            tensor.dtype = max(choose.choice(_TYPES), 0)
        case 1:
            _resize(tensor.tensor_shape, choose)
        case 2:
            tensor.tensor_content = tensor.tensor_content[: choose.randrange(9)]
        case _:
            tensor.int_val.append(-1)
            tensor.float_val.append(choose.choice([0.0, float("nan"), 1e38]))


def _resize(shape: Any, choose: random.Random) -> None:  # noqa: ANN401 -- protobuf
    if choose.random() < 0.2:
        shape.unknown_rank = not shape.unknown_rank
    if shape.dim and choose.random() < 0.7:
        choose.choice(shape.dim).size = choose.choice(_SIZES)
    else:
        for _ in range(choose.choice([1, 1, 2, 9, 255])):
            shape.dim.add(size=choose.choice(_SIZES))


def _signature(meta: Any, choose: random.Random) -> None:  # noqa: ANN401 -- protobuf
    key = choose.choice(sorted(meta.signature_def) or ["serving_default"])
    if choose.random() < 0.1:
        moved = meta.signature_def[choose.choice(["", "x", "action", "serving_default"])]
        moved.CopyFrom(meta.signature_def[key])
        del meta.signature_def[key]
        return
    signature = meta.signature_def[key]
    side = choose.choice([signature.inputs, signature.outputs])
    if not side:
        return
    name = choose.choice(sorted(side))
    match choose.randrange(6):
        case 0:
            del side[name]
        case 1:
            side[choose.choice(_SIGNATURE_NAMES)].CopyFrom(side[name])
        case 2:
            side[name].dtype = max(choose.choice(_TYPES), 0)
        case 3:
            _resize(side[name].tensor_shape, choose)
        case 4:
            side[name].name = choose.choice(["", ":0", "x", f"{_node(meta, choose).name}:0"])
        case _:
            side[name].name = side[choose.choice(sorted(side))].name


_SIGNATURE_NAMES = [
    *("observations", "obs", "actions_0", "actions_1", "actions_x", "actions", "action_prob"),
    *("action_dist_inputs", "action_logp", "q_values", "vf_preds", "state_in_0", "state_out_0"),
    *("seq_lens", "prev_action", "is_training", "timestep", "", "0/step_type", "0/observation"),
    *("action", "state/x", "1/x", "output_0", "a" * 500, "é\n", "is_exploring", "logits"),
]


def _saver(meta: Any, choose: random.Random) -> None:  # noqa: ANN401 -- protobuf
    saver = meta.saver_def
    field = choose.choice(["filename_tensor_name", "save_tensor_name", "restore_op_name"])
    setattr(saver, field, choose.choice(["", "x", "x:0", _node(meta, choose).name]))
    saver.version = choose.choice([0, 1, 2, 3])


def _function(meta: Any, choose: random.Random) -> None:  # noqa: ANN401 -- protobuf
    functions = meta.graph_def.library.function
    if not functions:
        _graph(meta, choose)
        return
    place = choose.randrange(len(functions))
    one = functions[place]
    match choose.randrange(4):
        case 0:
            del functions[place]
        case 1:
            one.signature.name = choose.choice(functions).signature.name
        case 2:
            calls = [node for node in one.node_def if "f" in node.attr] or list(one.node_def[:1])
            for node in calls[:1]:
                node.attr["f"].func.name = one.signature.name
        case _:
            for key in sorted(one.ret)[:1]:
                one.ret[key] = choose.choice(["", "x", "x:y:0", one.ret[key][:-1] + "9"])


def _graph(meta: Any, choose: random.Random) -> None:  # noqa: ANN401 -- protobuf
    match choose.randrange(4):
        case 0:
            meta.graph_def.versions.producer = choose.choice([-1, 0, 1, 27, 9999, 2**31 - 1])
        case 1:
            meta.graph_def.versions.min_consumer = choose.choice([-1, 0, 9999])
        case 2:
            meta.meta_info_def.tags.append("x")
        case _:
            meta.meta_info_def.ClearField("tags")


_CHANGES: Sequence[Callable[[Any, random.Random], None]] = [
    *[_operation, _input, _attribute] * 3,
    *[_constant, _signature] * 2,
    *[_left_out, _name, _saver, _function, _graph],
]
