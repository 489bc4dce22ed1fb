"""How scripted experts err on purpose, and demonstrations from MetaWorld's."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dsrl_offpolicy.demos.trajectory import Trajectory
from dsrl_offpolicy.errors import InputError

OBJECT_POSITION = slice(4, 7)
"""Where MetaWorld's observation holds the first object's position, on which every expert relies."""


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

    def draw_offset(self, rng: np.random.Generator) -> np.ndarray:
        """``[3]``: by how much the next episode misplaces its sub-goal, zero where it does not."""
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
        """``[dim]`` for the next env step."""
        fresh = self._rng.standard_normal(len(self._value)) * np.sqrt(1 - self._rho**2)
        self._value = self._rho * self._value + fresh
        return self._scale * self._value


class ScriptedExpert:
    """A MetaWorld expert for one episode, with the errors drawn from ``rng``."""

    def __init__(self, task: str, imperfection: Imperfection, rng: np.random.Generator) -> None:
        from metaworld.policies import ENV_POLICY_MAP

        if task not in ENV_POLICY_MAP:
            raise InputError(f"env_id: expected a MetaWorld task with a scripted expert, got {task!r}")
        self._policy = ENV_POLICY_MAP[task]()
        self._offset = imperfection.draw_offset(rng)
        self._noise = CorrelatedNoise(imperfection, 4, rng)

    def act(self, obs: np.ndarray) -> np.ndarray:
        """The action ``[4]`` in [-1, 1] for an observation ``[39]``."""
        seen = obs.astype(np.float64)
        seen[OBJECT_POSITION] += self._offset
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "constants may be too high", from the package's own experts
            action = self._policy.get_action(seen)
        action = np.clip(action, -1, 1) + self._noise.draw()
        return np.clip(action, -1, 1).astype(np.float32)


def record_episode(
    first_obs: np.ndarray,
    step: Callable[[np.ndarray], tuple[np.ndarray, float, bool, bool, bool]],
    expert: ScriptedExpert,
    max_steps: int,
) -> Trajectory:
    """Run one expert until it succeeds, the environment ends the episode, or it gives up after ``max_steps``.

    Args:
        first_obs: observation after the reset.
        step: returns observation, reward, success, terminated and truncated.
        expert: chooses the actions.
        max_steps: env steps; an episode given up counts as truncated.
    """
    obs = [first_obs]
    rows: list[tuple[np.ndarray, float, bool, bool, bool]] = []
    while len(rows) < max_steps:
        action = expert.act(obs[-1])
        next_obs, reward, success, terminated, truncated = step(action)
        obs.append(next_obs)
        given_up = len(rows) == max_steps - 1 and not success
        rows.append((action, reward, success, terminated, truncated or given_up))
        if success or terminated or truncated:
            break
    actions, rewards, successes, terminations, truncations = zip(*rows, strict=True)
    return Trajectory(
        obs=np.stack(obs),
        actions=np.stack(actions),
        success=np.asarray(successes, dtype=bool),
        terminated=np.asarray(terminations, dtype=bool),
        truncated=np.asarray(truncations, dtype=bool),
        rewards=np.asarray(rewards, dtype=np.float32),
    )
