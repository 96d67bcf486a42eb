"""The facts about a stable-baselines3 policy that were read, assumed or stated, in words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from policy_server.formats.stable_baselines3.action_spaces import Answers, first_of_choices
from policy_server.formats.stable_baselines3.algorithms import Algorithm
from policy_server.formats.stable_baselines3.file_names import STATISTICS_FILE
from policy_server.formats.stable_baselines3.images import is_image, parts_of
from policy_server.formats.stable_baselines3.layers import activation_of
from policy_server.formats.stable_baselines3.vec_normalize import Scaling
from policy_server.formats.stable_baselines3.zip_members import SavedPolicy

__all__ = ["findings_of"]


def findings_of(
    saved: SavedPolicy,
    algorithm: Algorithm,
    scaling: Scaling | None,
    answers: Answers,
    *,
    statistics: Path | None,
    is_unscaled: bool,
    turned: frozenset[str | None],
) -> tuple[str, ...]:
    """Return the facts about a policy, for the log and for `generate.py inspect`.

    Args:
        saved: the policy.
        algorithm: its kind.
        scaling: its scaling by VecNormalize; None where it has none.
        answers: the end of its network.
        statistics: the file of VecNormalize's statistics; None where there is none.
        is_unscaled: schema.yaml states that the observations were not scaled.
        turned: the keys of images that come with their channels last.

    Returns:
        A line for each; it begins with `read`, `assumed` or `stated`.
    """
    return (
        f"read: the class {saved.class_name} ({algorithm.names}) of stable-baselines3 "
        f"{saved.version}, its spaces and its weights; no code of the file was run",
        *_about_network(saved, algorithm, answers),
        *_about_scaling(algorithm, scaling, statistics, is_unscaled=is_unscaled),
        *_about_images(saved, scaling, turned),
        *_about_actions(saved),
    )


def _about_network(saved: SavedPolicy, algorithm: Algorithm, answers: Answers) -> Iterator[str]:
    name = activation_of(saved, algorithm.activation)
    if saved.arguments.get("activation_fn") is None:
        yield f"assumed: the activation {name}, which its class has"
    else:
        yield f"read: the activation {name}, with PyTorch's default arguments"
    if answers.memory:
        layers, units = answers.memory[0].shape
        yield (
            f"read: an LSTM with {layers} {'layer' if layers == 1 else 'layers'} of {units} "
            "units; its memory is zero when an episode begins"
        )


def _about_scaling(
    algorithm: Algorithm, scaling: Scaling | None, statistics: Path | None, *, is_unscaled: bool
) -> Iterator[str]:
    if statistics is not None:
        extent = "no observations" if scaling is None else "the observations"
        yield f"read: VecNormalize scaled {extent}, from {statistics.name}"
        if scaling is not None and scaling.frames > 1:
            source = "read" if scaling.has_shown_frames else "assumed"
            yield (
                f"{source}: an observation is {scaling.frames} frames, the oldest first, each with "
                "the same statistics, as VecFrameStack over VecNormalize gives them"
            )
    elif is_unscaled:
        yield "stated: observations were not scaled by VecNormalize, by schema.yaml"
    elif not algorithm.is_on_policy:
        yield (
            "assumed: observations were not scaled by VecNormalize, as the file shows none of it; "
            "scaled ones may lie in their space too, and if the training had it, the "
            f"answers are wrong until its statistics lie beside the policy as {STATISTICS_FILE}"
        )


def _about_images(
    saved: SavedPolicy, scaling: Scaling | None, turned: frozenset[str | None]
) -> Iterator[str]:
    known = {} if scaling is None else scaling.has_channels_first
    images = {key for key, part in parts_of(saved.observation_space).items() if is_image(part)}
    for key in images & {*known}:
        order = "first" if known[key] else "last"
        yield f"read: images come with their channels {order}, from VecNormalize's statistics"
    unknown = images - {*known}
    if unknown & turned:
        yield (
            "assumed: images come with their channels last, as environments give them; the file is "
            "the same for either order, and the `shape` of the observation in schema.yaml tells it"
        )
    if unknown - turned:
        yield "stated: images come with their channels first, by schema.yaml"


def _about_actions(saved: SavedPolicy) -> Iterator[str]:
    firsts = first_of_choices(saved)
    if any(firsts):
        yield (
            f"read: the actions' space counts from {', '.join(map(str, firsts))}; "
            "stable-baselines3 counts from 0 whatever it says, and so do the answers"
        )
