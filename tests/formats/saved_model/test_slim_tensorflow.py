"""TensorFlow without its `__init__`, in processes that have not imported it otherwise."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.support.folders import EXPORTS
from tests.support.forked_programs import run_forked
from tests.support.processes import run

LOADING = """
import sys
from pathlib import Path
from policy_server.formats.unpacking import unpack_model
from policy_server.formats.saved_model.loading import load_policy
from policy_server.schema import read_schema
target, *exports = map(Path, sys.argv[1:])
for export in exports:
    folder = unpack_model(export / "saved_model.zip", target / export.name, max_bytes=10**9)
    policy = load_policy(folder, read_schema(export / "schema.yaml"), engine="tensorflow")
    print(export.name, policy.signature.is_proved)
print("whole", "tensorflow" in sys.modules, "keras" in sys.modules)
"""
MOVED = """
import logging
import sys
import tensorflow
from tensorflow.python import framework, grappler
from tensorflow.python.ops import array_ops
logging.basicConfig(stream=sys.stdout, format="%(message)s")
del array_ops.shape_v2
if sys.argv.pop(1) == "all":
    for package, name in (framework, "op_def_registry"), (grappler, "tf_optimizer"):
        delattr(package, name)
        sys.modules[f"{package.__name__}.{name}"] = None
"""
BOTH = """
import sys
if sys.argv[1] == "before":
    import tensorflow
from policy_server.formats.saved_model.slim_tensorflow import Graph, Session, errors
import tensorflow
same = (
    tensorflow.Graph is Graph,
    tensorflow.compat.v1.Session is Session,
    tensorflow.errors.OpError is errors.OpError,
)
layer = tensorflow.keras.layers.Dense(2)
print(same, layer(tensorflow.ones([3, 4])).shape, tensorflow.executing_eagerly())
"""


# Of those that import all of TensorFlow first.
MOVED_EXPORTS = ["ppo_tuple", "ray082_ppo_box", "ray29_tf2_ppo_discrete"]


def printed(program: str, *arguments: str) -> str:
    return run(sys.executable, "-c", program, *arguments).stdout.strip()


@pytest.fixture(scope="module")
def after_tensorflow(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The output of programs in processes that had imported TensorFlow before, by their names."""
    folders = [str(EXPORTS / name) for name in MOVED_EXPORTS]
    arguments = {
        **{gone: [gone, str(tmp_path_factory.mktemp(gone)), *folders] for gone in ("one", "all")},
        "before": ["before"],
    }
    programs = {
        name: f"import sys\nsys.argv[1:] = {given!r}\n"
        + (BOTH if name == "before" else MOVED + LOADING)
        for name, given in arguments.items()
    }
    ended = run_forked(programs, imports="import tensorflow")
    assert [one.status for one in ended.values()] == [0, 0, 0], ended
    return {name: one.stdout.strip() for name, one in ended.items()}


def test_exports_are_loaded_and_proved_without_the_rest_of_tensorflow(tmp_path: Path) -> None:
    folders = sorted(path.parent for path in EXPORTS.glob("*/saved_model.zip"))

    *loaded, whole = printed(LOADING, str(tmp_path), *map(str, folders)).splitlines()

    # A Keras-only export has nothing in it to prove its family with.
    proved = {line.split()[0] for line in loaded if line.endswith("True")}
    assert {folder.name for folder in folders} - proved == {"ray29_tf2_ppo_discrete"}
    assert whole == "whole False False"


@pytest.mark.parametrize("order", ["before", "after"])
def test_whole_tensorflow_may_be_imported_too(order: str, after_tensorflow: dict[str, str]) -> None:
    found = after_tensorflow[order] if order == "before" else printed(BOTH, order)

    assert found == "(True, True, True) (3, 2) True"


@pytest.mark.parametrize(
    ("gone", "is_proved"), [("one", True), ("all", False)], ids=["one with a public name", "all"]
)
def test_tensorflow_whose_parts_have_moved_loads_policies_by_its_public_names(
    gone: str,
    is_proved: bool,  # noqa: FBT001 -- a parameter
    after_tensorflow: dict[str, str],
) -> None:
    warning, *loaded, _ = after_tensorflow[gone].splitlines()

    assert warning == "tensorflow_parts_moved"
    *most, last = MOVED_EXPORTS
    assert loaded == [f"{name} {is_proved}" for name in most] + [f"{last} False"]
