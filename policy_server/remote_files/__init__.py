"""Remote models: saved_model.zip and schema.yaml from s3://, gs://, https:// and files.

`uris` reads the addresses, `stores` opens them, `failures` puts their errors into words, `pump`
ends a slow read at the deadline, `download` fetches one file, `fetching` both.
"""

from __future__ import annotations

from policy_server.remote_files.fetching import FetchedFile, PairCheck, bring_files, fetch_files
from policy_server.remote_files.uris import RemoteUri, parse_uri

__all__ = ["FetchedFile", "PairCheck", "RemoteUri", "bring_files", "fetch_files", "parse_uri"]
