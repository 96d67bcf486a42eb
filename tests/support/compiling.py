"""Policies that are compiled once in a run of the tests, however many servers start with them.

Compiling takes a process of 1 to 3 s of the processor, nearly all of it imports, and the digest
stands for all that its answer is made of: the model's files, the schema's part, the versions.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from policy_server.schema import ServerSchema
from policy_server.settings import Settings

__all__ = ["Compile", "compiling_once"]

Compile = Callable[..., Awaitable[bytes]]


def compiling_once(compile_anew: Compile) -> Compile:
    """Return a function that asks another one once for each digest, and keeps its answers.

    Args:
        compile_anew: runs the process. An error of its own is not kept, nor is the answer for a
            policy without a schema, which has no digest.
    """
    kept: dict[str, bytes] = {}

    async def compile_once(
        folder: Path,
        digest: str,
        schema: ServerSchema | None,
        settings: Settings,
        *,
        is_quiet: bool,
    ) -> bytes:
        # What an engine refuses another one may take.
        key = f"{settings.engine} {digest}"
        if not digest or key not in kept:
            content = await compile_anew(folder, digest, schema, settings, is_quiet=is_quiet)
            kept[key] = content
        return kept[key]

    return compile_once
