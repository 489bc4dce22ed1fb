"""Record scripted experts that act on the states, imperfect on purpose: what they share whatever the simulator."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from dsrl_offpolicy.configs.jobs import DemosConfig
from dsrl_offpolicy.demos.formats.maniskill_hdf5 import check_new_file, write_demonstrations
from dsrl_offpolicy.demos.maker import Maker
from dsrl_offpolicy.demos.makers import imperfection
from dsrl_offpolicy.demos.makers.imperfection import Imperfection
from dsrl_offpolicy.demos.trajectory import Trajectory
from dsrl_offpolicy.seeding import FIRST_EVALUATION_SEED, numpy_generator
from dsrl_offpolicy.tracking.progress import ProgressReport


@runtime_checkable
class Expert(Protocol):
    """Chooses the actions of one episode."""

    def act(self, obs: np.ndarray) -> np.ndarray:
        """Return the action ``[A]`` in [-1, 1], float32, for a state ``[S]``."""
        ...


def record_episode(
    first_obs: np.ndarray,
    step: Callable[[np.ndarray], tuple[np.ndarray, float, bool, bool, bool]],
    expert: Expert,
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


class ScriptedExperts(Maker):
    """Scripted experts in MuJoCo. Rewards are the simulator's dense ones; the sparse ones follow from ``success``.

    Args:
        make_env: makes the environment of a task, with dense rewards and ended by success.
    """

    demonstrator = "scripted"
    settings = imperfection.SETTINGS
    needs_maniskill = False

    def __init__(self, make_env: Callable[[str], Any]) -> None:
        self._make_env = make_env

    @abstractmethod
    def expert(self, task: str, errors: Imperfection, rng: np.random.Generator) -> Expert:
        """Return the expert of one episode, with its errors drawn from ``rng``."""

    def record(self, config: DemosConfig, path: Path) -> None:
        """Record failures too, and write all at the end."""
        check_new_file(path)
        env = self._make_env(config.env_id)
        errors = Imperfection.of(config)
        rng = numpy_generator(config.seed, "demonstrations")
        seeds = [int(s) for s in rng.integers(FIRST_EVALUATION_SEED, size=config.episodes)]

        def step(action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, bool]:
            obs, reward, terminated, truncated, info = env.step(action)
            return obs, float(reward), info["success"], terminated, truncated

        trajectories: list[Trajectory] = []
        with ProgressReport("demos", config.episodes, "episodes") as progress:
            for seed in seeds:
                expert = self.expert(config.env_id, errors, rng)
                trajectories.append(record_episode(env.reset(seed=seed)[0], step, expert, config.demo_steps))
                if len(trajectories) % 20 == 0 or len(trajectories) == config.episodes:
                    rate = float(np.mean([t.succeeds for t in trajectories]))
                    progress.report(len(trajectories), {"success": rate})
        env.close()
        kwargs = {"obs_mode": "state", "control_mode": self.control_mode, "reward_mode": "dense"}
        kwargs["sim_backend"] = "mujoco"
        env_info = {"env_id": config.env_id, "env_kwargs": kwargs, "max_episode_steps": config.demo_steps}
        write_demonstrations(path, trajectories, env_info, seeds)
