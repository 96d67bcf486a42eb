"""The names of weights and classes of TensorFlow's policies of RLlib."""

from __future__ import annotations

import time

from policy_server.formats.pickles.spaces import DiscreteSpace
from policy_server.formats.rllib.old_stack.policy_state import OldPolicy
from policy_server.formats.rllib.old_stack.tensorflow_names import with_torch_names


def test_class_of_a_long_name_is_another_at_once() -> None:
    space = DiscreteSpace(2)
    name = "PPOTFPolicy_eager" * 6_000 + "."
    policy = OldPolicy("it", None, name, "", space, space, space, {}, {}, None, None, {})
    began = time.process_time()

    assert with_torch_names(policy) is policy
    assert time.process_time() - began < 1
