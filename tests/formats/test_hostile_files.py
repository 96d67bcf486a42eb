"""Files of each format with small changes: loaded whole, or refused in one line."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from policy_server.engine.network import NetworkPolicy
from policy_server.errors import ModelError
from policy_server.formats.known_formats import load_policy
from policy_server.formats.unpacking import unpack_model
from policy_server.policy import Policy
from policy_server.schema import ServerSchema
from policy_server.settings import Engine
from tests.fuzz.model_files import load_files
from tests.support.compiled import COMPILED
from tests.support.formats import NotesFormat
from tests.support.library_policies import POLICIES

FORMATS = ["ONNX", "Keras", "stable-baselines3", "RLlib"]


@pytest.mark.parametrize("form", FORMATS)
def test_changed_files_are_loaded_or_refused_in_one_line(form: str) -> None:
    ends = load_files(60, seed=20, formats=[form])

    assert ends[f"{form} loaded"] > 5
    assert ends[f"{form} refused"] > 20


class Misfits(NotesFormat):
    """A policy whose weights are those of an observation of three numbers, and not of two."""

    def load(
        self, files: Mapping[str, Path], schema: ServerSchema | None, *, engine: Engine
    ) -> Policy:
        assert files, (schema, engine)
        network = replace(COMPILED.network, constants={1: np.eye(3, dtype=np.float32)})
        return NetworkPolicy(replace(COMPILED, network=network))


def test_weights_that_do_not_fit_each_other_are_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.txt").write_bytes(b"notes")

    with pytest.raises(ModelError, match=r"^the policy of notes: can't compute an observation: "):
        load_policy(tmp_path, formats=[Misfits()])


def test_long_text_of_a_file_is_shortened_in_its_refusal() -> None:
    error = ModelError("the Keras model: the layer 'x' (" + "a" * 5000 + ") is unknown; remove it")

    assert len(error.message) < 1000
    assert ModelError(error.message).message == error.message
    assert error.message.startswith("the Keras model: the layer 'x' (aaa")
    assert error.message.endswith("aaa) is unknown; remove it")


def test_layer_that_is_called_with_text_is_refused(tmp_path: Path) -> None:
    content = (POLICIES / "keras_actor_softmax" / "actor.keras").read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    document = json.loads(members["config.json"])
    called = [item for item in document["config"]["layers"] if item.get("inbound_nodes")]
    called[0]["inbound_nodes"][0]["kwargs"] = "x"
    members["config.json"] = json.dumps(document).encode()
    path = tmp_path / "actor.keras"
    with zipfile.ZipFile(path, "w") as archive:
        for name, item in members.items():
            archive.writestr(name, item)

    folder = unpack_model(path, tmp_path / "models", max_bytes=1 << 20)

    with pytest.raises(ModelError, match="is called with neither a list nor names"):
        load_policy(folder)
