"""Policies that are compiled once in a run of the tests, however many servers start with them.

The digest stands for all that the answer of compiling is made of: the model's files, the schema's
part, the versions. A process for it takes 1 to 3 s of the processor, nearly all of it imports that
the tests' own process has made already.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from policy_server.formats import compiling_process
from policy_server.schema import ServerSchema
from policy_server.settings import Settings

__all__ = ["Compile", "compiling_once"]

Compile = Callable[..., Awaitable[bytes]]


def compiling_once() -> Compile:
    """Return a function that compiles each digest once in this process, and keeps its answers.

    An error is not kept, nor is the answer for a policy without a schema, which has no digest.
    """
    kept: dict[str, bytes] = {}

    async def compile_once(
        folder: Path,
        digest: str,
        schema: ServerSchema | None,
        settings: Settings,
        *,
        is_quiet: bool,  # noqa: ARG001 -- the output of libraries is the tests' own here
    ) -> bytes:
        # What an engine refuses another one may take.
        key = f"{settings.engine} {digest}"
        if not digest or key not in kept:
            part = None if schema is None else schema.policy_part()
            arguments = (folder.resolve(), digest, part, settings.engine)
            answer = await asyncio.to_thread(compiling_process._answer, *arguments)  # noqa: SLF001
            kept[key] = compiling_process._checked(answer)  # noqa: SLF001
        return kept[key]

    return compile_once
