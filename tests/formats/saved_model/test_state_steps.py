"""Policies with memory: the state after a step, held against RLlib's own episodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
import tensorflow as tf

from policy_server.formats.saved_model import graph
from policy_server.formats.saved_model.state_steps import Memory, describe_memory, find_memory
from policy_server.policy import Policy, PolicyInputs, SignatureTensor, StateTensor
from policy_server.settings import Engine
from tests.support.folders import ROOT
from tests.support.hand_built import V1Policy, load_policy, observations

EPISODES = ROOT / "tests" / "data" / "sequences"
NAMES = ("ray077_lstm_previous", "ray201_attention")
ENGINES: tuple[Engine, ...] = ("numpy", "tensorflow")
TOLERANCE = 1e-5
v1 = tf.compat.v1


@cache
def episodes(name: str) -> Mapping[str, Any]:
    with np.load(EPISODES / name / "episodes.npz") as arrays:
        return dict(arrays)


@cache
def loaded(name: str, engine: Engine) -> Policy:
    """Return a policy of RLlib's, loaded once: the state of an episode is its asker's."""
    with TemporaryDirectory() as folder:
        ZipFile(EPISODES / name / "saved_model.zip").extractall(folder)
        return load_policy(Path(folder), engine=engine)


def with_previous(policy: Policy, state: Any, action: Any, reward: Any) -> Any:  # noqa: ANN401 -- arrays
    """Write the previous action and reward where a state has places for them."""
    state, first = state.copy(), 0
    for tensor in policy.signature.memory:
        columns = slice(first, first + tensor.size)
        if tensor.role == "previous_action":
            state[:, columns] = action
        if tensor.role == "previous_reward":
            state[:, columns] = reward[:, None]
        first = columns.stop
    return state


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", NAMES)
def test_every_step_of_an_episode_is_rllibs(name: str, engine: Engine) -> None:
    policy, known = loaded(name, engine), episodes(name)
    rows, steps = known["distribution"].shape[:2]
    state = np.zeros((rows, policy.signature.memory_width), np.float32)

    for step in range(steps):
        at = (known[key][:, step] for key in ("previous_action", "previous_reward"))
        outputs = policy.infer(
            PolicyInputs.of(known["observations"][:, step], state=with_previous(policy, state, *at))
        )
        assert outputs.distribution == pytest.approx(known["distribution"][:, step], abs=TOLERANCE)
        assert outputs.state is not None
        state = outputs.state

    assert policy.signature.engine == engine


@pytest.mark.parametrize("name", NAMES)
def test_episodes_that_share_a_batch_at_different_steps_stay_apart(name: str) -> None:
    policy, known = loaded(name, "numpy"), episodes(name)
    episode = np.arange(64) % len(known["observations"])
    begins = np.arange(64)
    state = np.zeros((64, policy.signature.memory_width), np.float32)

    for tick in range(100):
        step = np.maximum(tick - begins, 0)
        state[tick <= begins] = 0
        at = (known[key][episode, step] for key in ("previous_action", "previous_reward"))
        outputs = policy.infer(
            PolicyInputs.of(
                known["observations"][episode, step], state=with_previous(policy, state, *at)
            )
        )
        expected = known["distribution"][episode, step]
        assert outputs.distribution == pytest.approx(expected, abs=TOLERANCE)
        assert outputs.state is not None
        state = outputs.state.copy()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", NAMES)
def test_answer_without_a_state_is_that_of_the_zero_state(name: str, engine: Engine) -> None:
    policy, known = loaded(name, engine), episodes(name)
    rows = known["observations"][:, 5]
    zeros = np.zeros((len(rows), policy.signature.memory_width), np.float32)

    plain = policy.infer(PolicyInputs.of(rows))
    first = policy.infer(PolicyInputs.of(rows, state=zeros))

    np.testing.assert_array_equal(plain.distribution, first.distribution)
    assert plain.state is None
    assert first.state is not None
    assert first.state.any()


def test_roles_tell_who_writes_each_tensor_of_the_memory() -> None:
    old = loaded("ray077_lstm_previous", "numpy").signature.memory
    new = loaded("ray201_attention", "numpy").signature.memory

    assert [(item.shape, item.role) for item in old] == [
        ((8,), "state"),
        ((8,), "state"),
        ((3,), "previous_action"),
        ((), "previous_reward"),
    ]
    assert [(item.shape, item.role) for item in new] == [((5, 16), "state")] * 2


def test_network_without_recurrence_may_take_the_previous_action(tmp_path: Path) -> None:
    built = V1Policy(inputs=("prev_action",))
    policy = load_policy(built.save(tmp_path / "m"))
    rows = observations().astype(np.float32)
    state = (np.arange(len(rows)) % 3).astype(np.float32)[:, None]

    outputs = policy.infer(PolicyInputs.of(rows, state=state))

    assert policy.signature.memory == (StateTensor("prev_action", (), "previous_action"),)
    assert policy.signature.is_proved, policy.signature.findings
    assert outputs.distribution == pytest.approx(built.expected_inputs(rows) + state, abs=1e-5)


# (outputs by name, from the inputs by name); all inputs are float32[B, 2].
Build = Callable[[Mapping[str, Any]], Mapping[str, Any]]


def memory_of(build: Build, *names: str) -> Memory:
    """Return the memory of a graph whose inputs and outputs have these names."""
    with tf.Graph().as_default() as built:
        rows = v1.placeholder("float32", [None, 2], name="rows")
        inputs = {name: v1.placeholder("float32", [None, 2], name=name) for name in names}
        outputs = build(inputs | {"rows": rows})
    tensors = {
        item.name: SignatureTensor(name, "float32", (None, *item.shape[1:]))
        for name, item in outputs.items()
    }
    return find_memory(
        built.as_graph_def(),
        states={f"{name}:0": SignatureTensor(name, "float32", (None, 2)) for name in names},
        previous={},
        outputs=tensors,
        results=(),
        filled=("rows:0", *(f"{name}:0" for name in names)),
    )


def looped(begun: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the results of a loop of one turn that swaps nothing but changes everything."""
    v1.disable_control_flow_v2()
    _, *found = v1.while_loop(
        lambda turn, *_: turn < 1,
        lambda turn, *values: (turn + 1, *(value * 2 for value in values)),
        (tf.constant(0), *begun),
    )
    return tuple(found)


