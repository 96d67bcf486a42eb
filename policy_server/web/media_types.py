"""The media types that change how a body is read: JSON, and arrays in npy format."""

from __future__ import annotations

__all__ = ["JSON", "NPY", "is_npy", "media_type"]

JSON = "application/json"
NPY = "application/x-npy"


def media_type(text: str) -> str:
    """Return a media type without its parameters.

    Args:
        text: such as `application/json; charset=utf-8`.
    """
    return text.partition(";")[0].strip().lower()


def is_npy(content_type: str) -> bool:
    """Return whether a body is an array in npy format, by its header `content-type`.

    Args:
        content_type: the header's value; empty where there is none.
    """
    # The type of nearly all bodies, told at once.
    return content_type not in ("", JSON) and media_type(content_type) == NPY
