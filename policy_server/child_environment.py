"""The environment of child processes: the server's own without its secrets.

A process that reads a model file, or that generates libraries, needs no access key and no
credentials of a cloud: its environment shows them to whatever it runs, and to who looks at it.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from policy_server.settings import ENV_PREFIX, SECRET_VARIABLES, without_variables

__all__ = ["environment_of_child", "is_secret", "whole_environment", "without_secrets"]

# Those of clouds, and words by which people name secrets: DB_PASS, PGPASSWORD, HF_TOKEN.
_NAMES_OF_SECRETS = re.compile(
    r"^(?:AWS|AZURE|GCP|GOOGLE)_"
    r"|CREDENTIAL|PASSPHRASE|PASSW|SECRET|(?:ACCESS|API|PRIVATE)KEY"
    r"|(?:^|_)(?:AUTH|COOKIES?|DSN|JWT|KEYS?|PAT|SAS|TOKENS?)(?:_|$)|_PWD(?:_|$)|(?:PASS|TOKEN)$"
)
# Addresses with a name and a password, or with a signature; and lists of a connection's settings.
_ADDRESSES_WITH_SECRETS = re.compile(
    r"://[^/?#\s]+@|[?&][^=&\s]*(?:credential|key|passw|secret|sig|token)[^=&\s]*="
    r"|(?:^|[;,\s])(?:accountkey|password|pwd|sharedaccesskey)\s*=",
    re.IGNORECASE,
)
# Ray's processes know each other by its token.
_OF_RAY = "RAY_"
_ROOT = Path(__file__).parents[1]
# Held while variables are out of this process's own environment.
_whole = threading.RLock()


def is_secret(name: str, text: str) -> bool:
    """Return whether a variable is a secret, by its name or as an address that holds one.

    Args:
        name: the variable's.
        text: its value.
    """
    name = name.upper()
    if name.startswith(ENV_PREFIX):
        # A setting's name may speak of keys, such as that of a limit.
        return name in SECRET_VARIABLES
    is_named = _NAMES_OF_SECRETS.search(name) is not None
    return is_named or _ADDRESSES_WITH_SECRETS.search(text) is not None


def environment_of_child() -> dict[str, str]:
    """Return the variables of a process that needs no secrets: this one's others.

    It finds this package, whatever its working directory is.
    """
    kept = {name: text for name, text in os.environ.items() if not is_secret(name, text)}
    paths = [str(_ROOT), *filter(None, [kept.get("PYTHONPATH")])]
    return {**kept, "PYTHONPATH": os.pathsep.join(paths)}


@contextmanager
def without_secrets() -> Iterator[None]:
    """Hide the secrets from Ray's processes, which are started while the block runs.

    Ray passes on the environment of the process that starts it. Its own variables stay, with its
    token; `read_settings` finds the settings all the same.
    """
    with _whole, without_variables(_is_hidden_from_ray):
        yield


@contextmanager
def whole_environment() -> Iterator[None]:
    """Have all variables in the environment while the block runs, which may be waited for.

    A library that looks for credentials would find none while `without_secrets` hides them.
    """
    with _whole:
        yield


def _is_hidden_from_ray(name: str, text: str) -> bool:
    return not name.upper().startswith(_OF_RAY) and is_secret(name, text)
