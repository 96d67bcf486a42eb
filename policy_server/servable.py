"""Whether a server could start with a policy and its schema.yaml, before they are in place."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from policy_server.errors import PolicyServerError, SettingsError
from policy_server.formats.compiling_process import check_policy
from policy_server.formats.model_files import identify_model
from policy_server.schema import SchemaFile, ServerSchema, named_as_example, read_schema
from policy_server.settings import Settings

__all__ = ["check_servable", "resolve_api_key"]


def check_servable(
    folder: Path, schema_path: Path | None, settings: Settings, *, policy: str | None = None
) -> None:
    """Refuse a policy and schema.yaml that a start would refuse; Ray is not started.

    Loading the policy takes seconds; a start with the same two files then doesn't do it again, if
    `carry_outcome` brings along the compiled policy in the folder. An event loop may be running.

    Args:
        folder: the unzipped policy.
        schema_path: the schema.yaml to serve it with; None where there is none yet.
        settings: the key, the engine, and how long loading may take.
        policy: the policy's name in a schema.yaml of several; None for the only one.

    Raises:
        SettingsError: if there is no access key.
        ModelError: if the file can't give a policy.
        SchemaError: if schema.yaml is wrong, or disagrees with the policy.
        NotReadyError: if the process that loads the policy dies, or takes too long.
    """
    schema = None if schema_path is None else read_schema(schema_path, policy)
    if schema is not None:
        resolve_api_key(settings, schema)
    try:
        with contextlib.nullcontext() if schema_path is None else named_as_example(schema_path):
            _run(check_policy(identify_model(folder), schema, settings))
    except PolicyServerError as error:
        # The folder is one that its reader has never seen, and that is gone afterwards.
        raise type(error)(error.message.replace(str(folder.resolve()), folder.name)) from error


def resolve_api_key(settings: Settings, schema: ServerSchema | SchemaFile) -> str | None:
    """Return the access key that stands alone: the environment's, else schema.yaml's.

    Args:
        settings: how the server is deployed.
        schema: the contents of schema.yaml.

    Returns:
        The key; None where there are listed keys alone, or no access control.

    Raises:
        SettingsError: if there is no key, and POLICY_SERVER_ALLOW_ANONYMOUS is not true.
    """
    if settings.api_key is not None:
        return settings.api_key.get_secret_value()
    is_closed = any("predict" in key.scopes for key in schema.api_keys)
    if schema.api_key is not None or is_closed or settings.allow_anonymous:
        return schema.api_key
    raise SettingsError(
        f"{schema.source}: parameters.api_key: is missing; set it, or POLICY_SERVER_API_KEY, "
        "or let everybody in with POLICY_SERVER_ALLOW_ANONYMOUS=true"
    )


def _run(work: Coroutine[None, None, None]) -> None:
    """Run a coroutine to its end in a thread, since uvicorn imports the application in its loop."""
    loop = asyncio.new_event_loop()
    task = loop.create_task(work)
    try:
        with ThreadPoolExecutor(1) as executor:
            done = executor.submit(loop.run_until_complete, task)
            try:
                done.result()
            except BaseException:
                # A signal's: the thread ends when its coroutine is cancelled.
                if not done.done():
                    loop.call_soon_threadsafe(task.cancel)
                raise
    finally:
        loop.close()
