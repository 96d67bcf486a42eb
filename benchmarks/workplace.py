"""What servers under test need: the example's two files, its weights, the peers' environments."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np

from benchmarks.failures import BenchmarkError
from benchmarks.peers.network import Network
from benchmarks.subjects import OBSERVATION, ROOT, Workplace
from policy_server.engine.network import CompiledPolicy, NumpyNetwork
from policy_server.formats.compiling_process import find_compiled
from policy_server.formats.finding import prepare_model
from policy_server.formats.model_files import identify_model
from policy_server.policy import Float32Array
from policy_server.schema import read_schema
from policy_server.settings import Settings

__all__ = [
    "clean_environment",
    "fill_home",
    "install_peer",
    "layers_of",
    "load_compiled",
    "prepare_workplace",
]

EXAMPLE = ROOT / "examples" / "mouse_and_cheese"
ENVIRONMENTS = ROOT / "benchmarks" / ".venvs"
_PROBES = 256
_TOLERANCE = 1e-5
_LINES_SHOWN = 3


def clean_environment() -> dict[str, str]:
    """Return this process's environment without settings of the server, of Ray and of Python.

    With PYTHONDONTWRITEBYTECODE every start would compile the server's modules again.
    """
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("POLICY_SERVER_", "RAY_", "UVICORN_", "PYTHON"))
    }


def prepare_workplace(scratch: Path) -> Workplace:
    """Fill a folder with what the servers need.

    Args:
        scratch: an empty folder.

    Returns:
        The workplace.

    Raises:
        BenchmarkError: if the example's network is none that `Network` computes.
    """
    home = scratch / "home"
    fill_home(home)
    compiled = load_compiled(home)
    layers = layers_of(compiled.network)
    _check_equal(Network(layers), compiled.network)
    weights = scratch / "weights.npz"
    named = {f"weights_{i}": layer[0] for i, layer in enumerate(layers)}
    named |= {f"biases_{i}": layer[1] for i, layer in enumerate(layers)}
    np.savez(weights, allow_pickle=False, **named)
    row = np.array([list(OBSERVATION.values())], np.float32)
    chances = np.exp(Network(layers).logits(row).astype(np.float64))[0]
    probabilities = tuple(float(chance) for chance in chances / chances.sum())
    return Workplace(home, weights, scratch, ENVIRONMENTS, probabilities)


def fill_home(home: Path) -> None:
    """Put schema.yaml and saved_model.zip where a server looks for them.

    Args:
        home: a folder that does not exist yet.
    """
    home.mkdir()
    for name in ("schema.yaml", "saved_model.zip"):
        shutil.copy(EXAMPLE / name, home / name)


def load_compiled(home: Path) -> CompiledPolicy:
    """Return the policy in a home as the server's NumPy engine has it.

    Args:
        home: holds schema.yaml and saved_model.zip.
    """
    settings = Settings(home=home)
    model, schema = identify_model(prepare_model(settings)), read_schema(settings.schema_path)
    compiled = asyncio.run(find_compiled(model, schema, settings))
    if compiled is None:
        raise BenchmarkError(f"{EXAMPLE.name}: is not computed by NumPy")
    return compiled


def layers_of(network: NumpyNetwork) -> list[tuple[Float32Array, Float32Array]]:
    """Return weights and biases of each layer, in order.

    Args:
        network: a multilayer perceptron.
    """
    weights = [
        network.constants[step.inputs[1]] for step in network.steps if step.operation == "MatMul"
    ]
    biases = [
        network.constants[step.inputs[1]] for step in network.steps if step.operation == "BiasAdd"
    ]
    return list(zip(weights, biases, strict=True))


def _check_equal(ours: Network, network: NumpyNetwork) -> None:
    rows = np.random.default_rng(0).uniform(0, 5, (_PROBES, len(OBSERVATION))).astype(np.float32)
    if not np.allclose(ours.logits(rows), network.compile()(rows), atol=_TOLERANCE):
        raise BenchmarkError(f"{EXAMPLE.name}: its network is no multilayer perceptron with tanh")


def install_peer(peer: str) -> None:
    """Make a peer's virtual environment, unless it is there and its requirements are the same.

    Args:
        peer: its name; `benchmarks/requirements-<peer>.txt` says what it needs.

    Raises:
        BenchmarkError: if something can't be installed.
    """
    ENVIRONMENTS.mkdir(exist_ok=True)
    with (ENVIRONMENTS / f"{peer}.lock").open("w") as lock:
        # Another benchmark may be at it.
        fcntl.flock(lock, fcntl.LOCK_EX)
        _install(peer)


def _install(peer: str) -> None:
    requirements = ROOT / "benchmarks" / f"requirements-{peer}.txt"
    folder = ENVIRONMENTS / peer
    stamp = folder / "installed.json"
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()
    wanted = json.dumps({"python": sys.version, "requirements": digest})
    if stamp.exists() and stamp.read_text() == wanted:
        return
    venv.create(folder, clear=True, with_pip=True)
    command = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    done = subprocess.run(  # noqa: S603 -- the command is ours
        [*command, "--disable-pip-version-check", "-r", str(requirements)],
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )
    if done.returncode != 0:
        said = " / ".join(done.stderr.strip().splitlines()[-_LINES_SHOWN:])
        raise BenchmarkError(f"pip can't install benchmarks/{requirements.name}: {said[:300]}")
    stamp.write_text(wanted)
