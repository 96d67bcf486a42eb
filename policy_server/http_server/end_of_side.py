"""When a client ended its side of a connection, however late this process reads of it."""

from __future__ import annotations

import socket
import struct
from asyncio import BaseTransport

__all__ = ["ended_behind_s"]

# linux/tcp.h, `tcp_info`: the times since bytes and since an acknowledgement came last, in ms. The
# packet that ends a side has an acknowledgement and no bytes.
_TIMES = struct.Struct("52xII")


def ended_behind_s(transport: BaseTransport) -> float | None:
    """Return how long behind its last bytes a client ended its side, in seconds.

    A process that gets no processor time reads both long after they have come, and one of them
    long after the other.

    Args:
        transport: of the connection, to which nothing was written since those bytes.

    Returns:
        The time, by the kernel; None for other connections than TCP's, and on other systems.
    """
    known = transport.get_extra_info("socket")
    if known is None or known.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    try:
        told = known.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TIMES.size)
        since_bytes, since_end = map(int, _TIMES.unpack(told))
    except (AttributeError, OSError, struct.error):
        return None
    return max(since_bytes - since_end, 0) / 1000
