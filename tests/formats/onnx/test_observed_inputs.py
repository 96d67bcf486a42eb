"""Several inputs of a graph, held against the names of schema.yaml's observations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from policy_server.errors import SchemaError
from policy_server.formats.known_formats import load_policy
from policy_server.policy import Policy, PolicyInputs
from policy_server.schema import parse_schema
from tests.support.onnx_models import node, tensor, weights, write_model

ROWS = np.random.default_rng(9).standard_normal((6, 5)).astype(np.float32)
POS = "  pos: {type: 'List[float]', min_items: 2, max_items: 2}\n"
VEL = "  vel: {type: 'List[float]', min_items: 3, max_items: 3}\n"
MASK = "  action_mask: {type: 'List[int]', min_items: 2, max_items: 2}\n"


def two_inputs(folder: Path, *, has_mask: bool = False) -> Path:
    """Write a graph of the inputs `vel` and `pos`, and of a mask where that is wished for."""
    forbid = [
        node("Cast", ["action_mask"], ["allowed"], to=9),
        node("Where", ["allowed", "net", "low"], ["logits"]),
    ]
    last = "net" if has_mask else "logits"
    return write_model(
        folder,
        [
            node("Concat", ["vel", "pos"], ["x"], axis=1),
            node("MatMul", ["x", "w"], [last]),
            *(forbid if has_mask else []),
        ],
        [
            tensor("vel", ["batch", 3]),
            *([tensor("action_mask", ["batch", 2])] if has_mask else []),
            tensor("pos", ["batch", 2]),
        ],
        [tensor("logits", ["batch", 2])],
        {"w": weights(5, 2), "low": np.array(-1e8, np.float32)},
    )


def load(folder: Path, *observations: str) -> Policy:
    return load_policy(folder, parse_schema(f"observations:\n{''.join(observations)}"))


def test_inputs_follow_the_order_of_schemas_names(tmp_path: Path) -> None:
    path = two_inputs(tmp_path)

    policy = load(tmp_path, POS, VEL)

    outputs = policy.infer(PolicyInputs.of(ROWS, is_deterministic=True))
    feeds = {"pos": ROWS[:, :2], "vel": ROWS[:, 2:]}
    (logits,) = onnxruntime.InferenceSession(path).run(["logits"], feeds)
    assert outputs.distribution is not None
    np.testing.assert_allclose(outputs.distribution, logits, atol=1e-6)
    assert "an observation is the inputs pos, vel, one after another" in policy.signature.findings


def test_mask_among_schemas_names_does_not_hide_the_order(tmp_path: Path) -> None:
    two_inputs(tmp_path, has_mask=True)

    policy = load(tmp_path, MASK, POS, VEL)

    assert "an observation is the inputs pos, vel, one after another" in policy.signature.findings


def test_inputs_of_other_names_keep_the_graphs_order(tmp_path: Path) -> None:
    two_inputs(tmp_path)

    policy = load(tmp_path, POS.replace("pos", "a"), VEL.replace("vel", "b"))

    assert "an observation is the inputs vel, pos, one after another" in policy.signature.findings


@pytest.mark.parametrize(
    ("observations", "message"),
    [
        pytest.param(
            (POS.replace("2", "3"), VEL.replace("3", "2")),
            r"observations.vel: begins at number 3 of an observation, the input of policy.onnx at "
            r"number 2; give each observation its input's size, and list them as pos \(2\), vel "
            r"\(3\)",
            id="other sizes",
        ),
        pytest.param(
            (POS, VEL.replace("vel", "speed")),
            r"observations.pos: begins at number 0 of an observation, the input of policy.onnx at "
            r"number 3; give each observation its input's size, and list them as vel \(3\), pos "
            r"\(2\)",
            id="one name in another place",
        ),
    ],
)
def test_name_of_an_input_in_another_place_is_refused(
    observations: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    two_inputs(tmp_path)

    with pytest.raises(SchemaError, match=message):
        load(tmp_path, *observations)
