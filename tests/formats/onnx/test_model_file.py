"""Reading an .onnx file: its data beside it, its functions, and files made to harm."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from policy_server.errors import ModelError
from policy_server.formats.known_formats import load_policy
from policy_server.formats.onnx.model_file import read_model
from tests.support.onnx_models import (
    actor,
    files_in,
    node,
    refused,
    tensor,
    weights,
    write_model,
)

ROWS = np.random.default_rng(9).standard_normal((6, 4)).astype(np.float32)


def with_external_data(folder: Path) -> Any:  # noqa: ANN401 -- onnx is untyped
    """Write a model whose weights lie beside it, and return its message without them."""
    path = actor(folder)
    model = onnx.load(path)
    onnx.save(
        model, path, save_as_external_data=True, location="policy.onnx.data", size_threshold=0
    )
    return onnx.load(path, load_external_data=False)


def test_weights_beside_the_file_are_read(tmp_path: Path) -> None:
    with_external_data(tmp_path)

    model = read_model(files_in(tmp_path))

    np.testing.assert_array_equal(model.constants["w0"], weights(4, 8))


def test_weights_beside_the_file_reach_the_runtime(tmp_path: Path) -> None:
    with_external_data(tmp_path)

    assert "equal to onnxruntime" in load_policy(tmp_path).signature.engine_reason


def test_place_of_weights_that_is_no_text_is_refused(tmp_path: Path) -> None:
    content = with_external_data(tmp_path).SerializeToString()
    (tmp_path / "policy.onnx").write_bytes(
        content.replace(b"policy.onnx.data", b"policy\xff" * 2 + b"xx")
    )

    assert refused(tmp_path) == (
        "policy.onnx: is damaged: the place of its weights is no text; export it again"
    )


def test_weights_of_more_bytes_than_memory_are_refused(tmp_path: Path) -> None:
    model = with_external_data(tmp_path)
    for item in model.graph.initializer:
        del item.external_data[1:]
        item.external_data.add(key="length", value=str(1 << 50))
    (tmp_path / "policy.onnx").write_bytes(model.SerializeToString())

    assert "ends before the weights" in refused(tmp_path)


def test_weights_that_share_their_numbers_many_times_are_refused(tmp_path: Path) -> None:
    model = with_external_data(tmp_path)
    with (tmp_path / "policy.onnx.data").open("ab") as data:
        data.write(bytes(1_000_000))
    for number in range(60):
        again = model.graph.initializer.add()
        again.CopyFrom(model.graph.initializer[0])
        again.name, again.dims[:] = f"again{number}", [250_000]
        del again.external_data[1:]
        again.external_data.add(key="length", value="1000000")
    (tmp_path / "policy.onnx").write_bytes(model.SerializeToString())

    assert "takes the same numbers for many of its weights" in refused(tmp_path)


@pytest.mark.parametrize(
    "location", ["../policy.onnx.data", "/etc/passwd", "a/../../b", "", "..\\x"], ids=str
)
def test_weights_outside_the_folder_are_refused(location: str, tmp_path: Path) -> None:
    model = with_external_data(tmp_path)
    for item in model.graph.initializer:
        item.external_data[0].value = location
    (tmp_path / "policy.onnx").write_bytes(model.SerializeToString())

    message = refused(tmp_path)

    assert message == (
        f"policy.onnx: names {location!r} as the file of its weights, which lies outside its "
        "folder; export it again"
    )


def test_weights_behind_a_link_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "policy"
    folder.mkdir()
    with_external_data(folder)
    data = folder / "policy.onnx.data"
    os.rename(data, tmp_path / "elsewhere")  # noqa: PTH104 -- as a person would
    data.symlink_to(tmp_path / "elsewhere")

    assert "policy.onnx.data is a link out of its folder" in refused(folder)


def test_weights_that_end_early_are_refused(tmp_path: Path) -> None:
    with_external_data(tmp_path)
    data = tmp_path / "policy.onnx.data"
    data.write_bytes(data.read_bytes()[:-8])

    assert "policy.onnx.data ends before the weights 'b1'; copy both files again" in refused(
        tmp_path
    )


def shaped(model: Any, *dims: int) -> None:  # noqa: ANN401 -- onnx is untyped
    model.graph.initializer[0].dims[:] = dims


def entered(model: Any, key: str, value: str) -> None:  # noqa: ANN401 -- onnx is untyped
    entries = [item for item in model.graph.initializer[0].external_data if item.key == key]
    entries[0].value = value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: shaped(m, 10**9, 10**9), "is damaged"),
        (lambda m: shaped(m, -4, 8), "has the shape (-4, 8)"),
        (lambda m: shaped(m, 3, 8), "is damaged"),
        (lambda m: entered(m, "offset", "-1"), "can't read policy.onnx.data"),
        (lambda m: entered(m, "offset", "x"), "can't read policy.onnx.data"),
        (lambda m: entered(m, "length", str(2**70)), "policy.onnx"),
        (lambda m: entered(m, "offset", str(2**70)), "policy.onnx"),
    ],
    ids=["huge", "negative", "other shape", "before", "no number", "long", "far"],
)
def test_weights_of_another_size_are_refused(
    change: Callable[[Any], None], message: str, tmp_path: Path
) -> None:
    model = with_external_data(tmp_path)
    change(model)
    (tmp_path / "policy.onnx").write_bytes(model.SerializeToString())

    assert message in refused(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "policy.onnx: is no whole ONNX model: it has no output; export it again"),
        (b"\x08\x08garbage", "policy.onnx: is no whole ONNX model; copy or export it again"),
    ],
    ids=["empty", "garbage"],
)
def test_file_that_is_no_model_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "policy.onnx").write_bytes(content)

    assert refused(tmp_path) == message


def test_file_that_is_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = actor(tmp_path)
    content = path.read_bytes()

    for length in range(0, len(content), 37):
        path.write_bytes(content[:length])
        message = refused(tmp_path)
        assert message.startswith("policy.onnx"), length


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([node("Own", ["obs"], ["logits"], domain="my.ops")], "holds the operation my.ops.Own"),
        ([node("Neg", ["nothing"], ["logits"])], "its Neg reads 'nothing', which nothing before"),
        (
            [node("Neg", ["b"], ["a"]), node("Neg", ["a"], ["b"]), node("Neg", ["b"], ["logits"])],
            "its Neg reads 'b', which nothing before it gives",
        ),
        ([node("Nonsense", ["obs"], ["logits"])], "can't be computed"),
        (
            [
                node("Constant", [], ["shape"], value_ints=[10**6, 10**6]),
                node("ConstantOfShape", ["shape"], ["big"]),
                node("ReduceSum", ["big"], ["sum"], keepdims=0),
                node("Add", ["obs", "sum"], ["logits"]),
            ],
            "makes a tensor of more than 50000000 numbers",
        ),
    ],
    ids=["own operation", "dangling", "cycle", "unknown", "huge"],
)
def test_graph_that_can_not_be_run_is_refused(
    nodes: list[Any], message: str, tmp_path: Path
) -> None:
    write_model(tmp_path, nodes, [tensor("obs", ["batch", 3])], [tensor("logits", ["batch", 3])])

    assert message in refused(tmp_path)


def test_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = actor(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"hidden", b"hid\xffen"))

    assert refused(tmp_path) == (
        "policy.onnx: is damaged: a name in it is no text; export it again"
    )


def test_loop_is_refused(tmp_path: Path) -> None:
    body = helper.make_graph(
        [node("Identity", ["go"], ["go_out"]), node("Neg", ["x"], ["x_out"])],
        "body",
        [tensor("turn", [], "int64"), tensor("go", [], "bool"), tensor("x", None)],
        [tensor("go_out", [], "bool"), tensor("x_out", None)],
    )
    write_model(
        tmp_path,
        [node("Loop", ["turns", "", "obs"], ["logits"], body=body)],
        [tensor("obs", ["batch", 3])],
        [tensor("logits", ["batch", 3])],
        {"turns": np.array(2**60)},
    )

    assert refused(tmp_path) == (
        "policy.onnx: holds a Loop, whose turns are not bounded; export the network for one step, "
        "without a loop"
    )


def test_operators_of_an_unknown_version_are_refused(tmp_path: Path) -> None:
    path = actor(tmp_path)
    model = onnx.load(path)
    model.opset_import[0].version = 6
    onnx.save(model, path)

    assert refused(tmp_path) == (
        "policy.onnx: needs version 6 of ONNX's operators, expected 7 to 26; export it with "
        "opset_version=17"
    )


def test_two_models_are_refused(tmp_path: Path) -> None:
    actor(tmp_path)
    (tmp_path / "critic.onnx").write_bytes((tmp_path / "policy.onnx").read_bytes())

    with pytest.raises(ModelError, match=r"lies beside policy\.onnx, expected one \.onnx file"):
        read_model(dict(sorted(files_in(tmp_path).items())))
