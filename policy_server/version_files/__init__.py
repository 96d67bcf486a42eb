"""The files of a policy's versions.

`places` tells where each lies, `files` brings them, and `folders` has processes take turns.
"""

from __future__ import annotations

from policy_server.version_files.kept_files import Fetch, VersionFiles

__all__ = ["Fetch", "VersionFiles"]
