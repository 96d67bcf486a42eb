"""The weights of a Keras file: arrays by their paths in an HDF5 file, read with h5py.

HDF5 can point to other files, and can state huge arrays that take no room. Neither is followed:
every array has to lie in the file itself, whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.errors import ModelError
from policy_server.installation import require

__all__ = ["WEIGHTS_FILE", "Weights", "read_weights"]

WEIGHTS_FILE = "model.weights.h5"
_VARIABLES = "vars"


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
    """
    require("keras", use="a Keras file's weights")
    import h5py

    arrays: dict[str, NDArray[Any]] = {}
    names: dict[str, str] = {}
    taken = 0

    def collect(name: str, found: Any) -> None:  # noqa: ANN401 -- h5py is untyped
        nonlocal taken
        if isinstance(found, h5py.Dataset):
            arrays[name] = _array(name, found)
            taken += arrays[name].nbytes
            if taken > size:
                raise ValueError("arrays that take more than the file")
        elif isinstance(stated := found.attrs.get("name"), str):
            names[name] = stated

    try:
        size = path.stat().st_size
        with h5py.File(path, "r") as root:
            # It visits each group and array once, and follows no link to another place.
            root.visititems(collect)
    except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
        words = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ModelError(
            f"{path.name}: can't be read as what Keras's model.save writes: {words}"
        ) from error
    return Weights(arrays, names)


def _array(name: str, found: Any) -> NDArray[Any]:  # noqa: ANN401 -- h5py is untyped
    is_whole = (
        not found.is_virtual
        and found.external is None
        and found.dtype.kind in "fiu"
        and found.id.get_storage_size() == found.nbytes
    )
    if not is_whole:
        raise ModelError(
            f"{WEIGHTS_FILE}: {name} is not stored as plain numbers; save the model again with "
            "Keras's model.save"
        )
    value: NDArray[Any] = np.asarray(found[()])
    if not np.isfinite(value).all():
        raise ModelError(
            f"{WEIGHTS_FILE}: {name} holds NaN or infinity; save an earlier state of the policy"
        )
    return value
