"""Stand-ins for the objects and classes that a pickle names, and the error for what is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

__all__ = ["PickleFaultError", "Stub", "stub_class"]


class PickleFaultError(Exception):
    """A pickle asks for something that is refused; the text says what, after the file's name."""


class Stub:
    """A stand-in for an object, or as a class for a class, of the library that wrote a pickle.

    Example: `gymnasium.spaces.Discrete(3)` is read as a Stub whose `path` is
    `gymnasium.spaces.discrete.Discrete` and whose `state` is `{"n": 3, "start": 0, ...}`.

    Attributes:
        path: the name of the class, with its module.
        arguments: the arguments that it was made with.
        named: its keyword arguments.
        state: its attributes by name.
        items: what was appended to it, where it is a list.
        entries: what was set in it, where it is a dictionary.
    """

    path: ClassVar[str] = ""
    arguments: tuple[Any, ...]
    named: dict[str, Any]
    state: dict[str, Any]
    items: list[Any]
    entries: dict[Any, Any]

    @classmethod
    def made(cls, arguments: tuple[Any, ...] = (), named: dict[str, Any] | None = None) -> Self:
        """Return a stand-in for the result of a call; the class's own constructor never runs.

        Args:
            arguments: of the call.
            named: its keyword arguments.
        """
        stub = cls.__new__(cls)
        stub.arguments, stub.named = arguments, {} if named is None else named
        stub.state, stub.items, stub.entries = {}, [], {}
        return stub

    def restore(self, state: object, spend: Callable[[int], None]) -> None:
        """Take over the attributes: of a dictionary, or of one and the slots beside it.

        Args:
            state: as the pickle has it; another kind is left aside.
            spend: told how many attributes are taken over; may refuse.
        """
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, Mapping):
                spend(len(part))
                self.state.update(part)


def stub_class(path: str) -> type[Stub]:
    """Return the stand-in for a class or function of a library.

    Args:
        path: its name, with its module.
    """
    return type(path.rpartition(".")[2], (Stub,), {"path": path})
