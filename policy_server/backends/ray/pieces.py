"""Files in pieces: how they go to an actor, and from it to Ray's object store.

The actor owns the pieces there: an object is lost with the process that has put it, and a file
that a server has sent is needed when that server has gone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

__all__ = ["CALL_TIMEOUT_S", "PieceKeeper", "Pieces", "call_actor", "send_files", "write_files"]

CALL_TIMEOUT_S = 60.0
_PIECE_BYTES = 16 * 1024 * 1024

Pieces = dict[str, list[Any]]


class PieceKeeper:
    """The part of an actor that owns pieces of files."""

    def put(self, piece: NDArray[np.uint8]) -> list[Any]:
        """Put a piece of a file to Ray's object store, as its owner, and return its reference."""
        return [ray.put(piece)]


def send_files(actor: Any, files: Mapping[str, Path | bytes]) -> Pieces:  # noqa: ANN401 -- Ray's handles are generic
    """Send files to an actor, and return the references of their pieces, by the files' names.

    Args:
        actor: the handle of a `PieceKeeper`.
        files: paths to files, or contents, by names such as `variables/variables.index`.
    """
    return {
        name: [call_actor(actor.put, piece)[0] for piece in _pieces(content)]
        for name, content in files.items()
    }


def write_files(files: Pieces, folder: Path) -> None:
    """Write files from their pieces.

    Args:
        files: the references of the files' pieces, by the files' names.
        folder: where they go.
    """
    for name, pieces in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for piece in pieces:
                content: Any = ray.get(piece, timeout=CALL_TIMEOUT_S)
                file.write(content.data)


def call_actor(method: Any, *arguments: Any, timeout_s: float = CALL_TIMEOUT_S) -> Any:  # noqa: ANN401 -- Ray's handles are generic
    """Call a method of an actor, and return what it returns.

    Args:
        method: the method of the actor's handle.
        arguments: the method's.
        timeout_s: the longest wait for the answer, in seconds.

    Raises:
        RayError: if the actor does not answer.
    """
    return ray.get(method.remote(*arguments), timeout=timeout_s)


def _pieces(content: Path | bytes) -> Iterator[NDArray[np.uint8]]:
    if isinstance(content, bytes):
        whole = np.frombuffer(content, np.uint8)
    else:
        empty = not content.stat().st_size
        whole = np.empty(0, np.uint8) if empty else np.memmap(content, np.uint8, mode="r")
    for start in range(0, len(whole), _PIECE_BYTES):
        yield np.array(whole[start : start + _PIECE_BYTES])
