"""Where the actions of an episode come from: a served policy, asked over HTTP, or chance."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import orjson

from policy_server.commands.client import PolicyClient
from policy_server.commands.games import ALONE, Game
from policy_server.errors import ServerAnswerError

__all__ = ["Asking", "OpenPlayer", "Player", "random_player", "served_player"]

_LARGEST_SEED = 2**63 - 1


class Player(Protocol):
    """Gives the actions of the episodes that one thread plays."""

    def begin(self) -> None:
        """Begin an episode."""

    def act(
        self,
        observations: Mapping[str, Any],
        rewards: Mapping[str, float],
        generator: np.random.Generator,
    ) -> dict[str, Any]:
        """Return the agents' actions.

        Args:
            observations: by agent, as a server takes them.
            rewards: of the step before; empty in the first one.
            generator: the source of all that is drawn.
        """


OpenPlayer = Callable[[Game], AbstractContextManager[Player]]


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How a served policy is asked.

    Attributes:
        is_deterministic: for the mode instead of a draw.
        has_seeds: whether draws are seeded; not where a policy draws inside its own graph.
        has_memory: whether each episode is asked in a session, which keeps the policy's memory.
    """

    is_deterministic: bool
    has_seeds: bool
    has_memory: bool

    def seed(self, generator: np.random.Generator) -> int | None:
        """Return the seed of the next draw; None where there is none."""
        if self.is_deterministic or not self.has_seeds:
            return None
        return int(generator.integers(_LARGEST_SEED))

    @property
    def kind(self) -> str:
        """Return the kind of answer."""
        return "predict_deterministic" if self.is_deterministic else "predict"


class _Served:
    """The policy of the one agent, with a session where it has a memory."""

    def __init__(self, client: PolicyClient, game: Game, asking: Asking) -> None:
        self._client = client
        self._game = game
        self._asking = asking
        self._session = ""

    def begin(self) -> None:
        if not self._asking.has_memory:
            return
        if self._session:
            self._client.post(f"{self._session}/reset", b"")
        else:
            begun = self._client.post("/sessions", b"")
            self._session = f"/sessions/{begun['session_id']}"

    def end(self) -> None:
        if self._session:
            self._client.request("DELETE", self._client.prefix + self._session)

    def act(
        self,
        observations: Mapping[str, Any],
        rewards: Mapping[str, float],
        generator: np.random.Generator,
    ) -> dict[str, Any]:
        named = observations[ALONE]
        is_raw = isinstance(named, list)
        body = orjson.dumps({"obs": named} if is_raw else named, option=orjson.OPT_SERIALIZE_NUMPY)
        route = f"{self._session}/{self._asking.kind}{'_raw' if is_raw else ''}"
        # Some policies take it, and the others don't mind.
        headers = {"x-previous-reward": repr(rewards[ALONE])} if rewards and self._session else {}
        answer = self._client.post(route, body, seed=self._asking.seed(generator), headers=headers)
        return {ALONE: self._game.action_from(ALONE, answer["actions"])}


class _Random:
    """Actions drawn uniformly."""

    def __init__(self, game: Game) -> None:
        self._game = game

    def begin(self) -> None:
        """Nothing is kept from episode to episode."""

    def act(
        self,
        observations: Mapping[str, Any],
        rewards: Mapping[str, float],  # noqa: ARG002 -- a player's
        generator: np.random.Generator,
    ) -> dict[str, Any]:
        return {agent: self._game.random_action(agent, generator) for agent in observations}


def served_player(connect: Callable[[], PolicyClient], asking: Asking) -> OpenPlayer:
    """Return the opener of players who ask a server; each has a connection of its own.

    Args:
        connect: opens a connection to the server.
        asking: how the policy is asked.
    """

    @contextmanager
    def open_player(game: Game) -> Iterator[Player]:
        with connect() as client:
            player = _Served(client, game, asking)
            try:
                yield player
            finally:
                # A session that can't be ended expires.
                with suppress(ServerAnswerError):
                    player.end()

    return open_player


@contextmanager
def random_player(game: Game) -> Iterator[Player]:
    """Open a player whose actions are drawn uniformly.

    Args:
        game: the game that is played.
    """
    yield _Random(game)
