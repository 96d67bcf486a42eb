"""The weights of a Keras file: arrays by their paths in an HDF5 file, read with h5py.

HDF5 can point to other files, and can state huge arrays that take no room. Neither is followed:
every array has to lie in the file itself, whole. A process of its own reads them, which a damaged
file can hold up or end without harm.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from policy_server.child_environment import environment_of_child
from policy_server.errors import ModelError, NotReadyError
from policy_server.formats.keras import weights_process
from policy_server.installation import require

__all__ = ["WEIGHTS_FILE", "Weights", "read_weights"]

WEIGHTS_FILE = "model.weights.h5"
_VARIABLES = "vars"
# Of the processor's time: a small file takes some milliseconds, one of 15,000 groups and arrays in
# 14 MB took 2.3 s, and one array of 400 MB 0.9 s.
_LEAST_SECONDS, _MOST_SECONDS, _SECONDS_PER_MB = 5, 120, 1


@dataclass(frozen=True, eq=False)
class Weights:
    """The arrays of a model's layers.

    Attributes:
        arrays: each array by its path, such as `layers/dense_1/vars/0`.
        names: the name that Keras notes beside a layer's arrays, by path, such as
            `layers/dense_1/vars`.
    """

    arrays: Mapping[str, NDArray[Any]]
    names: Mapping[str, str]

    def name_of(self, layer: str) -> str | None:
        """Return the name that the file notes for a layer; None for none.

        Args:
            layer: its path, such as `layers/dense_1`.
        """
        return self.names.get(f"{layer}/{_VARIABLES}")

    def of(self, layer: str) -> list[NDArray[Any]]:
        """Return a layer's arrays in order; none where it has no weights.

        Args:
            layer: its path, such as `layers/dense_1`.
        """
        found: list[NDArray[Any]] = []
        while (value := self.arrays.get(f"{layer}/{_VARIABLES}/{len(found)}")) is not None:
            found.append(value)
        return found


def read_weights(path: Path) -> Weights:
    """Read a file of weights.

    Args:
        path: the member model.weights.h5 of a Keras file, unpacked.

    Raises:
        MissingPackageError: if h5py is not installed.
        ModelError: if the file is no HDF5 file, is damaged, or holds an array that is not stored
            whole, is no array of numbers, or holds NaN or infinity.
        NotReadyError: if the process that reads it can't be started.
        OSError: if the system does not give the file.
    """
    require("keras", use="a Keras file's weights")
    size = path.stat().st_size
    seconds = min(_LEAST_SECONDS + size // 1_000_000 * _SECONDS_PER_MB, _MOST_SECONDS)
    try:
        process = subprocess.Popen(  # noqa: S603 -- this package's own file, by this Python
            [
                *(sys.executable, "-P", weights_process.__file__),
                *(str(os.getpid()), path, str(seconds)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            env=environment_of_child(),
        )
    except OSError as error:
        raise NotReadyError(
            f"the process that reads {path.name} can't be started: {error.strerror}; it is "
            f"{sys.executable}, and takes a process and a few open files more"
        ) from error
    with process:
        assert process.stdout is not None, "it is a pipe"
        try:
            weights = _read(process.stdout, path)
            status = process.wait()
        finally:
            process.kill()
    if weights is None:
        _refuse_unread(path, status, seconds)
    return weights


def _read(answer: IO[bytes], path: Path) -> Weights | None:
    """Return the weights of the process's answer; None where it ends too early.

    Raises:
        ModelError: if the process refuses the file.
        OSError: if the system does not give it.
    """
    arrays: dict[str, NDArray[Any]] = {}
    names: dict[str, str] = {}
    for line in iter(answer.readline, b""):
        if not line.endswith(b"\n"):
            return None
        found = json.loads(line)
        if not found:
            return Weights(arrays, names)
        if "failed" in found:
            raise OSError(found["failed"], os.strerror(found["failed"]), str(path))
        if "refused" in found:
            raise ModelError(f"{path.name}: {found['refused']}")
        if "layer" in found:
            names[found["layer"]] = found["name"]
            continue
        dtype, shape = np.dtype(found["dtype"]), found["shape"]
        content = answer.read(math.prod(shape) * dtype.itemsize)
        if len(content) < math.prod(shape) * dtype.itemsize:
            return None
        arrays[found["array"]] = np.ndarray(shape, dtype, content)
    return None


def _refuse_unread(path: Path, status: int, seconds: int) -> NoReturn:
    """Say why the process has ended before its answer."""
    if status in (weights_process.NO_MEMORY, -signal.SIGKILL):
        raise MemoryError
    if status >= 0:
        # Its traceback stands in the log.
        raise RuntimeError(f"the process that reads {path.name} ended with status {status}")
    words = f"HDF5's library ended its process by {signal.Signals(-status).name}"
    if status == -signal.SIGPROF:
        words = f"reading it takes more than {seconds} s of computing"
    raise ModelError(
        f"{path.name}: is damaged: {words}; save the model again with Keras's model.save"
    )
