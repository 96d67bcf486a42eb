"""Which engine is chosen, and why, in the signature's words."""

from __future__ import annotations

from pathlib import Path

import pytest

from policy_server.errors import ModelError
from policy_server.formats.saved_model.loading import load_policy
from policy_server.settings import Engine
from tests.support.hand_built import Part, V1Policy


@pytest.mark.parametrize(
    ("asked", "engine", "reason"),
    [
        ("auto", "numpy", "equal to TensorFlow on 194 probes (within "),
        ("numpy", "numpy", "equal to TensorFlow on 194 probes (within "),
        ("tensorflow", "tensorflow", "POLICY_SERVER_ENGINE asks for it"),
    ],
)
def test_signature_says_which_engine_serves_and_why(
    tmp_path: Path, asked: Engine, engine: str, reason: str
) -> None:
    folder = V1Policy().save(tmp_path / "m")

    signature = load_policy(folder, engine=asked).signature

    assert signature.engine == engine
    assert reason in signature.engine_reason


def test_policy_of_an_unknown_family_is_served_by_tensorflow_or_not_at_all(tmp_path: Path) -> None:
    folder = V1Policy(parts=(Part("dirichlet", (3,)),)).save(tmp_path / "m")

    assert load_policy(folder).signature.engine_reason == "its family is unknown"
    with pytest.raises(ModelError, match="can't be computed by NumPy: its family is unknown; set"):
        load_policy(folder, engine="numpy")
