"""The operations of a pickle, carried out on plain values, arrays of numbers and stand-ins.

Python's own unpickler calls whatever its stack holds, sets attributes of whatever it finds there,
and hashes whatever is a key. Here each operation is one of ours, and what it may touch is checked.

Source: `pickletools`, which describes the operations and reads their arguments.
"""

from __future__ import annotations

# Python imports the codec of the first protocol's texts where it first meets one; here none is.
import encodings.raw_unicode_escape  # noqa: F401 -- as said
import pickletools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.formats.pickles.budget import Budget, Maker, checked_key, checked_literal
from policy_server.formats.pickles.makers import restore_array, restore_dtype
from policy_server.formats.pickles.stubs import PickleFaultError, Stub

__all__ = ["Machine"]

# Real policies have some thousands; weights are few operations with long arguments.
_MOST_OPERATIONS = 500_000
_NEWEST_PROTOCOL = 5
_SPARE_BYTES = 1024 * 1024
# The fewest that an attribute of an object takes in a pickle.
_ATTRIBUTE_BYTES = 4
_LONGEST_NAME = 1024


class Machine:
    """One reading of one pickle, with its stack and the objects that it keeps by number."""

    def __init__(
        self,
        content: bytes,
        names: Callable[[str], Any],
        tensors: Callable[[Any], NDArray[Any]] | None,
    ) -> None:
        """Own the stack, for one reading.

        Args:
            content: the pickle.
            names: gives the stand-in or the maker for a dotted name, or refuses it.
            tensors: gives the numbers that a persistent id stands for; None to refuse such ids.
        """
        self._content = content
        self._names = names
        self._tensors = tensors
        self._budget = Budget(2 * len(content) + _SPARE_BYTES)
        self._stack: list[Any] = []
        # The stacks below each mark.
        self._below: list[list[Any]] = []
        self._kept: dict[int, Any] = {}

    def run(self) -> Any:  # noqa: ANN401 -- a pickle may hold anything
        """Return the data that the pickle makes.

        Raises:
            PickleFaultError: if an operation is refused or makes no sense, or there are too many.
            IndexError: if it takes more from the stack than there is.
        """
        operations: Iterator[tuple[pickletools.OpcodeInfo, Any, int | None]]
        operations = pickletools.genops(self._content)
        for number, (operation, argument, _) in enumerate(operations):
            name = operation.name
            if name == "STOP":
                return self._stack.pop()
            if number >= _MOST_OPERATIONS:
                raise PickleFaultError(f"has more than {_MOST_OPERATIONS} operations")
            if name in _LITERALS:
                self._stack.append(checked_literal(argument))
            elif name in _CONSTANTS:
                self._stack.append(_CONSTANTS[name]())
            elif (carry_out := _OPERATIONS.get(name)) is not None:
                carry_out(self, argument)
            else:
                raise PickleFaultError(f"has the operation {name}")
        raise PickleFaultError("ends without its end")

    def _since_mark(self) -> list[Any]:
        """Return the items above the last mark, and take them and the mark away."""
        items, self._stack = self._stack, self._below.pop()
        return items

    def _protocol(self, version: int) -> None:
        if version > _NEWEST_PROTOCOL:
            raise PickleFaultError(f"has the protocol {version}")

    def _nothing(self, _: object) -> None:
        """Leave aside the size of a frame, which only says how much to read at once."""

    def _mark(self, _: object) -> None:
        self._below.append(self._stack)
        self._stack = []

    def _pop(self, _: object) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._since_mark()

    def _pop_mark(self, _: object) -> None:
        self._since_mark()

    def _double(self, _: object) -> None:
        self._stack.append(self._stack[-1])

    def _get(self, index: int) -> None:
        if index not in self._kept:
            raise PickleFaultError("gets an object that it has not kept")
        self._stack.append(self._kept[index])

    def _put(self, index: int) -> None:
        self._kept[index] = self._stack[-1]

    def _memoize(self, _: object) -> None:
        self._kept[len(self._kept)] = self._stack[-1]

    def _tuple(self, _: object) -> None:
        items = tuple(self._since_mark())
        self._stack.append(items)

    def _tuple_of(self, count: int) -> None:
        items = tuple(self._stack.pop() for _ in range(count))
        self._stack.append(items[::-1])

    def _list(self, _: object) -> None:
        items = self._since_mark()
        self._stack.append(items)

    def _frozenset(self, _: object) -> None:
        items = frozenset(checked_key(item, self._budget) for item in self._since_mark())
        self._stack.append(items)

    def _dict(self, _: object) -> None:
        items = self._since_mark()
        made: dict[Any, Any] = {}
        self._stack.append(made)
        self._set_items_of(made, items)

    def _append(self, _: object) -> None:
        item = self._stack.pop()
        self._add_items_of(self._stack[-1], [item])

    def _append_all(self, _: object) -> None:
        items = self._since_mark()
        self._add_items_of(self._stack[-1], items)

    def _add_items_of(self, target: object, items: list[Any]) -> None:
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, Stub):
            target.items.extend(items)
        else:
            raise PickleFaultError(f"adds to a {type(target).__name__}")

    def _add_to_set(self, _: object) -> None:
        items = self._since_mark()
        target = self._stack[-1]
        if isinstance(target, set):
            target.update(checked_key(item, self._budget) for item in items)
        else:
            self._add_items_of(target, items)

    def _set_item(self, _: object) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set_items_of(self._stack[-1], [key, value])

    def _set_items(self, _: object) -> None:
        items = self._since_mark()
        self._set_items_of(self._stack[-1], items)

    def _set_items_of(self, target: object, items: list[Any]) -> None:
        entries = target.entries if isinstance(target, Stub) else target
        if not isinstance(entries, dict):
            raise PickleFaultError(f"sets a key of a {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            entries[checked_key(key, self._budget)] = value

    def _name(self, text: str) -> None:
        module, _, name = text.partition(" ")
        self._stack.append(self._names(f"{module}.{name}"))

    def _name_on_stack(self, _: object) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise PickleFaultError("names a class by something other than text")
        # One text may stand in many names.
        if len(module) + len(name) > _LONGEST_NAME:
            raise PickleFaultError(f"has a name of more than {_LONGEST_NAME} characters")
        self._stack.append(self._names(f"{module}.{name}"))

    def _reduce(self, _: object) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        self._stack.append(self._call(function, arguments, {}))

    def _new_with_names(self, _: object) -> None:
        named, arguments, kind = self._stack.pop(), self._stack.pop(), self._stack.pop()
        self._stack.append(self._call(kind, arguments, named))

    def _call(self, function: object, arguments: object, named: object) -> Any:  # noqa: ANN401 -- any result
        if not isinstance(arguments, tuple) or not isinstance(named, dict):
            raise PickleFaultError("calls something without arguments")
        if isinstance(function, type) and issubclass(function, Stub):
            return function.made(arguments, named)
        # A function of the library's gave it, such as one that makes a class.
        if isinstance(function, Stub):
            return Stub.made(arguments, named)
        if not isinstance(function, Maker) or function.make is None or named:
            called = function.path if isinstance(function, Maker) else type(function).__name__
            raise PickleFaultError(f"calls a {called}")
        return function.make(self._budget, arguments)

    def _build(self, _: object) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if isinstance(target, Stub):
            # One tuple may be the state of many objects.
            self._budget.spend(len(state) if isinstance(state, tuple) else 1)
            target.restore(state, self._spend_attributes)
        elif isinstance(target, np.ndarray):
            restore_array(target, state, self._budget)
        elif isinstance(target, np.dtype):
            restore_dtype(target, state)
        # PyTorch keeps versions as an attribute of the dictionary.
        elif not isinstance(target, dict):
            raise PickleFaultError(f"sets attributes of a {type(target).__name__}")

    def _spend_attributes(self, count: int) -> None:
        # One dictionary may be many objects'.
        self._budget.spend(count, item_bytes=_ATTRIBUTE_BYTES)

    def _tensor(self, _: object) -> None:
        if self._tensors is None:
            raise PickleFaultError("has the operation BINPERSID")
        self._stack.append(self._tensors(self._stack.pop()))


_LITERALS = frozenset(
    (
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
        *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "BYTEARRAY8"),
    )
)
_CONSTANTS: Mapping[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
# Those that are in no table are refused: EXT, INST, OBJ, PERSID and buffers outside of the pickle.
_OPERATIONS: Mapping[str, Callable[[Machine, Any], None]] = {
    "PROTO": Machine._protocol,  # noqa: SLF001 -- its own
    "FRAME": Machine._nothing,  # noqa: SLF001 -- its own
    "MARK": Machine._mark,  # noqa: SLF001 -- its own
    "POP": Machine._pop,  # noqa: SLF001 -- its own
    "POP_MARK": Machine._pop_mark,  # noqa: SLF001 -- its own
    "DUP": Machine._double,  # noqa: SLF001 -- its own
    "GET": Machine._get,  # noqa: SLF001 -- its own
    "BINGET": Machine._get,  # noqa: SLF001 -- its own
    "LONG_BINGET": Machine._get,  # noqa: SLF001 -- its own
    "PUT": Machine._put,  # noqa: SLF001 -- its own
    "BINPUT": Machine._put,  # noqa: SLF001 -- its own
    "LONG_BINPUT": Machine._put,  # noqa: SLF001 -- its own
    "MEMOIZE": Machine._memoize,  # noqa: SLF001 -- its own
    "TUPLE": Machine._tuple,  # noqa: SLF001 -- its own
    "LIST": Machine._list,  # noqa: SLF001 -- its own
    "FROZENSET": Machine._frozenset,  # noqa: SLF001 -- its own
    "DICT": Machine._dict,  # noqa: SLF001 -- its own
    "APPEND": Machine._append,  # noqa: SLF001 -- its own
    "APPENDS": Machine._append_all,  # noqa: SLF001 -- its own
    "ADDITEMS": Machine._add_to_set,  # noqa: SLF001 -- its own
    "SETITEM": Machine._set_item,  # noqa: SLF001 -- its own
    "SETITEMS": Machine._set_items,  # noqa: SLF001 -- its own
    "GLOBAL": Machine._name,  # noqa: SLF001 -- its own
    "STACK_GLOBAL": Machine._name_on_stack,  # noqa: SLF001 -- its own
    "REDUCE": Machine._reduce,  # noqa: SLF001 -- its own
    "NEWOBJ": Machine._reduce,  # noqa: SLF001 -- its own
    "NEWOBJ_EX": Machine._new_with_names,  # noqa: SLF001 -- its own
    "BUILD": Machine._build,  # noqa: SLF001 -- its own
    "BINPERSID": Machine._tensor,  # noqa: SLF001 -- its own
    "TUPLE1": lambda machine, _: machine._tuple_of(1),  # noqa: SLF001 -- its own
    "TUPLE2": lambda machine, _: machine._tuple_of(2),  # noqa: SLF001 -- its own
    "TUPLE3": lambda machine, _: machine._tuple_of(3),  # noqa: SLF001 -- its own
}
