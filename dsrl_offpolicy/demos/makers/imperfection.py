"""How scripted experts err on purpose."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dsrl_offpolicy.configs.jobs import DemosConfig

SETTINGS = (
    "demo_steps", "action_noise", "noise_correlation", "wrong_goal_prob", "wrong_goal_offset", "wrong_goal_mirror",
)  # fmt: skip
"""Settings that every scripted expert reads."""


@dataclass(frozen=True)
class Imperfection:
    """How a demonstrator errs.

    Attributes:
        action_noise: standard deviation of the noise on every action dimension.
        noise_correlation: of that noise from one env step to the next (an AR(1) process), in [0, 1).
        wrong_goal_prob: probability that an episode chases a wrong sub-goal from start to end.
        wrong_goal_offset: metres; in such an episode the expert is shown the object moved by this vector,
            with the signs of ``wrong_goal_mirror`` axes drawn at random.
        wrong_goal_mirror: whether the offset's sign is drawn anew for every such episode.
    """

    action_noise: float
    noise_correlation: float
    wrong_goal_prob: float
    wrong_goal_offset: tuple[float, float, float]
    wrong_goal_mirror: bool

    @classmethod
    def of(cls, config: DemosConfig) -> Imperfection:
        """Take the errors from the settings of ``dsrl demos``."""
        return cls(
            config.action_noise,
            config.noise_correlation,
            config.wrong_goal_prob,
            config.wrong_goal_offset,
            config.wrong_goal_mirror,
        )

    def draw_offset(self, rng: np.random.Generator) -> np.ndarray:
        """Return ``[3]``: by how much the next episode misplaces its sub-goal, zero where it does not."""
        if rng.random() >= self.wrong_goal_prob:
            return np.zeros(3)
        sign = rng.choice([-1.0, 1.0]) if self.wrong_goal_mirror else 1.0
        return sign * np.asarray(self.wrong_goal_offset)


class CorrelatedNoise:
    """The AR(1) noise on one episode's actions."""

    def __init__(self, imperfection: Imperfection, dim: int, rng: np.random.Generator) -> None:
        self._rho = imperfection.noise_correlation
        self._scale = imperfection.action_noise
        self._rng = rng
        self._value = np.zeros(dim)

    def draw(self) -> np.ndarray:
        """Return ``[dim]`` for the next env step."""
        fresh = self._rng.standard_normal(len(self._value)) * np.sqrt(1 - self._rho**2)
        self._value = self._rho * self._value + fresh
        return self._scale * self._value
