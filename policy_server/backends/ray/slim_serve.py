"""Ray without packages that it imports wherever they are installed.

With pandas and pyarrow it could answer data frames and Arrow tables, which no policy does: they
take some 50 MB of each process of Ray Serve's: the web process, the controller and every replica.
rfc3987_syntax, a checker that jsonschema looks for, keeps each process of Ray's busy for a second
at its import, with a grammar that Ray never asks for. jsonschema itself takes 3 MB and 50 ms of
each: Ray checks by it what plugins of runtime environments are told, and a server's has none.
"""

from __future__ import annotations

import importlib
from contextlib import AbstractContextManager
from pathlib import Path

from policy_server.lean_imports import built_when_used, without_collections, without_packages

__all__ = ["import_serve", "without_data_frames", "write_left_out"]

_DATA_FRAMES = ("pandas", "pyarrow")
_CHECKERS = ("rfc3987_syntax",)
# Loaded when they are first used.
_LATE = ("jsonschema",)
_LOADED_LATE = """import sys
from importlib.machinery import PathFinder
from importlib.util import LazyLoader, module_from_spec

others = [path for path in sys.path if path != {folder!r}]
spec = PathFinder.find_spec({name!r}, others)
if spec is None:
    raise ModuleNotFoundError("No module named {name}", name={name!r})
spec.loader = LazyLoader(spec.loader)
sys.modules[{name!r}] = module_from_spec(spec)
spec.loader.exec_module(sys.modules[{name!r}])
"""


def without_data_frames() -> AbstractContextManager[None]:
    """Hide pandas and pyarrow from this thread while the block runs, unless they are there already.

    The web process may be another program's, which gets all other packages as they are.
    """
    return without_packages(*_DATA_FRAMES)


def import_serve() -> None:
    """Import Ray Serve, without pandas unless that is there already."""
    with without_data_frames(), built_when_used(), without_collections():
        importlib.import_module("ray.serve")


def write_left_out(folder: Path) -> None:
    """Fill a folder for the PYTHONPATH: where it comes first, packages are hidden or loaded late.

    Args:
        folder: the folder to make.
    """
    folder.mkdir()
    for name in (*_DATA_FRAMES, *_CHECKERS):
        line = f'raise ModuleNotFoundError("{name} is kept out of Ray", name="{name}")\n'
        (folder / f"{name}.py").write_text(line)
    for name in _LATE:
        text = _LOADED_LATE.format(name=name, folder=str(folder))
        (folder / f"{name}.py").write_text(text)
