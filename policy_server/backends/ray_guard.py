"""The guard of a Ray: a small process that ends Ray's processes where a killed server could not.

It is started with each Ray, `python -m policy_server.backends.ray_guard FOLDER`, and does not
import Ray itself.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from policy_server.backends.ray_processes import GUARD, end_ray_in, server_of

__all__ = ["start_guard"]

_LOOK_EVERY_S = 0.25


def start_guard(folder: Path) -> subprocess.Popen[bytes]:
    """Start the guard of a Ray.

    Args:
        folder: the Ray's, as `make_rays_folder` returned it.
    """
    # In a session of its own: a Ctrl+C is for the server.
    return subprocess.Popen(  # noqa: S603 -- this interpreter and a module of ours
        [sys.executable, "-m", GUARD, str(folder)],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def guard(folder: Path) -> None:
    """Wait until the server of a Ray has ended, and end what it has left.

    Args:
        folder: the Ray's; the guard ends with it.
    """
    try:
        server = server_of(folder)
    except (OSError, ValueError):
        return
    while server.is_running():
        if not folder.exists():
            return
        time.sleep(_LOOK_EVERY_S)
    end_ray_in(folder)


if __name__ == "__main__":
    guard(Path(sys.argv[1]))
