"""Clients of Amazon's and Google's stores, whose libraries take a second to import."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from policy_server.child_environment import whole_environment
from policy_server.installation import require
from policy_server.remote_files.uris import RemoteUri

if TYPE_CHECKING:
    from google.cloud.storage import Client

__all__ = ["google_client", "s3_client"]


def s3_client(uri: RemoteUri, *, silence_s: float) -> Any:  # noqa: ANN401 -- boto3 has no types
    """Return a client of S3, which does not try again by itself.

    Args:
        uri: the address that is asked for, for messages.
        silence_s: how long the store may be silent, in seconds.

    Raises:
        MissingPackageError: if boto3 is not installed.
    """
    require("s3", use=uri.public)
    import boto3
    from botocore.config import Config

    # Retries are ours: they know the deadline.
    config = Config(
        connect_timeout=silence_s, read_timeout=silence_s, retries={"total_max_attempts": 1}
    )
    with whole_environment():
        return boto3.session.Session().client("s3", config=config)


def google_client(uri: RemoteUri) -> Client:
    """Return a client of Google Cloud Storage.

    Args:
        uri: the address that is asked for, for messages.

    Raises:
        MissingPackageError: if Google's library is not installed.
    """
    require("gcs", use=uri.public)
    from google.cloud import storage

    # Reading needs no project, and outside of Google's machines there may be none.
    with whole_environment():
        return storage.Client(project=None)
