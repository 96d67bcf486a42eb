"""Unpickle the description of a policy, by a list of names that it may use: no other code runs.

stable-baselines3 keeps spaces, classes and the statistics of VecNormalize as pickles, which may
name any function of any module to be called. Spaces of gym, which stable-baselines3 1.x used,
become gymnasium's: the same classes under another name, which read their older states too.
"""

from __future__ import annotations

import importlib
import io
import pickle
import re
from typing import Any

__all__ = ["ForeignNameError", "MissingNameError", "unpickle"]

_NAMES = {
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.numeric", "_frombuffer"),
    ("collections", "OrderedDict"),
    ("collections", "defaultdict"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    *(("builtins", name) for name in ("dict", "list", "set", "tuple", "int", "float", "bool")),
    ("stable_baselines3.common.running_mean_std", "RunningMeanStd"),
    ("stable_baselines3.common.vec_env.vec_normalize", "VecNormalize"),
}
# A class of these modules is taken if one of its bases has the name beside it.
_CLASSES = {
    re.compile(r"gymnasium\.spaces\.\w+"): "Space",
    re.compile(r"(stable_baselines3|sb3_contrib)\.[\w.]*policies"): "BasePolicy",
    re.compile(r"(stable_baselines3|sb3_contrib)\.common\.torch_layers"): "Module",
    re.compile(r"stable_baselines3\.common\.sb2_compat\.rmsprop_tf_like"): "Optimizer",
    re.compile(r"torch\.nn\.modules\.(activation|linear)"): "Module",
    re.compile(r"torch\.optim\.\w+"): "Optimizer",
}
# Generators of random numbers: no policy needs the ones that its spaces were sampled with.
_UNUSED = re.compile(r"numpy\.random(\.\w+)*|gymnasium\.utils\.seeding")
_RENAMED = (
    (re.compile(r"gym(?=\.)"), "gymnasium"),
    (re.compile(r"numpy\.core(?=\.)"), "numpy._core"),
)


class ForeignNameError(Exception):
    """A pickle names a class or function that is not on the list.

    Attributes:
        name: the name with its module, as in the file.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class MissingNameError(ForeignNameError):
    """A pickle names a class on the list that the installed packages don't have."""


def unpickle(content: bytes) -> Any:  # noqa: ANN401 -- a pickle may hold anything
    """Return the object that a pickle holds.

    Args:
        content: the pickle.

    Raises:
        ForeignNameError: if it names a class or function that is not on the list.
        MissingNameError: if the installed packages lack a class that it names.
        Exception: of other types, if it is damaged.
    """
    return _Unpickler(io.BytesIO(content)).load()


class _Unused:
    """A stand-in for an object that is never used."""

    def __init__(self, *arguments: object) -> None:
        """Drop the arguments of the object."""

    def __setstate__(self, state: object) -> None:
        """Drop the state too."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401 -- a class or a function
        """Return the class or function that the file names, if it is on the list."""
        stated = f"{module}.{name}"
        for old, new in _RENAMED:
            module = old.sub(new, module) if old.match(module) else module
        if _UNUSED.fullmatch(module):
            return _Unused
        base = next((base for known, base in _CLASSES.items() if known.fullmatch(module)), None)
        if base is None and (module, name) not in _NAMES:
            raise ForeignNameError(stated)
        try:
            found = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise MissingNameError(stated) from error
        bases = [known.__name__ for known in found.__mro__] if isinstance(found, type) else []
        if base is not None and base not in bases:
            raise ForeignNameError(stated)
        return found
