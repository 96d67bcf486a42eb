"""Names and tricks that the public tests of pickle scanners hold: nothing runs, each is one line.

The names are those of picklescan (github.com/mmaitre314/picklescan: its list of dangerous globals,
its tests and published advisories) and of fickling (github.com/trailofbits/fickling: its tests of
bypasses). None of their code is used; the pickles are assembled here.
"""

from __future__ import annotations

import base64
import pickle
import re
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from policy_server.errors import ModelError
from policy_server.formats.pickles.spaces import SPACE_NAMES
from policy_server.formats.pickles.torch_zip import read_tensors
from policy_server.formats.pickles.unpickling import unpickle
from tests.support.audit import audited
from tests.support.folders import ROOT
from tests.support.hostile import global_name
from tests.support.library_policies import unzipped_sb3

LIBRARY = re.compile(SPACE_NAMES)
NAMES = (
    """
os system, os popen, os execvp, os putenv, posix system, nt system, posix popen, commands
getoutput, subprocess Popen, subprocess run, subprocess check_output, subprocess
getstatusoutput, builtins eval, builtins exec, builtins compile, builtins getattr, builtins
setattr, builtins open, builtins breakpoint, builtins __import__, builtins apply, __builtin__
eval, __builtin__ getattr, __builtin__ apply, importlib import_module, importlib.util
spec_from_file_location, runpy run_path, runpy run_module, runpy _run_code, pty spawn, code
InteractiveInterpreter.runcode, code InteractiveInterpreter, bdb Bdb.run, pdb Pdb, cProfile run,
cProfile runctx, profile Profile.run, profile Profile.runctx, timeit timeit, timeit main, trace
Trace.run, doctest debug_script, ensurepip _run_pip, pip main, pip._internal main, venv create,
webbrowser open, ctypes CDLL, ctypes.util find_library, shutil rmtree, shutil copyfile, socket
create_connection, socket socket, ssl get_server_certificate, urllib.request urlopen,
http.client HTTPSConnection, httplib HTTPSConnection, requests.api get, aiohttp ClientSession,
asyncio.unix_events _UnixSubprocessTransport._start, asyncio create_subprocess_shell, operator
attrgetter, operator itemgetter, operator methodcaller, functools partial, types FunctionType,
types CodeType, pickle loads, _pickle loads, pickle Unpickler, marshal loads, io open_code, io
FileIO, sys modules, sys settrace, sys exit, pydoc locate, pydoc pipepager, distutils.file_util
write_file, idlelib.run Executive.runcode, idlelib.pyshell ModifiedInterpreter.runcode,
idlelib.calltip get_entity, idlelib.autocomplete AutoComplete.get_entity, idlelib.debugobj
ObjectTreeItem.SetText, lib2to3.pgen2.grammar Grammar.loads, lib2to3.pgen2.pgen
ParserGenerator.make_label, numpy.f2py.crackfortran getlincoef, numpy.f2py.crackfortran
_eval_length, numpy.testing._private.utils runstring, numpy load, numpy.ctypeslib load_library,
pandas read_pickle, joblib load, torch load, torch.serialization load, torch.hub load,
torch._dynamo.guards GuardBuilder.get, torch._inductor.codecache compile_file,
torch.fx.experimental.symbolic_shapes ShapeEnv.evaluate_guards_expression,
torch.jit.unsupported_tensor_ops execWrapper, torch.utils._config_module
ConfigModule.load_config, torch.utils.bottleneck.__main__ run_cprofile, torch.utils.collect_env
run, torch.utils.data.datapipes.utils.decoder basichandlers, cloudpickle.cloudpickle
_make_function, smtplib SMTP, sqlite3 connect, linecache getline, logging.config listen,
unittest.mock _importer
""".replace("\n", " ")
    .strip()
    .split(", ")
)
TOUCH = b"X" + struct.pack("<I", 9) + b"touch ran"


def ways(name: str, protocol: int) -> Mapping[str, bytes]:
    """Return the ways to call a function, in the operations of a protocol."""
    module, _, attribute = name.partition(" ")
    found = global_name(name, protocol)
    line = f"{module}\n{attribute}\n".encode()
    return {
        "REDUCE": found + b"(" + TOUCH + b"tR.",
        "BUILD": b"cgymnasium.spaces.box\nBox\n)R" + found + b"(" + TOUCH + b"tRb.",
        "OBJ": b"(" + found + TOUCH + b"o.",
        "INST": b"(" + TOUCH + b"i" + line + b".",
        "NEWOBJ": found + b"(" + TOUCH + b"t\x81.",
        "NEWOBJ_EX": found + b"(" + TOUCH + b"t}\x92.",
        "by memo": found + b"q\x00000h\x00(" + TOUCH + b"tR.",
        "name alone": found + b".",
        "thrown away": found + b"(" + TOUCH + b"tR0N.",
        "name of joined texts": b"\x8c\x00X"
        + struct.pack("<I", len(name))
        + name.replace(" ", ".").encode()
        + b"\x93.",
        "name in two encodings": b"V" + module.encode() + b"\nT" + _counted(attribute) + b"\x93.",
        "as the factory of a dictionary": b"ccollections\ndefaultdict\n(" + found + b"tR.",
        "as the class of an array": b"cnumpy.core.multiarray\n_reconstruct\n("
        + found
        + b"K\x00\x85C\x01btR.",
        "behind rubbish": b"N0" * 50 + b"]0}0" + found + b"(" + TOUCH + b"tR.",
        "ends too early": found + b"(" + TOUCH + b"tR",
    }


