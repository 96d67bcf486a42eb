"""A call of a web process to replicas, and its loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from policy_server.backends.ray.call_frames import Frame
from policy_server.policy import PolicyInputs, PolicyOutputs

if TYPE_CHECKING:
    from policy_server.backends.ray.connected_replica import ConnectedReplica

__all__ = ["AskedCall", "ConnectionLostError"]


class ConnectionLostError(Exception):
    """A replica's connection ended before the answer: the call is made again by another one.

    Attributes:
        was_computed: whether the replica had said that it computes this call.
    """

    def __init__(self, *, was_computed: bool = False) -> None:
        super().__init__()
        self.was_computed = was_computed


@dataclass(eq=False, slots=True)
class AskedCall:
    """A call that has been sent and not been answered.

    Attributes:
        number: its number, which no other call of the application has, of any process.
        inputs: its inputs.
        frame: its frame.
        rows: how many rows it has.
        answered: takes the outputs, or the error.
        asked: when it was asked, by `time.monotonic`.
        look_at: when it is late, by the same clock.
        deadline: when it is given up.
        replicas: those that compute it.
        first: the one that was asked first.
        is_watched: whether the replicas tell when they begin with it.
        is_alone: whether no more than one replica may compute it at a time.
        begun: those that have.
        is_answered: whether an answer has come.
    """

    number: int
    inputs: PolicyInputs
    frame: Frame
    rows: int
    answered: Callable[[PolicyOutputs | Exception], None]
    asked: float
    look_at: float
    deadline: float
    replicas: list[ConnectedReplica] = field(default_factory=list)
    first: ConnectedReplica | None = None
    is_watched: bool = False
    is_alone: bool = False
    begun: list[ConnectedReplica] = field(default_factory=list)
    is_answered: bool = False

    def withdraw(self) -> None:
        """Tell the replicas that compute it that it is not needed."""
        for replica in self.replicas:
            replica.withdraw(self)
        self.replicas.clear()
