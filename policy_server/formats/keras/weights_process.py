"""The program that reads an HDF5 file of weights with h5py, and writes its arrays to a pipe.

In some damaged files HDF5's C library goes round for ever, in others it ends its process: that must
not be the server. `stored_weights` runs this file, which imports little beside h5py: its start is
short.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from policy_server.tied_processes import end_with

__all__ = ["NO_MEMORY", "write_weights"]

NO_MEMORY = 12
"""The status that the process ends with where it gets no memory."""


class _RefusedError(Exception):
    """An array that is not taken; the message is the reason."""


def write_weights(path: Path, answer: IO[bytes]) -> None:
    """Write the arrays of a file one after another, as they are read.

    Each is a line of JSON (`array`, `dtype`, `shape`) and its numbers' bytes; the name that Keras
    notes beside a layer's arrays is a line (`layer`, `name`). The last line is empty (`{}`), or
    says why the file is refused (`refused`) or which error of the system it can't be read by
    (`failed`).

    Args:
        path: the file.
        answer: takes the lines.
    """
    import h5py

    taken = 0

    def collect(name: str, found: Any) -> None:  # noqa: ANN401 -- h5py is untyped
        nonlocal taken
        if isinstance(found, h5py.Dataset):
            array = _array(name, found)
            taken += array.nbytes
            if taken > size:
                raise ValueError("arrays that take more than the file")
            _tell(answer, array=name, dtype=array.dtype.str, shape=array.shape)
            answer.write(array.tobytes())
        elif isinstance(stated := found.attrs.get("name"), str):
            _tell(answer, layer=name, name=stated)

    try:
        size = path.stat().st_size
        with h5py.File(path, "r") as root:
            # It visits each group and array once, and follows no link to another place.
            root.visititems(collect)
    except _RefusedError as error:
        _tell(answer, refused=str(error))
    except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
        _tell(answer, **_reason_of(error))
    else:
        _tell(answer)


def _reason_of(error: Exception) -> dict[str, object]:
    if isinstance(error, OSError) and error.errno:
        return {"failed": error.errno}
    words = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return {"refused": f"can't be read as what Keras's model.save writes: {words}"}


def _tell(answer: IO[bytes], **values: object) -> None:
    answer.write(json.dumps(values).encode() + b"\n")


def _array(name: str, found: Any) -> NDArray[Any]:  # noqa: ANN401 -- h5py is untyped
    is_whole = (
        not found.is_virtual
        and found.external is None
        and found.dtype.kind in "fiu"
        and found.id.get_storage_size() == found.nbytes
    )
    if not is_whole:
        raise _RefusedError(
            f"{name} is not stored as plain numbers; save the model again with Keras's model.save"
        )
    value: NDArray[Any] = np.asarray(found[()])
    if not np.isfinite(value).all():
        raise _RefusedError(f"{name} holds NaN or infinity; save an earlier state of the policy")
    return value


def _main() -> None:
    """Read the file that the command line names, for so many seconds of the processor's time."""
    parent, path, seconds = sys.argv[1:]
    # Its signal ends it within the C library too.
    end_with(int(parent))
    # Its signal ends the process within the C library too. Of the processor's time, since a busy
    # machine or a slow disk is no fault of the file's.
    signal.setitimer(signal.ITIMER_PROF, float(seconds))
    try:
        with sys.stdout.buffer as answer:
            write_weights(Path(path), answer)
    except MemoryError:
        sys.exit(NO_MEMORY)


if __name__ == "__main__":
    _main()
