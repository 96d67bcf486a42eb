"""Read a pickle as data: arrays, plain values, and stand-ins for the objects of a library.

A pickle may name any function of any module to be called. Here only NumPy's arrays and Python's
plain containers are made; an object of the library that wrote the file becomes a `Stub`, which
keeps its class's name and its state, and every other name is refused. No module is imported, and
time and memory are bounded by the pickle's own size: its operations are counted, and so is whatever
one of them may make or read again, such as a long text that stands in many names.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from policy_server.errors import ModelError
from policy_server.formats.pickles.budget import Maker
from policy_server.formats.pickles.extent import check_extent
from policy_server.formats.pickles.machine import Machine
from policy_server.formats.pickles.makers import MAKERS
from policy_server.formats.pickles.stubs import PickleFaultError, Stub, stub_class

__all__ = ["Stub", "unpickle"]

# Real policies name some dozens.
_MOST_NAMES = 1000
_LONGEST_NAME = 120


def unpickle(
    content: bytes,
    subject: str,
    *,
    library: re.Pattern[str],
    tensors: Callable[[Any], NDArray[Any]] | None = None,
) -> Any:  # noqa: ANN401 -- a pickle may hold anything
    """Return the data that a pickle holds.

    Example:
        `unpickle(content, "module.pkl", library=re.compile("ray[.]rllib[.].+"))`.

    Args:
        content: the pickle.
        subject: the file, for messages.
        library: the dotted names (`module.Class`) that are read as stand-ins.
        tensors: gives the numbers that a persistent id of PyTorch's files stands for; without it
            such ids are refused.

    Returns:
        Plain values, NumPy's arrays, and a `Stub` for each object of the library.

    Raises:
        ModelError: if it names any other class or function, or is damaged or too large.
    """
    names = _Names(subject, library)
    try:
        found = Machine(content, names.find, tensors).run()
        check_extent(found, len(content))
    except ModelError:
        raise
    except PickleFaultError as error:
        raise ModelError(f"{subject}: is no pickle that can be read: it {error}") from error
    except MemoryError as error:
        raise ModelError(f"{subject}: needs more memory than there is") from error
    except Exception as error:
        # A damaged pickle fails in many ways; none of them has run a foreign function.
        words = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ModelError(f"{subject}: is no pickle that can be read: {words}") from error
    return found


class _Names:
    """The names of one pickle, and the stand-ins for their classes."""

    def __init__(self, subject: str, library: re.Pattern[str]) -> None:
        self._subject = subject
        self._library = library
        self._classes: dict[str, type[Stub]] = {}

    def find(self, path: str) -> Maker | type[Stub]:
        """Return the stand-in, or the maker of arrays or of plain values, for a name."""
        if path in MAKERS:
            return MAKERS[path]
        if not self._library.fullmatch(path):
            raise ModelError(
                f"{self._subject}: names {_shown(path)}, a class or function that is not the "
                "library's own, and no code of a file is run; train with the library's own classes"
            )
        if path not in self._classes:
            if len(self._classes) >= _MOST_NAMES:
                raise PickleFaultError(f"names more than {_MOST_NAMES} classes")
            self._classes[path] = stub_class(path)
        return self._classes[path]


def _shown(path: str) -> str:
    short = path if len(path) <= _LONGEST_NAME else f"{path[:_LONGEST_NAME]}..."
    return short if short.isprintable() else repr(short)