def test_result_of_a_loop_belongs_to_the_input_that_it_begins_with() -> None:
    def build(given: Mapping[str, Any]) -> Mapping[str, Any]:
        second, first = looped((given["b"], given["a"]))
        return {"x": second, "y": first}

    memory = memory_of(build, "a", "b")

    assert [(item.name, item.shape) for item in memory.tensors] == [("a", (2,)), ("b", (2,))]
    assert memory.feeds == ("a:0", "b:0")
    assert memory.after is not None
    assert memory.columns == {"a:0": slice(0, 2), "b:0": slice(2, 4)}


def test_numbers_in_the_names_tell_which_belong_together() -> None:
    memory = memory_of(
        lambda given: {
            "state_out_1": given["state_in_0"] * 2,
            "state_out_0": given["state_in_1"] * 3,
        },
        "state_in_0",
        "state_in_1",
    )

    assert memory.problem == ""
    assert memory.width == 4


@pytest.mark.parametrize(
    ("build", "names", "problem"),
    [
        (
            lambda given: {"x": given["a"] + 1, "y": given["b"] + 1},
            ("a", "b"),
            "no output shows to be 'a' after a step",
        ),
        (lambda _: {}, ("a",), "no output shows to be 'a' after a step"),
        (
            lambda given: {"x": given["a"] + v1.placeholder("float32", [None, 2], name="other")},
            ("a",),
            "it needs the input 'other:0', which its actions don't",
        ),
    ],
    ids=["two-alike", "no-output", "unknown-input"],
)
def test_state_that_the_graph_does_not_tell_is_not_guessed(
    build: Build, names: tuple[str, ...], problem: str
) -> None:
    memory = memory_of(build, *names)

    assert (memory.tensors, memory.after, memory.problem) == ((), None, problem)
    assert describe_memory(memory) == [
        "recurrent: every answer starts from the zero state, since its state can't be followed: "
        f"{problem}"
    ]


def test_input_whose_size_alone_is_read_is_no_memory(tmp_path: Path) -> None:
    def sized(rows: Any, outputs: Any) -> Any:  # noqa: ANN401 -- TensorFlow is untyped
        reward = rows.graph.get_tensor_by_name("policy/prev_reward:0")
        return outputs + tf.zeros([tf.shape(reward)[0], 1])

    folder = V1Policy(inputs=("prev_reward",), network=sized).save(tmp_path / "m")

    loaded = graph.load_graph(folder)

    assert [item.name for item in loaded.feeds.values()] == ["prev_reward"]
    assert loaded.memory == Memory()
