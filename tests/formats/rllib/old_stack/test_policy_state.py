"""States of old policies are read as data: what can't give the policy is refused in one line."""

from __future__ import annotations

import base64
import io
import os
import pickle
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from ray import cloudpickle

from policy_server.errors import ModelError
from policy_server.formats import load_policy
from policy_server.formats.known_formats import FORMATS
from policy_server.formats.model_files import files_of_model
from policy_server.formats.rllib.pipelines import array_of_text
from tests.support.library_policies import unzipped

PICKLE = Path("policies/default_policy/policy_state.pkl")


class _Runs:
    """A pickle of it calls `os.system` when it is loaded as code."""

    def __init__(self, command: str) -> None:
        self._command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (self._command,)


def box_text(array: np.ndarray[Any, Any]) -> str:
    """Return an array as RLlib writes those of spaces."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return base64.b64encode(zlib.compress(buffer.getvalue())).decode("ascii")


def npy_text(header: str, numbers: bytes = bytes(8)) -> str:
    """Return an array of any header, as RLlib writes those of spaces."""
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + numbers
    return base64.b64encode(zlib.compress(content)).decode("ascii")


def state_of_policy(**changes: object) -> dict[str, Any]:
    """Return the state of a small policy, as RLlib writes it."""
    model = {"fcnet_hiddens": [2], "fcnet_activation": "tanh"}
    box = {
        "space": "box",
        "shape": (2,),
        "dtype": "<f4",
        "low": box_text(np.full(2, -1, np.float32)),
        "high": box_text(np.ones(2, np.float32)),
    }
    spec = {
        "policy_class": "PPOTorchPolicy",
        "observation_space": {"space": box},
        "action_space": {"space": {"space": "discrete", "n": 2}},
        "config": {"model": model, "normalize_actions": True},
    }
    weights = {
        "_hidden_layers.0._model.0.weight": np.eye(2, dtype=np.float32),
        "_hidden_layers.0._model.0.bias": np.zeros(2, np.float32),
        "_logits._model.0.weight": np.eye(2, dtype=np.float32),
        "_logits._model.0.bias": np.zeros(2, np.float32),
    }
    return {"policy_spec": spec, "weights": weights} | changes


def written(folder: Path, state: object, dump: Callable[[object], bytes] = pickle.dumps) -> Path:
    """Write a state as `export_checkpoint` does, and return the folder."""
    folder.mkdir(exist_ok=True)
    (folder / "policy_state.pkl").write_bytes(dump(state))
    return folder


def refusal_of(folder: Path) -> str:
    """Return the one line that refuses a checkpoint."""
    with pytest.raises(ModelError) as refused:
        load_policy(folder)
    assert "\n" not in refused.value.message
    return refused.value.message


def test_small_state_gives_a_policy(tmp_path: Path) -> None:
    policy = load_policy(written(tmp_path / "policy", state_of_policy()))

    assert policy.signature.family == "categorical(2)"
    assert policy.signature.module is None


def test_code_in_the_settings_is_not_run_and_does_not_matter(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    maze = type("Maze", (), {"__module__": "__main__"})
    state = state_of_policy()
    state["policy_spec"]["config"] |= {
        "env": maze,
        "env_config": {"seed": _Runs(f"touch {mark}"), "inner": maze()},
        "policy_mapping_fn": lambda agent: agent,
    }
    folder = written(tmp_path / "policy", state, cloudpickle.dumps)

    policy = load_policy(folder)

    assert policy.signature.family == "categorical(2)"
    assert not mark.exists()
    cloudpickle.loads((folder / "policy_state.pkl").read_bytes())
    assert mark.exists(), "the pickle does run where it is loaded as code"


@pytest.mark.parametrize(
    ("place", "says"),
    [
        (None, "expected a dictionary, got"),
        ("weights", "weights: expected arrays by name, got"),
        ("policy_spec", "is not a policy's state with its settings"),
    ],
)
def test_state_that_is_code_is_refused_and_not_run(
    tmp_path: Path, place: str | None, says: str
) -> None:
    mark = tmp_path / "ran"
    hostile = _Runs(f"touch {mark}")
    state = hostile if place is None else state_of_policy(**{place: hostile})

    assert says in refusal_of(written(tmp_path / "policy", state))
    assert not mark.exists()


@pytest.mark.parametrize("size", [0, 1, 1000, -1])
def test_truncated_pickle_is_refused(tmp_path: Path, size: int) -> None:
    folder = unzipped("rllib_old", "ppo_discrete.zip", tmp_path)
    (folder / PICKLE).write_bytes((folder / PICKLE).read_bytes()[:size])

    assert f"{PICKLE}: is no pickle that can be read" in refusal_of(folder)


@pytest.mark.parametrize(
    "content", [b"", b"\xc1", msgpack.packb([1])], ids=["empty", "no msgpack", "list"]
)
def test_damaged_msgpack_is_refused(tmp_path: Path, content: bytes) -> None:
    folder = unzipped("rllib_old", "ppo_box.zip", tmp_path)
    (folder / "policy_state.msgpck").write_bytes(content)

    assert "policy_state.msgpck: " in refusal_of(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"weights": {"w": np.array([np.nan])}}, "weights: w: expected finite numbers"),
        ({"weights": {"w": "text"}}, "weights: w: expected finite numbers, got <U4"),
        ({"weights": {"w": [[1, 2], [3]]}}, "weights: w: expected finite numbers, got lists of"),
        ({"weights": {}}, "_hidden_layers.: expected 1 layers by its settings, got 0"),
        ({"connector_configs": {"agent": 3}}, "connector_configs: is no pipeline"),
        (
            {"connector_configs": {"agent": ("P", [("FrameStack", None)])}},
            "the connector FrameStack: changes what the policy sees or does",
        ),
        (
            {"connector_configs": {"action": ("P", [("MyConnector", None)])}},
            "the connector MyConnector: changes what the policy sees or does",
        ),
    ],
    ids=["NaN", "text", "uneven lists", "none", "pipeline", "agent", "action"],
)
def test_state_that_can_not_give_the_policy_is_refused(
    tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    assert says in refusal_of(written(tmp_path / "policy", state_of_policy(**change)))


@pytest.mark.parametrize("low", [np.nan, 5.0])
def test_bounds_without_a_number_between_them_are_refused(tmp_path: Path, low: float) -> None:
    state = state_of_policy()
    box = state["policy_spec"]["observation_space"]["space"]
    box["low"] = box_text(np.full(2, low, np.float32))

    folder = written(tmp_path / "policy", state)

    assert (
        f"observation_space: is no space that can be read: ValueError: its bounds at [0] are {low}"
        in (refusal_of(folder))
    )


HEADER = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,)}"
DAMAGED_BOUNDS = {
    "open quotes": npy_text(HEADER.replace("}", "'" * 3)),
    "an open bracket": npy_text(HEADER.replace(",)", "")),
    "nested brackets": npy_text(HEADER.replace("(2,)", "(" * 3000 + ")" * 3000)),
    "a text as type": npy_text(HEADER.replace("'<f4'", "('<f4',)")),
    "a length beyond any": npy_text(HEADER.replace("2", "9" * 30)),
    "more than there is": npy_text(HEADER.replace("2", "500000000")),
    "a negative length": npy_text(HEADER.replace("2", "-1")),
    "no numbers": npy_text(HEADER.replace("<f4", "<U1")),
    "a header that is cut off": npy_text(HEADER[:20], b""),
    "an archive": base64.b64encode(zlib.compress(b"PK\x03\x04" + bytes(30))).decode(),
    "no base64": "x",
    "nothing": "",
}


@pytest.mark.parametrize("text", DAMAGED_BOUNDS.values(), ids=DAMAGED_BOUNDS)
def test_damaged_bounds_of_a_space_are_refused(tmp_path: Path, text: str) -> None:
    state = state_of_policy()
    state["policy_spec"]["observation_space"]["space"]["low"] = text

    message = refusal_of(written(tmp_path / "policy", state))

    assert "observation_space: is no space that can be read: " in message


@pytest.mark.parametrize(
    ("array", "order"),
    [(np.arange(4.0), "C"), (np.arange(6).reshape(2, 3), "C"), (np.eye(3), "F"), (True, "C")],
    ids=["vector", "matrix", "by column", "one truth value"],
)
def test_array_in_a_text_is_read(array: np.ndarray[Any, Any], order: Any) -> None:  # noqa: ANN401 -- one of NumPy's letters
    found = array_of_text(box_text(np.asarray(array, order=order)))

    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("policy_class", "MyTorchPolicy", "is a MyTorchPolicy, which is not served"),
        ("config", 3, "expected settings, got int"),
        ("action_space", {"space": {"space": "discrete", "n": 3}}, "expected 3 outputs"),
        ("action_space", {"space": {"space": "text"}}, "a space of the kind text"),
        ("observation_space", {"space": {"space": "discrete", "n": 0}}, "no space that can be"),
        ("observation_space", {"space": {"space": "box"}}, "no space that can be read"),
    ],
)
def test_description_that_can_not_give_the_policy_is_refused(
    tmp_path: Path, name: str, value: object, says: str
) -> None:
    state = state_of_policy()
    state["policy_spec"][name] = value

    assert says in refusal_of(written(tmp_path / "policy", state))


@pytest.mark.parametrize(
    ("kind", "settings", "says"),
    [
        ("PPOTorchPolicy", {"model": 3}, "model: expected settings"),
        ("PPOTorchPolicy", {"model": {"fcnet_activation": "wavy"}}, "is wavy, which is not served"),
        ("PPOTorchPolicy", {"model": {"fcnet_hiddens": [3]}}, "expected 3 outputs by settings"),
        ("PPOTorchPolicy", {"model": {"use_lstm": True}}, "its weights don't fit its settings"),
        ("DQNTorchPolicy", {"hiddens": [], "num_atoms": float("inf")}, "don't fit its settings"),
        ("DQNTorchPolicy", {"model": {"use_lstm": True}}, "a DQNTorchPolicy with an LSTM"),
        ("DDPGTorchPolicy", {"exploration_config": {"type": "ParameterNoise"}}, "ParameterNoise"),
        (
            "SACTorchPolicy",
            {"policy_model_config": {}, "_use_beta_distribution": True},
            "draws from a Beta distribution",
        ),
        ("PPOTF1Policy", {}, "_hidden_layers.0._model.0.weight, which are no part of RLlib's"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_settings_that_can_not_give_the_policy_are_refused(
    tmp_path: Path, kind: str, settings: dict[str, Any], says: str
) -> None:
    state = state_of_policy()
    spec = state["policy_spec"]
    spec["policy_class"] = kind
    model = settings.get("model", {})
    both = {**spec["config"]["model"], **model} if isinstance(model, dict) else model
    spec["config"] |= {**settings, "model": both}

    assert says in refusal_of(written(tmp_path / "policy", state))


@pytest.mark.parametrize("name", ["_hidden_layers.0._model.0.bias", "_logits._model.0.bias"])
def test_bias_that_numpy_would_stretch_is_refused(tmp_path: Path, name: str) -> None:
    state = state_of_policy()
    state["weights"][name] = np.ones(1, np.float32)

    message = refusal_of(written(tmp_path / "policy", state))

    assert f"{name} has the shape [1], expected [2]" in message


def test_rlmodule_without_its_class_is_refused(tmp_path: Path) -> None:
    weights = {"encoder.encoder.net.mlp.0.weight": np.eye(2, dtype=np.float32)}

    message = refusal_of(written(tmp_path / "policy", state_of_policy(weights=weights)))

    assert "holds the weights of an RLModule and not its class" in message


def test_own_class_of_a_policy_is_refused_by_name(tmp_path: Path) -> None:
    state = state_of_policy()
    state["policy_spec"]["policy_class"] = type("MyPolicy", (), {"__module__": "__main__"})

    message = refusal_of(written(tmp_path / "policy", state, cloudpickle.dumps))

    assert "MyPolicy, which is not served" in message


def test_weights_of_no_known_network_are_refused(tmp_path: Path) -> None:
    state = state_of_policy()
    state["weights"]["my_layer.weight"] = np.ones((2, 2), np.float32)

    message = refusal_of(written(tmp_path / "policy", state))

    assert "has the weights my_layer.weight, which are no part of RLlib's default" in message


def test_space_of_too_many_parts_is_refused(tmp_path: Path) -> None:
    spaces = [{"space": "discrete", "n": 2} for _ in range(1000)]
    state = state_of_policy()
    state["policy_spec"]["observation_space"] = {"space": {"space": "tuple", "spaces": spaces}}

    message = refusal_of(written(tmp_path / "policy", state))

    assert "observation_space: has more than 1000 parts" in message


def test_files_of_the_old_stack_are_told_from_others(tmp_path: Path) -> None:
    folder = unzipped("rllib_old", "dqn.zip", tmp_path / "whole")
    alone = tmp_path / "alone"
    shutil.copytree(folder / PICKLE.parent, alone)

    for checkpoint in (folder, alone):
        files = files_of_model(checkpoint)
        assert [form.name for form in FORMATS if form.can_read(files)] == ["RLlib checkpoint"]
