"""What is passed on while TensorFlow is imported, and how it is set."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from policy_server.formats.saved_model.quiet_import import quiet_import

LOADING = """
import os
before = "TF_ENABLE_ONEDNN_OPTS" in os.environ
import policy_server.formats.saved_model
assert ("TF_ENABLE_ONEDNN_OPTS" in os.environ) == before, "an import changed the environment"
import policy_server.formats.saved_model.loading
print(os.environ["TF_ENABLE_ONEDNN_OPTS"])
"""


def test_import_keeps_what_is_no_note_of_tensorflows(capfd: pytest.CaptureFixture[str]) -> None:
    with quiet_import():
        os.write(2, b"WARNING: All log messages before absl::InitializeLog() is called\n")
        os.write(2, b"I0000 00:00:1 1 cudart_stub.cc:31] Could not find cuda drivers\n")
        os.write(2, b"a line of somebody else\n")

    assert capfd.readouterr().err == "a line of somebody else\n"


@pytest.mark.parametrize(("asked", "found"), [(None, "0"), ("1", "1")], ids=["unset", "set"])
def test_tensorflow_is_set_when_it_is_imported_unless_the_operator_has(
    asked: str | None, found: str
) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TF_")}
    if asked is not None:
        environment["TF_ENABLE_ONEDNN_OPTS"] = asked

    done = subprocess.run(
        [sys.executable, "-c", LOADING], env=environment, capture_output=True, text=True, check=True
    )

    assert done.stdout.split() == [found]
    assert done.stderr == ""


def test_writing_a_saved_model_imports_tensorflow_without_its_notes() -> None:
    program = "import policy_server.formats.saved_model.writing"

    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert done.stderr == ""
