"""One observation as a NumPy array in npy format, so that an image costs its bytes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.observations.npy_header import read_header, refuse_npy

__all__ = ["read_array"]


def read_array(
    body: bytes, *, sizes: tuple[int, ...], shape: tuple[int, ...] | None
) -> NDArray[Any]:
    """Return the numbers of one observation in C order.

    Args:
        body: a whole array in npy format, of any type of real numbers.
        sizes: how many numbers a flat array may have; empty for any number.
        shape: the other shape that is taken, the observation's own; None for none.

    Returns:
        number[D]; a view of the body where its order allows.

    Raises:
        ObservationError: if it is no such array, or of another shape.
    """
    header = read_header(body)
    if header is None:
        refuse_npy("npy_header", "The body ends within the header of the npy format")
    found = header.shape
    is_flat = len(found) == 1 and found[0] in (sizes or found)
    if min(found, default=0) < 0 or not (is_flat or found == shape):
        wanted = " or ".join(f"({size},)" for size in sizes) or "(width,)"
        wanted += "" if shape is None else f" or {shape}"
        refuse_npy("npy_shape", f"The array should have the shape {wanted}, not {found}")
    expected = header.size + math.prod(found) * header.dtype.itemsize
    if len(body) != expected:
        kind = "ends before" if len(body) < expected else "goes on after"
        refuse_npy("npy_length", f"The body {kind} the array of shape {found} does")
    values: NDArray[Any] = np.frombuffer(body, header.dtype, offset=header.size)
    return values.reshape(found, order="F").ravel() if header.is_by_column else values
