"""Test vectors in an .onnx file, which are computed when it is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from policy_server.errors import ModelError
from policy_server.formats.known_formats import load_policy
from policy_server.formats.onnx.policy_metadata import VECTORS_KEY
from policy_server.formats.unpacking import unpack_model
from policy_server.onnx_export import export_onnx
from tests.support.library_policies import POLICIES

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a recurrent policy in an .onnx file."""
    source = unpack_model(
        POLICIES / "rllib_ppo_lstm" / "module.zip", tmp_path / "source", max_bytes=2**30
    )
    export_onnx(source, None, tmp_path / "written" / "policy.onnx")
    return tmp_path / "written"


def change(folder: Path, mend: Change) -> None:
    path = folder / "policy.onnx"
    model = onnx.load(path)
    (entry,) = (item for item in model.metadata_props if item.key == VECTORS_KEY)
    content = json.loads(entry.value)
    mend(content)
    entry.value = json.dumps(content)
    onnx.save(model, path)


def test_weights_that_were_changed_are_found_at_the_start(folder: Path) -> None:
    path = folder / "policy.onnx"
    model = onnx.load(path)
    weights = max(model.graph.initializer, key=lambda item: len(item.raw_data))
    values = onnx.numpy_helper.to_array(weights).copy()
    values.flat[0] += 0.5
    weights.CopyFrom(onnx.numpy_helper.from_array(values, weights.name))
    onnx.save(model, path)

    with pytest.raises(ModelError, match=r"differs from its test vectors: number \d+ of the "):
        load_policy(folder)


@pytest.mark.parametrize(
    ("mend", "message"),
    [
        pytest.param(
            lambda v: v["distributions"][7].__setitem__(1, 9.0),
            "number 1 of the distribution is .* in row 7, expected 9;",
            id="distribution",
        ),
        pytest.param(
            lambda v: v["actions"][3].__setitem__(0, 99),
            "number 0 of the deterministic action is .* in row 3, expected 99;",
            id="action",
        ),
        pytest.param(
            lambda v: v["states_after"][2].__setitem__(5, 0.5),
            "number 5 of the state after the step is .* in row 2, expected 0.5;",
            id="state",
        ),
        pytest.param(
            lambda v: v["distributions"][0].__setitem__(0, None),
            "number 0 of the distribution is .* in row 0, expected -inf;",
            id="minus infinity",
        ),
        pytest.param(lambda v: v.pop("states"), "has actions, .*, expected actions", id="key"),
        pytest.param(
            lambda v: v["observations"].pop(), "states: has the shape .*, expected 19", id="rows"
        ),
        pytest.param(lambda v: v.update(observations=[]), "has 0 observations", id="none"),
        pytest.param(
            lambda v: v["observations"][0].append(1.0), "inhomogeneous shape", id="ragged"
        ),
        pytest.param(lambda v: v["states"][0].__setitem__(0, None), "states: has null", id="null"),
        pytest.param(
            lambda v: v.update(distributions=[[1.0]] * 20), "has fewer than 4 numbers", id="narrow"
        ),
    ],
)
def test_vectors_that_disagree_or_do_not_fit_are_one_line(
    folder: Path, mend: Change, message: str
) -> None:
    change(folder, mend)

    with pytest.raises(ModelError, match=message) as caught:
        load_policy(folder)

    assert "\n" not in caught.value.message


def test_file_without_vectors_is_refused(folder: Path) -> None:
    path = folder / "policy.onnx"
    model = onnx.load(path)
    kept = [item for item in model.metadata_props if item.key != VECTORS_KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    onnx.save(model, path)

    with pytest.raises(ModelError, match=f"has no {VECTORS_KEY}, the answers that its policy"):
        load_policy(folder)


def test_rounding_is_no_disagreement(folder: Path) -> None:
    def round_off(vectors: dict[str, Any]) -> None:
        vectors["distributions"] = (np.array(vectors["distributions"]) + 3e-6).tolist()

    change(folder, round_off)

    assert "20 test vectors in the file agree" in load_policy(folder).signature.findings[-1]
