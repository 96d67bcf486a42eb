"""The texts that the servers of one cluster share, such as which versions are deployed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

__all__ = ["SharedRecords"]


class SharedRecords(Protocol):
    """Texts by keys, each with folders of files that belong to it; its methods block."""

    def read(self, key: str) -> str | None:
        """Return a text; None where there is none, or the cluster has lost it.

        Args:
            key: the text's.

        Raises:
            NotReadyError: if the cluster does not answer.
        """

    def write(
        self, key: str, text: str, *, before: str | None, folders: Mapping[str, Path]
    ) -> bool:
        """Replace a text and its folders, unless another server has replaced the text meanwhile.

        Args:
            key: the text's.
            text: the new one.
            before: the text that is to be replaced; None for none.
            folders: all folders that belong to the new text, by names of their own. Those that
                belong to the old text are not sent again, nor are those that are not there;
                others of the old text are removed.

        Returns:
            Whether the text was replaced.

        Raises:
            NotReadyError: if the cluster does not answer.
        """

    def fetch(self, key: str, name: str, target: Path) -> bool:
        """Copy a folder that belongs to a text.

        Args:
            key: the text's.
            name: the folder's.
            target: an empty folder.

        Returns:
            Whether there is such a folder.

        Raises:
            NotReadyError: if the cluster does not answer.
            OSError: if the files can't be written.
        """
