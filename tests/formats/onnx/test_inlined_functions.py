"""Functions of an ONNX file, put in the place of their calls."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import helper

from policy_server.formats.known_formats import load_policy
from policy_server.formats.onnx.model_file import read_model
from policy_server.policy import Policy, PolicyInputs
from policy_server.schema import parse_schema
from tests.support.onnx_models import (
    files_in,
    node,
    refused,
    tensor,
    weights,
    write_model,
)

ROWS = np.random.default_rng(9).standard_normal((6, 4)).astype(np.float32)
DISCRETE = parse_schema("parameters: {discrete: True}")


def softmax(logits: NDArray[Any]) -> NDArray[Any]:
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(shares / shares.sum(axis=1, keepdims=True))


def test_functions_are_put_in_the_place_of_their_calls(tmp_path: Path) -> None:
    inner = helper.make_function(
        "own",
        "scaled",
        ["x"],
        ["y"],
        [
            node("Constant", [], ["factor"], value_float=2.0),
            node("Mul", ["x", "factor"], ["product"]),
            _referring("LeakyRelu", "product", "y"),
        ],
        [helper.make_opsetid("", 17)],
        ["alpha"],
    )
    call = node("scaled", ["net"], ["logits"], domain="own", alpha=0.5)
    twice = node("scaled", ["first"], ["net"], domain="own", alpha=0.1)
    path = write_model(
        tmp_path,
        [node("MatMul", ["obs", "w"], ["first"]), twice, call],
        [tensor("obs", ["batch", 4])],
        [tensor("logits", ["batch", 3])],
        {"w": weights(4, 3)},
        functions=[inner],
    )

    model = read_model(files_in(tmp_path))

    assert [item.operator for item in model.nodes] == [
        "MatMul",
        *["Constant", "Mul", "LeakyRelu"] * 2,
    ]
    expected = onnxruntime.InferenceSession(path).run(None, {"obs": ROWS})[0]
    inlined = onnxruntime.InferenceSession(model.proto.SerializeToString())
    np.testing.assert_allclose(inlined.run(None, {"obs": ROWS})[0], expected, atol=1e-6)
    assert load_policy(tmp_path).signature.engine == "numpy"


def _referring(operator: str, source: str, target: str) -> Any:  # noqa: ANN401 -- onnx is untyped
    """Return a node of a function whose attribute is the caller's."""
    made = node(operator, [source], [target])
    made.attribute.append(
        onnx.AttributeProto(name="alpha", ref_attr_name="alpha", type=onnx.AttributeProto.FLOAT)
    )
    return made


def test_functions_that_call_each_other_without_end_are_refused(tmp_path: Path) -> None:
    endless = helper.make_function(
        "own",
        "again",
        ["x"],
        ["y"],
        [node("again", ["x"], ["y"], domain="own")],
        [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)],
    )
    write_model(
        tmp_path,
        [node("again", ["obs"], ["logits"], domain="own")],
        [tensor("obs", ["batch", 3])],
        [tensor("logits", ["batch", 3])],
        functions=[endless],
    )

    assert refused(tmp_path) == "policy.onnx: its functions call each other without end"


def test_functions_without_outputs_that_grow_without_bound_are_refused(tmp_path: Path) -> None:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    functions = []
    for depth in range(25):
        calls = (
            [node(f"f{depth - 1}", [], [], domain="own")] * 2 if depth else [node("Neg", [], [])]
        )
        functions.append(helper.make_function("own", f"f{depth}", [], [], calls, opsets))
    write_model(
        tmp_path,
        [node("f24", [], [], domain="own"), node("Neg", ["obs"], ["logits"])],
        [tensor("obs", ["batch", 3])],
        [tensor("logits", ["batch", 3])],
        functions=functions,
    )

    assert "its functions make more than 100000 nodes" in refused(tmp_path)


