"""Walks through graphs that have more paths than tensors, or very long ones."""

from __future__ import annotations

import itertools

import numpy as np

from policy_server.formats.onnx.graph_view import GraphView
from policy_server.formats.onnx.kept_bounds import KeptBounds
from policy_server.formats.onnx.model_file import Node, OnnxModel
from policy_server.formats.onnx.random_nodes import RandomNodes
from policy_server.policy import SignatureTensor

# A walk that takes each path of them would never end.
DOUBLINGS = 100
# More than Python's calls may be nested.
LONG = 3000


def model_of(*nodes: Node) -> OnnxModel:
    observed = SignatureTensor("obs", "float32", (None, 2))
    constants = {"one": np.array(1, np.float32)}
    return OnnxModel("policy.onnx", 17, "", {}, (observed,), (), nodes, constants, None)


def view_of(model: OnnxModel) -> GraphView:
    return GraphView(model, lambda _: (1, 2), lambda _: False, RandomNodes(model, {}))


def doubled(first: str, count: int = DOUBLINGS) -> list[Node]:
    """Return a tensor that is joined with itself again and again, as x0, x1 ..."""
    names = [first, *(f"x{place}" for place in range(count))]
    return [
        Node("Concat", (before, before), (after,), {"axis": 1})
        for before, after in itertools.pairwise(names)
    ]


def test_tensor_joined_with_itself_again_and_again_is_no_action() -> None:
    softmax = Node("Softmax", ("obs",), ("p",), {})
    log = Node("Log", ("p",), ("l",), {})
    view = view_of(model_of(softmax, log, *doubled("p")))
    logs = view_of(model_of(softmax, log, *doubled("l")))
    last = f"x{DOUBLINGS - 1}"

    assert view.leaves(last, "Softmax") is None
    assert view.joined(last, "Softmax") == ()
    assert logs.softmax_inputs(last) == ()


def test_few_joined_tensors_are_read_in_order() -> None:
    softmax = Node("Softmax", ("obs",), ("p",), {})
    log = Node("Log", ("p",), ("l",), {})

    assert len(view_of(model_of(softmax, *doubled("p", 3))).leaves("x2", "Softmax") or ()) == 8
    assert view_of(model_of(softmax, log, *doubled("l", 2))).softmax_inputs("x1") == ("obs",) * 4


def test_long_tails_and_nestings_are_followed() -> None:
    tails = [Node("Tanh", ("obs",), ("t0",), {})]
    tails += [Node("Add", (f"t{n}", "one"), (f"t{n + 1}",), {}) for n in range(LONG)]
    nested = [Node("Softmax", ("obs",), ("c0",), {})]
    nested += [Node("Concat", (f"c{n}",), (f"c{n + 1}",), {}) for n in range(LONG)]
    model = model_of(*tails, *nested)
    view = view_of(model)

    part = KeptBounds(model, view, lambda _: np.zeros((1, 2))).part(f"t{LONG}", 2)

    assert part.bounds is not None
    assert (part.bounds.low.tolist(), part.bounds.high.tolist()) == ([LONG - 1], [LONG + 1])
    assert view.ending(f"t{LONG}") == "tanh"
    assert len(view.leaves(f"c{LONG}", "Softmax") or ()) == 1


def test_bounds_of_numbers_that_are_changed_one_after_the_other_are_found_once() -> None:
    # Of each one, the rest before it is taken, itself, and the rest behind it.
    count = 18
    nodes = [Node("Tanh", ("obs",), ("c0",), {})]
    for place in range(count):
        before = f"c{place}"
        pieces = [f"{name}{place}" for name in ("p", "q")]
        for start, piece in enumerate(pieces):
            sides = {"starts": [start], "ends": [start + 1], "axes": [1]}
            nodes.append(Node("Slice", (before,), (piece,), sides))
        nodes.append(Node("Concat", tuple(pieces) * 2, (f"d{place}",), {"axis": 1}))
        sides = {"starts": [0], "ends": [2], "axes": [1]}
        nodes.append(Node("Slice", (f"d{place}",), (f"c{place + 1}",), sides))
    model = model_of(*nodes)
    widths = {"p": 1, "q": 1, "d": 4}
    view = GraphView(
        model, lambda name: (1, widths.get(name[0], 2)), lambda _: False, RandomNodes(model, {})
    )

    part = KeptBounds(model, view, lambda _: np.zeros((1, 2))).part(f"c{count}", 2)

    assert part.bounds is not None
    assert (part.bounds.low.tolist(), part.bounds.high.tolist()) == ([-1, -1], [1, 1])
