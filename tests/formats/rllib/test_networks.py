"""RLlib's default networks in all their forms, held against RLlib's own answers."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from policy_server.errors import ModelError
from policy_server.formats import load_policy
from policy_server.policy import PolicyInputs
from tests.support.library_policies import POLICIES, unzipped

MODULE = Path("learner_group/learner/rl_module/default_policy")
ANSWERS = json.loads((POLICIES / "rllib_modules" / "answers.json").read_text())
FAMILIES = {
    "multidiscrete": "categorical(2) + categorical(3)",
    "tuple": "categorical(3) + normal(2) + categorical(2) + categorical(4)",
    "tuple_of_one": "categorical(3)",
    "separate_value": "categorical(4)",
    "free_log_std": "normal(2)",
    "clipped_log_std": "normal(2)",
    "layer_norm": "categorical(4)",
    "head_hiddens": "categorical(4)",
    "linear": "categorical(4)",
    "dataclass": "categorical(4)",
    "dqn_plain": "greedy over categorical(3)",
    "dqn_atoms": "greedy over categorical(3)",
    "dqn_dueling_atoms": "greedy over categorical(3)",
}


@pytest.mark.parametrize(("name", "family"), FAMILIES.items(), ids=FAMILIES)
def test_module_answers_as_rllib(tmp_path: Path, name: str, family: str) -> None:
    expected = ANSWERS[name]
    rows = np.array(expected["raw"], np.float32)
    policy = load_policy(unzipped("rllib_modules", f"{name}.zip", tmp_path))
    asked = replace(PolicyInputs.of(rows), is_deterministic=np.ones(len(rows), np.bool_))

    answers = policy.infer(asked)

    assert len(rows) == 8
    assert policy.signature.family == family
    assert policy.signature.is_tuple_of_one == (name == "tuple_of_one")
    assert answers.distribution == pytest.approx(
        np.array(expected["action_dist_inputs"]), abs=1e-5, rel=1e-5
    )
    assert answers.actions == pytest.approx(
        np.array(expected["deterministic_action"]), abs=1e-5, rel=1e-5
    )


def test_every_module_is_held_against_its_answers() -> None:
    assert set(FAMILIES) == set(ANSWERS)


def test_actions_of_a_tuple_are_those_of_the_environment(tmp_path: Path) -> None:
    policy = load_policy(unzipped("rllib_modules", "tuple.zip", tmp_path))

    outputs = policy.signature.action_outputs

    assert [(item.is_integer, item.columns, item.is_vector) for item in outputs] == [
        (True, 1, False),
        (False, 2, True),
        (True, 2, True),
    ]


@pytest.mark.parametrize(
    ("known", "other", "says"),
    [
        (b"\x8c\x03ELU", b"\x8c\x03GLU", "fcnet_activation: is GLU"),
        (b"K\x08K\x06e", b"K\x08K\x07e", "expected layers of the shapes [(8, 3), (7, 8)]"),
    ],
    ids=["activation", "layers"],
)
def test_settings_that_are_not_the_networks_are_refused(
    tmp_path: Path, known: bytes, other: bytes, says: str
) -> None:
    folder = unzipped("rllib_modules", "clipped_log_std.zip", tmp_path)
    path = folder / "class_and_ctor_args.pkl"
    content = path.read_bytes()
    assert content.count(known) == 1
    path.write_bytes(content.replace(known, other))

    with pytest.raises(ModelError) as refused:
        load_policy(folder)

    assert says in refused.value.message


@pytest.mark.parametrize(
    ("known", "other", "says"),
    [
        (b"conv_filters", b"conv_feelers", "expected 2 convolutions of the shapes [(4, 2, 5, 5)"),
        (b"\x8c\x04tanh", b"\x8c\x04tang", "conv_activation: is tang"),
    ],
    ids=["layers", "activation"],
)
def test_image_policy_that_is_not_rllibs_is_refused(
    tmp_path: Path, known: bytes, other: bytes, says: str
) -> None:
    folder = unzipped("rllib_checkpoints", "dqn_cnn.zip", tmp_path)
    path = folder / MODULE / "class_and_ctor_args.pkl"
    content = path.read_bytes()
    assert known in content
    path.write_bytes(content.replace(known, other))

    with pytest.raises(ModelError) as refused:
        load_policy(folder)

    assert says in refused.value.message


def test_weights_that_no_layer_takes_are_refused(tmp_path: Path) -> None:
    folder = unzipped("rllib_checkpoints", "ppo_cnn_valid.zip", tmp_path)
    path = folder / MODULE / "module_state.pkl"
    state = pickle.loads(path.read_bytes())  # noqa: S301 -- the test's own file
    state["pi.gate.weight"] = np.ones((2, 2), np.float32)
    path.write_bytes(pickle.dumps(state))

    with pytest.raises(ModelError, match=r"has the weights pi\.gate\.weight"):
        load_policy(folder)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("pi.net.mlp.0.weight", "pi: expected layers of the shapes"),
        ("encoder.actor_encoder.lstm.weight_ih_l0", "its weights don't fit each other: KeyError"),
        ("encoder.actor_encoder.lstm.weight_hh_l0", "use_lstm is True, and"),
    ],
)
def test_missing_weights_are_refused(tmp_path: Path, name: str, says: str) -> None:
    folder = unzipped("rllib_checkpoints", "ppo_lstm_box.zip", tmp_path)
    path = folder / MODULE / "module_state.pkl"
    state = pickle.loads(path.read_bytes())  # noqa: S301 -- the test's own file
    del state[name]
    path.write_bytes(pickle.dumps(state))

    with pytest.raises(ModelError) as refused:
        load_policy(folder)

    assert says in refused.value.message


@pytest.mark.parametrize(
    ("name", "stretched"),
    [
        ("free_log_std", ["pi.log_std"]),
        ("layer_norm", ["encoder.encoder.net.mlp.0.bias"]),
        ("layer_norm", ["encoder.encoder.net.mlp.1.weight", "encoder.encoder.net.mlp.1.bias"]),
    ],
    ids=["deviation", "bias", "LayerNorm"],
)
def test_weights_that_numpy_would_stretch_are_refused(
    tmp_path: Path, name: str, stretched: list[str]
) -> None:
    folder = unzipped("rllib_modules", f"{name}.zip", tmp_path)
    path = folder / "module_state.pkl"
    state = pickle.loads(path.read_bytes())  # noqa: S301 -- the test's own file
    path.write_bytes(pickle.dumps({**state, **{key: state[key][:1] for key in stretched}}))

    with pytest.raises(ModelError, match="its weights don't fit each other: ValueError"):
        load_policy(folder)
