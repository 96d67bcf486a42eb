"""The encoding of a body that is no JSON in UTF-8, told by its first bytes."""

from __future__ import annotations

import codecs
import re

from policy_server.errors import UnsupportedEncodingError

__all__ = ["UTF8_MARK", "check_encoding"]

# The byte-order mark that some editors and libraries put first; RFC 8259 lets readers pass over it.
UTF8_MARK = codecs.BOM_UTF8

_LAST_ASCII = b"\x7f"
_IN_UTF8 = "send JSON in UTF-8"
# JSON starts with two ASCII characters, so that zeros tell width and order (RFC 4627, section 3).
_OTHERS = (
    (re.compile(rb"\xff\xfe\0\0|\0\0\xfe\xff|\0\0\0[^\0]|[^\0]\0\0\0"), f"UTF-32; {_IN_UTF8}"),
    (re.compile(rb"\xff\xfe|\xfe\xff|\0[^\0]|[^\0]\0"), f"UTF-16; {_IN_UTF8}"),
    (
        re.compile(rb"\x1f\x8b"),
        "packed with gzip, which its headers don't say; add 'content-encoding: gzip'",
    ),
    (re.compile(rb"\x28\xb5\x2f\xfd"), "packed with zstd; send it packed with gzip, or as it is"),
    (
        re.compile(rb"\x93NUMPY"),
        "a NumPy array, which its headers don't say; add 'content-type: application/x-npy'",
    ),
    (re.compile(rb"PK\x03\x04"), f"a zip archive; {_IN_UTF8}"),
)


def check_encoding(body: bytes) -> None:
    """Refuse a body that is no text in UTF-8 from its first byte on, and name its encoding.

    Args:
        body: the whole body, which could not be read as JSON.

    Raises:
        UnsupportedEncodingError: naming the encoding. A wrong byte further inside is a mistake in
            JSON, which has a line and a column.
    """
    for pattern, words in _OTHERS:
        if pattern.match(body):
            raise UnsupportedEncodingError(f"the body is {words}")
    if body[:1] > _LAST_ASCII:
        try:
            body.decode()
        except UnicodeDecodeError as error:
            raise UnsupportedEncodingError(f"the body is no text in UTF-8; {_IN_UTF8}") from error
