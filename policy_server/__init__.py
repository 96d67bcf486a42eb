"""Policy Server: a trained reinforcement-learning policy behind a URL.

Importing this imports nothing else; `create_app` and `SharedBackends` bring the rest when they are
asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from policy_server.embedding import SharedBackends, create_app

__all__ = ["SharedBackends", "__version__", "create_app"]

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name not in ("SharedBackends", "create_app"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from policy_server import embedding

    found: object = getattr(embedding, name)
    return found
