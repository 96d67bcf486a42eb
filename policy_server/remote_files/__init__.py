"""Remote models: a policy and its schema.yaml from s3://, gs://, https:// and files.

`uris` reads the addresses, `stores` opens them by `store_clients`, `listing` lists a folder,
`failures` puts the stores' errors into words, `pump` ends a slow read at the deadline, `download`
fetches one file and `folder_download` a folder, `fetching` both files of a server,
`fetch_threads` beside an event loop, and `fetched_files` records where they came from.
"""

from __future__ import annotations

from policy_server.remote_files.fetch_threads import fetch_in_thread, run_in_waiting_loop
from policy_server.remote_files.fetched_files import RECORD_FILE, FetchedFile, is_copy_of
from policy_server.remote_files.fetching import PairCheck, bring_files, fetch_files
from policy_server.remote_files.uris import RemoteUri, parse_uri

__all__ = [
    "RECORD_FILE",
    "FetchedFile",
    "PairCheck",
    "RemoteUri",
    "bring_files",
    "fetch_files",
    "fetch_in_thread",
    "is_copy_of",
    "parse_uri",
    "run_in_waiting_loop",
]
