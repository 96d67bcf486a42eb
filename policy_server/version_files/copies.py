"""Copies of a version's files that are here already."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from policy_server.formats.finding import format_of_folder
from policy_server.formats.model_files import identify_model
from policy_server.remote_files import RemoteUri, is_copy_of
from policy_server.settings import Settings

__all__ = ["holds", "take_over"]


def holds(models: Path, digest: str) -> bool:
    """Return whether a folder has the policy that was deployed, whatever its store has by now.

    Args:
        models: the folder.
        digest: the start of the policy's digest; empty before it was deployed.
    """
    if not digest or format_of_folder(models) is None:
        return False
    return identify_model(models).version == digest


def take_over(uri: RemoteUri, own: Settings, names: Sequence[str]) -> None:
    """Give a version the files that an earlier server fetched to a folder without an id.

    Args:
        uri: the version's address.
        own: the settings of its folder.
        names: those that the earlier folder may have.
    """
    for name in [name for name in names if name and not own.home.exists()]:
        earlier = own.home.with_name(name)
        if is_copy_of(uri, own.model_copy(update={"home": earlier})):
            # Another process may be first.
            with suppress(OSError):
                earlier.rename(own.home)