def test_functions_that_grow_without_bound_are_refused(tmp_path: Path) -> None:
    """Each calls the one before ten times, so that a few lines are a million operations."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    functions = []
    for depth in range(7):
        name = "Neg" if depth == 0 else f"f{depth - 1}"
        domain = "" if depth == 0 else "own"
        calls = [node(name, [f"x{i}"], [f"x{i + 1}"], domain=domain) for i in range(10)]
        functions.append(helper.make_function("own", f"f{depth}", ["x0"], ["x10"], calls, opsets))
    write_model(
        tmp_path,
        [node("f6", ["obs"], ["logits"], domain="own")],
        [tensor("obs", ["batch", 3])],
        [tensor("logits", ["batch", 3])],
        functions=functions,
    )

    assert "its functions make more than 100000 nodes" in refused(tmp_path)


def function(
    name: str,
    nodes: Sequence[Any],
    *,
    overload: str = "",
    domain: str = "own",
    opset: int = 17,
    outputs: Sequence[str] = ("y",),
) -> Any:  # noqa: ANN401 -- onnx is untyped
    """Return a function of the tensor x."""
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("own", 1)]
    return helper.make_function(
        domain, name, ["x"], list(outputs), list(nodes), opsets, overload=overload
    )


def calling(folder: Path, nodes: Sequence[Any], functions: Sequence[Any]) -> Path:
    """Write a model whose nodes make `logits` of `net`, float32[batch, 3]."""
    path = write_model(
        folder,
        [node("MatMul", ["obs", "w"], ["net"]), *nodes],
        [tensor("obs", ["batch", 4])],
        [tensor("logits", ["batch", 3])],
        {"w": weights(4, 3)},
        functions=functions,
    )
    model = onnx.load(path)
    # The first version with overloads of functions.
    model.ir_version = 10
    onnx.save(model, path)
    return path


def call(name: str, source: str, *targets: str, overload: str = "") -> Any:  # noqa: ANN401 -- onnx is untyped
    made = node(name, [source], targets, domain="own")
    made.overload = overload
    return made


def probabilities_of(policy: Policy) -> NDArray[Any]:
    outputs = policy.infer(PolicyInputs.of(ROWS, is_deterministic=True))
    assert outputs.distribution is not None
    return softmax(outputs.distribution)


def answers_as_onnxruntime(path: Path) -> bool:
    """Return whether the policy is valid, and has the distributions of onnxruntime."""
    onnx.checker.check_model(path, full_check=True)
    expected = onnxruntime.InferenceSession(path).run(None, {"obs": ROWS})[0]
    policy = load_policy(path.parent, DISCRETE)
    return bool(np.allclose(probabilities_of(policy), softmax(expected), atol=1e-5))


@pytest.mark.parametrize("wanted", ["a", "b"])
@pytest.mark.parametrize("order", [1, -1], ids=["in order", "swapped"])
def test_overload_of_a_function_is_the_one_that_is_called(
    wanted: str, order: int, tmp_path: Path
) -> None:
    functions = [
        function("f", [node("Identity", ["x"], ["y"])], overload="a"),
        function("f", [node("Neg", ["x"], ["y"])], overload="b"),
    ]

    path = calling(tmp_path, [call("f", "net", "logits", overload=wanted)], functions[::order])

    assert answers_as_onnxruntime(path)


@pytest.mark.parametrize("taken", ["h/1", "h__1", "h"])
def test_tensor_within_a_function_takes_the_name_of_no_other(taken: str, tmp_path: Path) -> None:
    nodes = [
        node("Neg", ["net"], [taken]),
        call("f", taken, "called"),
        node("Add", ["called", taken], ["logits"]),
    ]
    functions = [function("f", [node("Tanh", ["x"], ["h"]), node("Abs", ["h"], ["y"])])]

    assert answers_as_onnxruntime(calling(tmp_path, nodes, functions))


def test_output_of_a_function_may_be_left_out(tmp_path: Path) -> None:
    inner = [node("Tanh", ["x"], ["h"]), node("Abs", ["h"], ["y"])]
    functions = [function("f", inner, outputs=["h", "y"])]

    assert answers_as_onnxruntime(calling(tmp_path, [call("f", "net", "", "logits")], functions))


def chosen(*, yes: Any, no: Any, result: str) -> list[Any]:  # noqa: ANN401 -- onnx is untyped
    """Return nodes that take one of two operations, each of which writes `q`."""
    graphs = [helper.make_graph([one], one.op_type, [], [tensor("q", None)]) for one in (yes, no)]
    return [
        node("Constant", [], ["zero"], value_float=0.0),
        node("Constant", [], ["one"], value_float=1.0),
        node("Less", ["zero", "one"], ["is_less"]),
        node("If", ["is_less"], [result], then_branch=graphs[0], else_branch=graphs[1]),
    ]


def test_function_is_called_within_a_branch(tmp_path: Path) -> None:
    nodes = chosen(yes=call("f", "net", "q"), no=node("Neg", ["net"], ["q"]), result="logits")
    functions = [function("f", [node("Tanh", ["x"], ["h"]), node("Abs", ["h"], ["y"])])]

    assert answers_as_onnxruntime(calling(tmp_path, nodes, functions))


def test_branch_within_a_function_reads_its_tensors(tmp_path: Path) -> None:
    branches = chosen(yes=node("Abs", ["h"], ["q"]), no=node("Neg", ["h"], ["q"]), result="y")
    functions = [function("f", [node("Tanh", ["x"], ["h"]), *branches])]

    assert answers_as_onnxruntime(calling(tmp_path, [call("f", "net", "logits")], functions))


def test_function_of_another_version_of_the_operators_is_converted(tmp_path: Path) -> None:
    """Until version 12 a softmax was taken over all axes from one on, by default the second."""
    inner = [
        node("Unsqueeze", ["x"], ["cube"], axes=[2]),
        node("Softmax", ["cube"], ["shares"]),
        node("Squeeze", ["shares"], ["y"], axes=[2]),
    ]
    calling(tmp_path, [call("f", "net", "logits")], [function("f", inner, opset=12)])

    found = probabilities_of(load_policy(tmp_path, DISCRETE))

    np.testing.assert_allclose(found, softmax(ROWS @ weights(4, 3)), atol=1e-5)


def test_two_functions_of_one_name_are_refused(tmp_path: Path) -> None:
    functions = [function("f", [node(one, ["x"], ["y"])]) for one in ("Identity", "Neg")]
    calling(tmp_path, [call("f", "net", "logits")], functions)

    assert refused(tmp_path) == (
        "policy.onnx: holds two functions own.f of one overload; export it again"
    )


@pytest.mark.parametrize("domain", ["", "ai.onnx", "ai.onnx.ml", "com.microsoft"])
def test_function_that_redefines_an_operation_is_refused(domain: str, tmp_path: Path) -> None:
    functions = [function("Relu", [node("Neg", ["x"], ["y"])], domain=domain)]
    calling(tmp_path, [node("Relu", ["net"], ["logits"], domain=domain)], functions)

    assert refused(tmp_path) == (
        f"policy.onnx: holds a function 'Relu' of the domain {domain!r}, whose operations are "
        "ONNX's or onnxruntime's own; give it a domain of its own, or export it without functions"
    )


def test_functions_that_make_too_many_bytes_are_refused(tmp_path: Path) -> None:
    large = [node("Constant", [], ["c"], value_floats=[1.0] * 50_000), node("Neg", ["x"], ["y"])]
    calls = [call("f", "net", "logits")]
    functions = [
        function("g", large),
        function("f", [call("g", "x", f"h{number}") for number in range(10_000)]),
    ]
    calling(tmp_path, calls, functions)

    assert "its functions make operations of more than 1073741824 bytes" in refused(tmp_path)


def test_function_that_can_not_be_converted_is_refused(tmp_path: Path) -> None:
    functions = [function("f", [node("Neg", ["x"], ["y"])], opset=99)]
    calling(tmp_path, [call("f", "net", "logits")], functions)

    assert refused(tmp_path) == (
        "policy.onnx: its functions can't be put in the place of their calls: Warning: invalid "
        "version (must be between 1 and 28); export it without functions"
    )
