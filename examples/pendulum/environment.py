"""A pendulum that a motor, too weak to lift it at once, has to swing up and keep upright."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

__all__ = ["Pendulum", "make_environment"]

Vector = NDArray[np.float32]


class Pendulum(gymnasium.Env[Vector, Vector]):
    """Ten seconds in 200 steps; physics and reward are those of gymnasium's Pendulum-v1.

    Observation: float32[3], cosine and sine of the angle (0 is upright) and the angular velocity in
    rad/s, between -8 and 8. Action: float32[1], the torque in N m, between -2 and 2. Reward for
    each step: -(angle**2 + 0.1 * velocity**2 + 0.001 * torque**2) with the angle in [-pi, pi].
    """

    max_steps = 200
    max_torque = 2.0
    max_speed = 8.0
    seconds_a_step = 0.05
    gravity = 10.0

    def __init__(self) -> None:
        most = np.array([1.0, 1.0, self.max_speed], np.float32)
        self.observation_space = spaces.Box(-most, most, dtype=np.float32)
        self.action_space = spaces.Box(-self.max_torque, self.max_torque, (1,), np.float32)
        self._angle = self._velocity = 0.0
        self._steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Vector, dict[str, Any]]:
        """Let go at any angle with a small velocity."""
        super().reset(seed=seed, options=options)
        self._angle = float(self.np_random.uniform(-np.pi, np.pi))
        self._velocity = float(self.np_random.uniform(-1.0, 1.0))
        self._steps = 0
        return self._observation(), {}

    def step(self, action: Vector) -> tuple[Vector, float, bool, bool, dict[str, Any]]:
        """Apply a torque for 50 ms."""
        torque = float(np.clip(action[0], -self.max_torque, self.max_torque))
        from_upright = (self._angle + np.pi) % (2 * np.pi) - np.pi
        cost = from_upright**2 + 0.1 * self._velocity**2 + 0.001 * torque**2
        acceleration = 1.5 * self.gravity * np.sin(self._angle) + 3.0 * torque
        velocity = self._velocity + acceleration * self.seconds_a_step
        self._velocity = float(np.clip(velocity, -self.max_speed, self.max_speed))
        self._angle += self._velocity * self.seconds_a_step
        self._steps += 1
        return self._observation(), -cost, False, self._steps >= self.max_steps, {}

    def named_observation(self, observation: Vector) -> dict[str, float]:
        """Return an observation as schema.yaml describes it."""
        names = ("cosine", "sine", "angular_velocity")
        return dict(zip(names, observation.tolist(), strict=True))

    def action_from(self, actions: list[Any]) -> Vector:
        """Return what `step` takes for the `actions` of a server's answer, in N m already."""
        return np.array(actions, np.float32)

    def random_action(self, generator: np.random.Generator) -> Vector:
        """Return an action of the random policy that a trained one has to beat."""
        return generator.uniform(-self.max_torque, self.max_torque, size=1).astype(np.float32)

    def _observation(self) -> Vector:
        return np.array([np.cos(self._angle), np.sin(self._angle), self._velocity], np.float32)


def make_environment() -> Pendulum:
    """Return a new environment."""
    return Pendulum()
