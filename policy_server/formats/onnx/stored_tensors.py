"""The numbers of an .onnx file's tensors, from the file itself or from one beside it."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.errors import ModelError

__all__ = ["StoredTensors"]

Array = NDArray[Any]


# Weights that share their numbers are read once for each.
_MOST_TIMES = 4


class StoredTensors:
    """Reads tensors, whose numbers may lie in files beside the model's."""

    def __init__(self, files: Mapping[str, Path], name: str) -> None:
        """Own nothing but the files' names.

        Args:
            files: the model's files by their names below its folder.
            name: the .onnx file's.
        """
        self._files = files
        self._name = name
        self._read_bytes = 0

    def array(self, tensor: Any) -> Array:  # noqa: ANN401 -- onnx is untyped
        """Return a tensor's numbers, after checking that the file holds as many as it says.

        Numbers from beside the file are in the tensor's message afterwards.

        Args:
            tensor: its message.

        Raises:
            ModelError: if its numbers are missing, damaged, or lie outside the folder.
        """
        import onnx

        self.load(tensor)
        shape = tuple(tensor.dims)
        if any(size < 0 for size in shape):
            raise ModelError(f"{self._name}: {tensor.name!r} has the shape {shape}; export again")
        try:
            held = len(tensor.raw_data) * 8 or sum(
                len(getattr(tensor, field)) * 64
                for field in (
                    "float_data",
                    "int32_data",
                    "int64_data",
                    "double_data",
                    "uint64_data",
                )
            )
            # Four bits are the smallest number of any type.
            if math.prod(shape) * 4 > held + len(tensor.string_data) * 64:
                raise ValueError(f"{math.prod(shape)} numbers are announced")  # noqa: TRY301 -- one message for both
            return np.asarray(onnx.numpy_helper.to_array(tensor))
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            raise ModelError(
                f"{self._name}: the tensor {tensor.name!r} is damaged: {error}; export it again"
            ) from error

    def load(self, tensor: Any) -> None:  # noqa: ANN401 -- onnx is untyped
        """Put a tensor's numbers that lie in a file beside the model's into the message.

        Args:
            tensor: its message.

        Raises:
            ModelError: if they are missing, or lie outside the folder.
        """
        import onnx

        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            return
        entries = {item.key: item.value for item in tensor.external_data}
        if not all(isinstance(text, str) for pair in entries.items() for text in pair):
            # protobuf gives text that is no UTF-8 as bytes.
            raise ModelError(
                f"{self._name}: is damaged: the place of its weights is no text; export it again"
            )
        location = entries.get("location", "")
        path = self._file_of(location)
        try:
            offset = int(entries.get("offset", "0"))
            length = int(entries.get("length", path.stat().st_size - offset))
            if offset < 0 or length < 0:
                raise ValueError(f"{length} bytes from {offset}")  # noqa: TRY301 -- one message for both
            with path.open("rb") as file:
                file.seek(offset)
                # No more than is there: Python makes room for all that it is asked to read.
                content = file.read(min(length, path.stat().st_size))
        except (OSError, ValueError, OverflowError) as error:
            raise ModelError(f"{self._name}: can't read {location}: {error}") from error
        if len(content) < length:
            raise ModelError(
                f"{self._name}: {location} ends before the weights {tensor.name!r}; copy both "
                "files again, as they were exported together"
            )
        self._read_bytes += length
        if self._read_bytes > _MOST_TIMES * self._bytes_there:
            raise ModelError(
                f"{self._name}: takes the same numbers for many of its weights; export it again"
            )
        tensor.raw_data = content
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]

    @functools.cached_property
    def _bytes_there(self) -> int:
        return sum(file.stat().st_size for file in self._files.values())

    def _file_of(self, location: str) -> Path:
        pure = PurePosixPath(location.replace("\\", "/"))
        if not location or pure.is_absolute() or ".." in pure.parts:
            raise ModelError(
                f"{self._name}: names {location!r} as the file of its weights, which lies outside "
                "its folder; export it again"
            )
        if (path := self._files.get(str(pure))) is None:
            raise ModelError(
                f"{self._name}: its weights lie in {pure}, which is not beside it; put both files "
                "into one folder or zip, or export with external_data=False"
            )
        folder = self._files[self._name].parent.resolve()
        if not path.resolve().is_relative_to(folder):
            raise ModelError(
                f"{self._name}: {pure} is a link out of its folder; copy the file there"
            )
        return path
