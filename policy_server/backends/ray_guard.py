"""The guard of a Ray: a small process that ends Ray's processes where a killed server could not.

It is started with each Ray, `python -m policy_server.backends.ray_guard SERVER FOLDER`, and does
not import Ray itself. The folder may be removed meanwhile: the guard reads nothing in it.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from policy_server.backends.ray_processes import GUARD, Process, end_ray_in, server_of

__all__ = ["start_guard"]

_LOOK_EVERY_S = 0.25


def start_guard(folder: Path) -> subprocess.Popen[bytes]:
    """Start the guard of a Ray.

    Args:
        folder: the Ray's, as `make_rays_folder` returned it.

    Raises:
        OSError, ValueError: if the folder does not say whose Ray it is.
    """
    # The guard, which runs this file too, reads no settings.
    from policy_server.child_environment import environment_of_child

    # In a session of its own: a Ctrl+C is for the server.
    return subprocess.Popen(  # noqa: S603 -- this interpreter and a module of ours
        [sys.executable, "-m", GUARD, str(server_of(folder)), str(folder)],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment_of_child(),
        start_new_session=True,
    )


def guard(server: Process, folder: Path) -> None:
    """Wait until the server of a Ray has ended, and end what it has left.

    Args:
        server: the process that the Ray may not outlive; one that ends its Ray ends the guard too.
        folder: the Ray's.
    """
    while server.is_running():
        time.sleep(_LOOK_EVERY_S)
    end_ray_in(folder)


if __name__ == "__main__":
    guard(Process.read(sys.argv[1]), Path(sys.argv[2]))
