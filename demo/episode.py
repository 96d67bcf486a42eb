"""An episode that is played here, and whose actions a server decides."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from demo.examples import make_environment
from demo.pictures import draw
from demo.played import Played
from demo.server_client import AnswerKind
from policy_server.commands.games import ALONE, game_of
from policy_server.commands.served_policies import team_body

__all__ = ["Episode"]


class Episode:
    """One episode of an example's environment.

    Attributes:
        name: the example's.
        observations: the next ones, by agent, as the server takes them.
        rewards: of each step so far, by agent.
        actions: of the last answers, by agent; none before the first step.
        is_over: whether the episode has ended.
    """

    def __init__(self, name: str, *, seed: int) -> None:
        """Own an environment, from its first state on.

        Args:
            name: the example's.
            seed: of the episode.

        Raises:
            SettingsError: if the environment needs a package that is not installed.
        """
        self.name = name
        self._environment = make_environment(name)
        self._game = game_of(self._environment)
        self.observations = self._game.reset(seed)
        self.rewards: list[dict[str, float]] = []
        self.actions: dict[str, list[Any]] = {}
        self.is_over = False
        # One version of the policy answers all steps.
        self._id = secrets.token_hex(8)

    @property
    def agents(self) -> Sequence[str]:
        """Return the names of all agents; `ALONE` where there is no other."""
        return self._game.agents

    def rewards_of(self, agent: str) -> list[float]:
        """Return an agent's reward of each step so far.

        Args:
            agent: its name.
        """
        return [rewards.get(agent, 0.0) for rewards in self.rewards]

    def step(self, played: Played, *, is_deterministic: bool, session: str = "") -> None:
        """Take one step of all agents with the actions that a server answers.

        Args:
            played: the policies of the agents.
            is_deterministic: take the policies' modes instead of draws.
            session: the name of the session that keeps the episode's memory; empty for none.

        Raises:
            RefusalError: if the server can't be reached, or refuses; the episode is as it was.
        """
        kind: AnswerKind = "predict_deterministic" if is_deterministic else "predict"
        ask = self._ask_alone if played.agents is None else self._ask_team
        actions = ask(played, kind, session)
        self.observations, rewards, self.is_over = self._game.step(
            {agent: self._game.action_from(agent, found) for agent, found in actions.items()}
        )
        self.actions = actions
        self.rewards.append(rewards)

    def _ask_alone(self, played: Played, kind: AnswerKind, session: str) -> dict[str, list[Any]]:
        answer = played.client.ask(
            kind,
            self.observations[ALONE],
            session=session,
            step=len(self.rewards),
            previous_reward=self.rewards[-1][ALONE] if self.rewards else None,
            episode=self._id,
        )
        return {ALONE: answer["actions"]}

    def _ask_team(self, played: Played, kind: AnswerKind, session: str) -> dict[str, list[Any]]:
        body, is_flat = team_body(
            self.observations,
            self.rewards[-1] if self.rewards and session else {},
            [agent for agent in self.agents if played.takes_reward(agent)],
        )
        answers = played.client.ask(
            kind,
            body,
            is_flat=is_flat,
            session=session,
            step=len(self.rewards),
            episode=self._id,
        )
        return {agent: answer["actions"] for agent, answer in answers.items()}

    def picture(self) -> str | None:
        """Return an SVG of the environment's state; None where there is no picture of it."""
        return draw(self.name, self._environment, self.observations)
