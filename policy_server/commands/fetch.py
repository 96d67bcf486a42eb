"""The command `fetch`: a policy from a remote address, with its progress."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from policy_server.commands.command_line import Terminal, progress_bar
from policy_server.errors import SchemaError, SettingsError, UsageError
from policy_server.formats.finding import find_policy
from policy_server.installation import command_for, serving_command
from policy_server.remote_files import PairCheck, fetch_files, parse_uri
from policy_server.schema import find_example_of
from policy_server.servable import check_servable
from policy_server.settings import Settings
from policy_server.telemetry import configure_logging

__all__ = ["fetch"]


def fetch(
    uri: str, schema_uri: str | None, settings: Settings, *, terminal: Terminal
) -> Iterator[str]:
    """Fetch the policy's zip, and schema.yaml if its address is given.

    Args:
        uri: the zip's address.
        schema_uri: the schema's address.
        settings: the folder and the limits.
        terminal: the stream for a progress bar; where it is no terminal, log events are written.

    Yields:
        The lines to print.

    Raises:
        UsageError: if an address can't be used.
        ModelError: if a file can't be fetched, is damaged, or can't be put in place.
        SchemaError: if schema.yaml is wrong, or does not fit the policy.
    """
    try:
        model = parse_uri(uri, name="URI")
        schema = None if schema_uri is None else parse_uri(schema_uri, name="--schema-uri")
    except SettingsError as error:
        raise UsageError(error.message) from error
    # On a terminal the bar and the lines below say the rest.
    level = "WARNING" if terminal.isatty() else settings.log_level
    configure_logging(level=level, log_format=settings.log_format)
    files = fetch_files(
        settings,
        model=model,
        schema=schema,
        check=_check_pair(settings) if schema is None else _check_fetched_pair(settings),
        on_progress=progress_bar(terminal),
    )
    for file in files:
        verb = "fetched" if file.state == "fetched" else "has already"
        yield f"{verb} {file.path}: {file.size} bytes, sha256 {file.sha256}"
        yield f"  from {file.source}"
    draft = command_for("schema --output schema.yaml")
    if not settings.schema_path.exists():
        yield f"draft a schema:    {draft}"
    elif schema is None and (example := find_example_of(settings.schema_path)) is not None:
        yield f"schema.yaml is the example's ({example}); draft your policy's own with"
        yield f"                   {draft}"
    yield f"serve the policy:  {serving_command()}"


def _check_fetched_pair(settings: Settings) -> PairCheck:
    return lambda folder, schema: check_servable(folder, schema, settings)


def _check_pair(settings: Settings) -> PairCheck:
    """Return a check of the fetched policy, by the schema.yaml that is there already."""
    is_first = find_policy(settings) is None

    def check(folder: Path, schema: Path | None) -> None:
        try:
            check_servable(folder, schema, settings)
        except SchemaError as error:
            assert schema is not None, "there is no schema to be wrong"
            # A file that comes with the project must not prevent fetching a first policy.
            if is_first and find_example_of(schema) is not None:
                check_servable(folder, None, settings)
                return
            problem = error.message.partition("; ")[0]
            raise SchemaError(
                f"{problem}; fetch the policy's own schema.yaml with it (--schema-uri)"
            ) from error

    return check
