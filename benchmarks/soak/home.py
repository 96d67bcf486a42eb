"""A home of several policies: draws, a squashed normal, a memory, a team; and a second version."""

from __future__ import annotations

import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.subjects import KEY, ROOT
from benchmarks.workplace import layers_of, load_compiled
from policy_server.formats.saved_model.mlp_policy import Categorical, DenseLayer, MlpPolicy

__all__ = [
    "CHANGED",
    "EXAMPLES",
    "TEAM",
    "drawn_observation",
    "fill_home",
    "flat",
    "write_other_version",
]

# The policy whose versions change during the run, and the default one.
CHANGED = "mouse_and_cheese"
EXAMPLES = (CHANGED, "conveyor", "pendulum", "stock", "pursuit")
# The agents of the team, with their policies.
TEAM = {"hunter_0": "hunter", "hunter_1": "hunter", "prey": "prey"}
# Where schema.yaml gives a field no bounds.
_WIDEST = 3
_STOCK_WIDTH = 10


def fill_home(home: Path, examples: Sequence[str] = EXAMPLES) -> None:
    """Put the policies of the examples into one home.

    Args:
        home: a folder that does not exist yet.
        examples: their names; the first one's policy is the default one.
    """
    home.mkdir()
    schema: dict[str, Any] = {
        "default": examples[0],
        "policies": {},
        "parameters": {"api_key": KEY},
    }
    for name in examples:
        folder = ROOT / "examples" / name
        shutil.copy(folder / "saved_model.zip", home / f"{name}.zip")
        found = yaml.safe_load((folder / "schema.yaml").read_text(encoding="utf-8"))
        policies = found.get("policies") or {name: found}
        for policy, section in policies.items():
            parameters = {k: v for k, v in section["parameters"].items() if k != "api_key"}
            schema["policies"][policy] = {
                **section,
                "model": f"{name}.zip",
                "parameters": parameters,
            }
        if "multi_agent" in found:
            schema["multi_agent"] = found["multi_agent"]
    text = yaml.safe_dump(schema, sort_keys=False)
    (home / "schema.yaml").write_text(text, encoding="utf-8")


def write_other_version(target: Path, scratch: Path) -> None:
    """Write a version of `CHANGED` that prefers what the first one avoids.

    Args:
        target: the zip.
        scratch: a folder for what is written meanwhile.
    """
    # TensorFlow takes seconds, which a run that is only rendered does without.
    from policy_server.formats.saved_model.writing import pack_saved_model, write_saved_model

    home = scratch / "first"
    home.mkdir()
    for name in ("schema.yaml", "saved_model.zip"):
        shutil.copy(ROOT / "examples" / CHANGED / name, home / name)
    layers = [
        DenseLayer(weights, bias, "tanh")
        for weights, bias in layers_of(load_compiled(home).network)
    ]
    last = layers.pop()
    layers.append(replace(last, weights=-last.weights, bias=-last.bias, activation="linear"))
    policy = MlpPolicy(
        observation_width=layers[0].weights.shape[0],
        layers=tuple(layers),
        distribution=Categorical((last.bias.shape[0],)),
    )
    write_saved_model(policy, scratch / "written")
    pack_saved_model(scratch / "written", target)


def drawn_observation(fields: Mapping[str, Any] | None, chance: random.Random) -> Any:  # noqa: ANN401 -- JSON
    """Draw an observation that the policy takes.

    Args:
        fields: the section `observations` of schema.yaml; None for a policy of raw routes only.
        chance: where it is drawn from.

    Returns:
        A named observation, or the numbers of a flat one.
    """
    if fields is None:
        return [_number("float", {}, chance) for _ in range(_STOCK_WIDTH)]
    drawn: dict[str, Any] = {}
    for name, field in fields.items():
        kind = field["type"].removeprefix("List[").removesuffix("]")
        if kind == field["type"]:
            drawn[name] = _number(kind, field, chance)
        else:
            drawn[name] = [_number(kind, field, chance) for _ in range(field["max_items"])]
    return drawn


def _number(kind: str, field: Mapping[str, Any], chance: random.Random) -> float:
    low, high = field.get("minimum", -_WIDEST), field.get("maximum", _WIDEST)
    if kind == "bool":
        return chance.random() < 0.5
    if kind == "int":
        return chance.randint(low, high)
    # As float32 has it: JSON then carries the number that the policy takes.
    return float(np.float32(round(chance.uniform(low, high), 3)))


def flat(observation: Any) -> list[float]:  # noqa: ANN401 -- JSON
    """Return the numbers of an observation in the order of training.

    Args:
        observation: named or flat.
    """
    if isinstance(observation, list):
        return [float(number) for number in observation]
    numbers: list[float] = []
    for value in observation.values():
        numbers += flat(value) if isinstance(value, list) else [float(value)]
    return numbers
