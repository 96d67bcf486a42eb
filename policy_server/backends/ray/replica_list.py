"""The list of an application's replicas: each says where it takes calls, by which key, and of what.

It lies in the store of Ray's own head process, so no actor has to live for it, and only programs
that may use Ray can read the keys in it.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import socket
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import ray

from policy_server.backends.ray.call_frames import error_document, error_in
from policy_server.backends.ray.call_notes import remove_note
from policy_server.backends.ray.ray_calls import CallRay
from policy_server.engine.cache import read_signature
from policy_server.errors import PolicyServerError
from policy_server.policy import PolicySignature

__all__ = [
    "ReplicaAddress",
    "ReplicaList",
    "announce",
    "new_socket_path",
    "remove_addresses",
    "remove_left_socket",
]

logger = logging.getLogger(__name__)

_NAMESPACE = "policy_server"
# A new number for entries that older servers don't understand.
_PREFIX = "replicas-2"
_NAME_BYTES = 8
_SOCKET = re.compile(rf"calls-[0-9a-f]{{{2 * _NAME_BYTES}}}")
_PROBE_TIMEOUT_S = 1.0


@dataclass(frozen=True)
class ReplicaAddress:
    """The address at which a replica takes calls.

    Attributes:
        application: the name of the application that it belongs to.
        replica: Ray's name of the replica, its actor's id.
        host: its machine's address; empty where it listens at a path of this machine.
        port: its port there.
        path: the path of its UNIX socket; empty where it listens at a port.
        key: the key that both sides of a connection have to prove.
        actor: the name of its actor, by which Ray tells whether it is alive.
        description: the signature of its policy, or why it could not load the policy.
    """

    application: str
    replica: str
    host: str
    port: int
    path: str
    key: bytes = field(repr=False)
    actor: str = ""
    description: PolicySignature | PolicyServerError | None = None


def announce(address: ReplicaAddress) -> None:
    """Enter a replica into its application's list; blocks.

    Args:
        address: the replica's.

    Raises:
        Exception: Ray's own, if its store does not answer.
    """
    from ray.experimental.internal_kv import _internal_kv_put

    entry = {
        "host": address.host,
        "port": address.port,
        "path": address.path,
        "key": address.key.hex(),
        "actor": address.actor,
        **_described(address.description),
    }
    key = f"{_prefix(address.application)}{address.replica}"
    _internal_kv_put(key, json.dumps(entry), namespace=_NAMESPACE)


def remove_addresses(application: str) -> None:
    """Remove an application's list; blocks, and does nothing where Ray's store has moved.

    Args:
        application: its name.
    """
    try:
        from ray.experimental.internal_kv import _internal_kv_del

        _internal_kv_del(_prefix(application), del_by_prefix=True, namespace=_NAMESPACE)
    except Exception as error:
        # Entries that stay cost a few bytes each.
        logger.info("replicas_not_removed", extra={"reason": repr(error)[:300]})


class ReplicaList:
    """The list of one application's replicas, as a web process reads it."""

    def __init__(
        self, application: str, *, call_ray: CallRay, socket_folder: Path | None = None
    ) -> None:
        """Own copies of the entries that have been read.

        Args:
            application: the application's name.
            call_ray: calls a function that uses Ray, in a thread.
            socket_folder: the folder of its replicas' sockets; None where they listen at ports.
        """
        self._call_ray = call_ray
        self._socket_folder = socket_folder
        self._application = application
        self._known: dict[str, ReplicaAddress] = {}

    async def addresses(self) -> Sequence[ReplicaAddress]:
        """Return the addresses of all replicas; some may have ended.

        Raises:
            Exception: Ray's own, if its store does not answer or has moved.
        """
        found: Sequence[ReplicaAddress] = await self._call_ray(self._read)
        return found

    async def remove_dead(self, address: ReplicaAddress) -> None:
        """Remove a replica that could not be reached, if Ray says that it has ended.

        Args:
            address: the replica's.

        Raises:
            Exception: Ray's own, if its store does not answer or has moved.
        """
        await self._call_ray(self._remove_dead, address)

    def _read(self) -> Sequence[ReplicaAddress]:
        from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_list

        keys = _internal_kv_list(_prefix(self._application), namespace=_NAMESPACE)
        replicas = [key.decode().rpartition("/")[2] for key in keys]
        for key, replica in zip(keys, replicas, strict=True):
            if replica not in self._known and (
                entry := _internal_kv_get(key, namespace=_NAMESPACE)
            ):
                self._known[replica] = _address(self._application, replica, json.loads(entry))
        self._known = {name: self._known[name] for name in replicas if name in self._known}
        return list(self._known.values())

    def _remove_dead(self, address: ReplicaAddress) -> None:
        from ray.experimental.internal_kv import _internal_kv_del

        # First: Ray may not know yet that the replica has ended.
        if self._socket_folder is not None:
            remove_left_socket(address.path, self._socket_folder)
        alive = ray.util.list_named_actors(all_namespaces=True)
        if address.actor not in {actor["name"] for actor in alive}:
            key = f"{_prefix(self._application)}{address.replica}"
            _internal_kv_del(key, namespace=_NAMESPACE)


def new_socket_path(folder: Path) -> Path:
    """Return a path for a replica's socket that no other one has.

    Args:
        folder: the folder of the sockets.
    """
    return folder / f"calls-{secrets.token_hex(_NAME_BYTES)}"


def remove_left_socket(path: str, folder: Path) -> None:
    """Remove the socket of a replica that was killed, and the link to its note.

    It goes only where nobody listens any more.

    The path comes from Ray's store: one of another form, or in another folder, is left alone.

    Args:
        path: the replica's.
        folder: the folder of the sockets.
    """
    name = path.rpartition("/")[2]
    left = folder / name
    if not _SOCKET.fullmatch(name) or path != str(left):
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        if not stat.S_ISSOCK(left.lstat().st_mode):
            return
        probe.settimeout(_PROBE_TIMEOUT_S)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            left.unlink(missing_ok=True)
            remove_note(left)


def _prefix(application: str) -> str:
    return f"{_PREFIX}/{application}/"


def _address(application: str, replica: str, entry: dict[str, Any]) -> ReplicaAddress:
    return ReplicaAddress(
        application,
        replica,
        entry["host"],
        entry["port"],
        entry["path"],
        bytes.fromhex(entry["key"]),
        entry["actor"],
        _description(entry),
    )


def _described(description: PolicySignature | PolicyServerError | None) -> dict[str, Any]:
    if isinstance(description, PolicyServerError):
        return {"failure": error_document(description)}
    return {} if description is None else {"signature": asdict(description)}


def _description(entry: dict[str, Any]) -> PolicySignature | PolicyServerError | None:
    if "failure" in entry:
        return error_in(entry["failure"])
    return read_signature(entry["signature"]) if "signature" in entry else None