def _counted(text: str) -> bytes:
    return struct.pack("<i", len(text)) + text.encode()


@pytest.mark.parametrize("name", NAMES)
def test_published_name_is_refused_however_it_is_called(name: str) -> None:
    with audited() as events:
        for protocol in range(6):
            head = b"" if protocol < 2 else bytes([0x80, protocol])
            for body in ways(name, protocol).values():
                with pytest.raises(ModelError, match=r"^x\.pkl: (names|is no pickle)[^\n]+$"):
                    unpickle(head + body, "x.pkl", library=LIBRARY)

    assert events == []


SYSTEM = b"cos\nsystem\n(" + TOUCH + b"tR."
REFUSED = {
    "extension": b"\x80\x02\x82\x01(" + TOUCH + b"tR.",
    "extension by two bytes": b"\x80\x02\x83\x01\x01.",
    "extension by four bytes": b"\x80\x02\x84\x01\x01\x01\x01.",
    "persistent id": b"Pos.system\n.",
    "memo that is not kept": b"\x80\x04h\x05h\x06\x93.",
    "memo that is changed": b"\x80\x04\x8c\x0bcollectionsq\x000"
    b"\x8c\x02osq\x000h\x00\x8c\x06system\x93.",
    "memo of no text": b"\x80\x04K\x01\x94K\x02\x94\x93.",
    "stack that is empty": b"\x80\x04\x93.",
    "modules by a name": b"csys\nmodules\n" + b"X\x02\x00\x00\x00osN" + b"s.",
    "code in the state of a class": b"cgymnasium.spaces.box\nBox\ncos\nsystem\nb.",
    "getattr of an allowed name": b"cbuiltins\ngetattr\n(cnumpy\ndtype\nX\x06\x00\x00\x00__mro_tR.",
    "call of an allowed class's result": b"cnumpy\ndtype\n(X\x02\x00\x00\x00f8tR(tR.",
    "unknown operation": b"\x80\x04\xff.",
    "newer protocol": b"\x80\x06N.",
    "no operation": b"",
}
READ: Mapping[str, tuple[bytes, object]] = {
    "data behind the end": (b"N." + SYSTEM, None),
    "pickle in a pickle": (pickle.dumps({"x": SYSTEM}), {"x": SYSTEM}),
    "pickle in base64": (
        pickle.dumps([base64.b64encode(SYSTEM).decode()]),
        [base64.b64encode(SYSTEM).decode()],
    ),
    "name as text": (pickle.dumps("os.system"), "os.system"),
    "protocol stated twice": (b"\x80\x02\x80\x02N.", None),
}


@pytest.mark.parametrize("trick", REFUSED)
def test_published_trick_is_refused_in_one_line(trick: str) -> None:
    with audited() as events, pytest.raises(ModelError, match=r"^x\.pkl: [^\n]+$"):
        unpickle(REFUSED[trick], "x.pkl", library=LIBRARY)

    assert events == []


@pytest.mark.parametrize("trick", READ)
def test_code_that_is_no_operation_is_data(trick: str) -> None:
    content, expected = READ[trick]
    with audited() as events:
        found = unpickle(content, "x.pkl", library=LIBRARY)

    assert (found, events) == (expected, [])


def test_no_operation_imports_a_module() -> None:
    # Each text in its own encoding, in a process where nothing else has imported the codec.
    program = """
import re, sys
from policy_server.formats.pickles.unpickling import unpickle
before = {*sys.modules}
for line in sys.stdin:
    unpickle(bytes.fromhex(line), "x.pkl", library=re.compile("x"))
print(sorted({*sys.modules} - before))
"""
    texts = (
        *(b"V\\u00e4\n.", b"S'\\x41'\n.", b"T\x01\x00\x00\x00A.", b"U\x01A.", b"F1.5\n."),
        *(b"X\x01\x00\x00\x00A.", b"\x8c\x01A.", b"I01\n.", b"L5L\n."),
        b"c_codecs\nencode\n(X\x01\x00\x00\x00AX\x06\x00\x00\x00latin1tR.",
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        input="\n".join(content.hex() for content in texts),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.strip() == "[]"


def _flagged(flag: int) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        """Set a flag of each member in the directory alone, as a reader that trusts it sees."""
        changed = bytearray(content)
        for found in re.finditer(b"PK\x01\x02", content):
            changed[found.start() + 8] |= flag
        return bytes(changed)

    return change


def _renamed(content: bytes) -> bytes:
    """Give the pickle another name at its place than in the directory."""
    assert b"archive/data.pkl" in content
    return content.replace(b"archive/data.pkl", b"archive/data.txt", 1)


def _wrong_check(content: bytes) -> bytes:
    """Change the sum that each member is checked by."""
    changed = bytearray(content)
    for found in re.finditer(b"PK\x01\x02", content):
        changed[found.start() + 16] ^= 0xFF
    return bytes(changed)


@pytest.mark.parametrize(
    "change",
    [_flagged(0x1), _flagged(0x20), _flagged(0x40), _renamed, _wrong_check],
    ids=["encrypted", "patched", "strongly-encrypted", "two-names", "wrong-sum"],
)
def test_zip_that_readers_disagree_about_is_refused_in_one_line(
    change: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    path = unzipped_sb3("sb3_ppo_gsde", tmp_path) / "policy.pth"
    path.write_bytes(change(path.read_bytes()))
    assert zipfile.is_zipfile(path)

    with audited() as events, pytest.raises(ModelError, match=r"^policy\.pth: [^\n]+$"):
        read_tensors(path)

    assert not any("exec" in event or "import" in event for event in events)
