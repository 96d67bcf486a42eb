"""RLModules that are served by their classes, and the observations that their networks take."""

from __future__ import annotations

import numpy as np
import pytest

from policy_server.errors import ModelError
from policy_server.formats.pickles.spaces import BoxSpace, DictSpace, DiscreteSpace, Space
from policy_server.formats.rllib.checkpoint import RlModule
from policy_server.formats.rllib.module_kinds import kind_of, observation_shape


def box(*shape: int, dtype: str = "float32") -> BoxSpace:
    return BoxSpace(shape, dtype, np.zeros(shape), np.ones(shape))


def module_of(path: str = "", space: Space | None = None) -> RlModule:
    """Return an RLModule without weights."""
    return RlModule("it", "left", path, space or box(1), DiscreteSpace(2), {}, {}, "2.50.0")


@pytest.mark.parametrize(
    ("path", "head"),
    [
        ("ppo.torch.ppo_torch_rl_module.PPOTorchRLModule", "pi"),
        ("ppo.torch.default_ppo_torch_rl_module.DefaultPPOTorchRLModule", "pi"),
        ("appo.torch.appo_torch_rl_module.APPOTorchRLModule", "pi"),
        ("sac.torch.sac_torch_rl_module.SACTorchRLModule", "pi"),
        ("cql.torch.default_cql_torch_rl_module.DefaultCQLTorchRLModule", "pi"),
        ("iql.torch.default_iql_torch_rl_module.DefaultIQLTorchRLModule", "pi"),
        ("tqc.torch.default_tqc_torch_rl_module.DefaultTQCTorchRLModule", "pi"),
        ("bc.torch.default_bc_torch_rl_module.DefaultBCTorchRLModule", "_pi_head"),
        ("dqn.torch.dqn_rainbow_torch_rl_module.DQNRainbowTorchRLModule", "af"),
    ],
)
def test_classes_of_every_version_are_known(path: str, head: str) -> None:
    assert kind_of(module_of(f"ray.rllib.algorithms.{path}")).head == head


@pytest.mark.parametrize(
    "path",
    [
        "ray.rllib.algorithms.dreamerv3.torch.dreamerv3_torch_rl_module.DreamerV3TorchRLModule",
        "ray.rllib.examples.rl_modules.classes.tiny_atari_cnn_rlm.TinyAtariCNN",
    ],
)
def test_other_classes_of_rllib_are_refused_by_name(path: str) -> None:
    with pytest.raises(ModelError) as refused:
        kind_of(module_of(path))

    assert f"is {path}, which is not served" in refused.value.message


@pytest.mark.parametrize("shape", [(3,), (9, 8, 2)])
def test_vectors_and_images_are_taken(shape: tuple[int, ...]) -> None:
    assert observation_shape(module_of(space=box(*shape))) == shape


@pytest.mark.parametrize(
    ("space", "says"),
    [
        (box(3, 2), "takes a Box[3, 2] observation that is neither a flat vector nor an image"),
        (DiscreteSpace(3), "takes a Discrete observation that is neither"),
        (DictSpace({"a": box(10, 10, 3)}), "takes a Dict observation that is neither"),
        (box(9, 9, 1, dtype="uint8"), "takes observations of uint8, with which RLlib's default"),
    ],
    ids=["matrix", "integer", "image in a Dict", "uint8"],
)
def test_observations_that_rllibs_networks_do_not_take_are_refused(space: Space, says: str) -> None:
    with pytest.raises(ModelError) as refused:
        observation_shape(module_of(space=space))

    assert says in refused.value.message
