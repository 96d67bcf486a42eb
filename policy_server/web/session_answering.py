"""The steps of a session over HTTP: an observation comes in, the next answer of its episode out."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from typing import Any, NamedTuple

import orjson

from policy_server.client_limits import Charge, charge_nobody
from policy_server.serving import Sessions, SessionTurn, StatedStep
from policy_server.serving.memory import EpisodeMemory
from policy_server.web.answering import PolicyAnswering
from policy_server.web.media_types import is_npy
from policy_server.web.route_table import AnswerRoute

__all__ = ["SessionAnswering", "SessionStep", "digest_of", "step_seed"]


def _note_nothing() -> None:
    """Take note of a turn that nobody asks for."""


class SessionStep(NamedTuple):
    """A request for a step of a session.

    Attributes:
        session_id: the session's name.
        number: the number of the step that the client asks for; None for the next one.
        seed: makes the draw reproducible; None for the session's own seed.
        stated: what the client states of the step before.
        content_type: of the body.
        request_id: the name of the request in the logs.
        deadline: the client's own, by `time.perf_counter`; None for none.
        charge: counts the agents of a team behind the first.
        note_turn: is called when the request has its session for itself.
    """

    session_id: str
    number: int | None
    seed: int | None
    stated: StatedStep
    content_type: str
    request_id: str
    deadline: float | None = None
    charge: Charge = charge_nobody
    note_turn: Callable[[], None] = _note_nothing

    def digest(self, route: AnswerRoute, body: bytes) -> bytes:
        """Return the digest of the request; see `digest_of`."""
        options = [route.kind, route.form, self.content_type, self.seed, self.stated]
        return digest_of(options, body)


class SessionAnswering:
    """The answers of one policy to the steps of its sessions.

    Attributes:
        policy: answers observations.
        sessions: the policy's.
    """

    def __init__(self, policy: PolicyAnswering) -> None:
        """Own nothing: the sessions are the store's.

        Args:
            policy: answers observations.
        """
        self.policy = policy
        self.sessions = Sessions(policy.slot)

    async def answer(
        self, route: AnswerRoute, body: bytes, step: SessionStep
    ) -> tuple[bytes, list[tuple[bytes, bytes]]]:
        """Answer the observation in a request's body by a step of its session.

        Args:
            route: the route that is asked.
            body: the observation; see `PolicyAnswering.answer`.
            step: the request.

        Returns:
            The JSON of the answer, and the headers that tell of it.

        Raises:
            PolicyServerError: as the session, its turn and the policy raise it.
        """
        digest = step.digest(route, body)
        async with self.sessions.turn(step.session_id, deadline=step.deadline) as turn:
            step.note_turn()
            memory = turn.memory
            seed = step_seed(route, step.seed, turn)

            async def make() -> bytes:
                found = await self.policy.answer(
                    route.kind,
                    body,
                    is_raw=route.is_raw,
                    is_npy=is_npy(step.content_type),
                    seed=seed,
                    request_id=step.request_id,
                    memory=memory,
                    stated=step.stated,
                    deadline=step.deadline,
                )
                return found.text

            text, number = await turn.answer(step.number, digest, make)
        return text, [memory.version.header, (b"x-step", b"%d" % number)]


def step_seed(route: AnswerRoute, seed: int | None, turn: SessionTurn[EpisodeMemory]) -> int | None:
    """Return the seed of a step: the request's own, or for a draw that of the session.

    Args:
        route: the route that is asked.
        seed: the request's; None for none.
        turn: the session's.
    """
    return turn.memory.step_seed if seed is None and route.kind == "predict" else seed


def digest_of(options: list[Any], body: bytes) -> bytes:
    """Return a digest of a request, which tells it from another one with the same `x-step`.

    Args:
        options: all that its answer depends on beside the body; values that JSON has.
        body: its body.
    """
    return blake2b(orjson.dumps(options) + body, digest_size=16).digest()
