"""Policy Server on two sockets: `python -m benchmarks.apps.two_sockets PORT PATH`."""

from __future__ import annotations

import socket
import sys

import uvicorn

__all__ = ["main"]


def main() -> None:
    """Serve on both sockets that are named, until a signal ends it."""
    if len(sys.argv) != 3 or not sys.argv[1].isdigit():
        sys.exit("expected a port and a path: python -m benchmarks.apps.two_sockets PORT PATH")
    with (
        socket.create_server(("127.0.0.1", int(sys.argv[1]))) as tcp,
        socket.socket(socket.AF_UNIX) as unix,
    ):
        unix.bind(sys.argv[2])
        uvicorn.Server(uvicorn.Config("app:app", access_log=False)).run([tcp, unix])


if __name__ == "__main__":
    main()
