"""Run one action chunk correctly: the step of the latent MDP."""

from __future__ import annotations

from collections import deque
from typing import Any

import gymnasium as gym
import numpy as np

from dsrl_offpolicy.envs.spec import EnvSpec


class MacroStepEnv(gym.Wrapper):
    """An environment whose action is a chunk ``[H, A]`` and whose observation is a frame stack ``[o, S]``.

    A chunk is cut short when the episode ends. ``reward`` is ``sum_{i<n} gamma^i r_i`` over the n env steps
    that were executed; ``info["n_steps"]`` is n. Nothing resets by itself: the returned observation after the
    end is the true last one, and stepping an ended episode changes nothing (n = 0) until ``reset``.

    ``info`` always holds ``n_steps``, ``success`` (of the last env step), ``success_once``,
    ``episode_return`` (undiscounted, of the scaled reward) and ``episode_length`` (env steps).
    """

    def __init__(self, env: gym.Env, spec: EnvSpec) -> None:
        super().__init__(env)
        self.env_spec = spec
        self._frames: deque[np.ndarray] = deque(maxlen=spec.obs_horizon)
        low, high = env.action_space.low, env.action_space.high
        self.action_space = gym.spaces.Box(
            np.tile(low, (spec.act_horizon, 1)), np.tile(high, (spec.act_horizon, 1)), dtype=np.float32
        )
        frame = env.observation_space.shape
        assert frame is not None
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (spec.obs_horizon, *frame), np.float32)
        self._ended: tuple[bool, bool] | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        obs, _ = self.env.reset(seed=seed, options=options)
        self._frames.extend([obs] * self.env_spec.obs_horizon)
        self._ended = None
        self._success = self._success_once = False
        self._return = 0.0
        self._length = 0
        return np.stack(self._frames), self._info(0)

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self._ended is not None:
            return np.stack(self._frames), 0.0, *self._ended, self._info(0)
        reward, n = 0.0, 0
        terminated = truncated = False
        for row in action:
            obs, r, terminated, truncated, info = self.env.step(row)
            self._frames.append(obs)
            reward += self.env_spec.gamma**n * float(r)
            n += 1
            self._return += float(r)
            self._length += 1
            self._success = info["success"]
            self._success_once |= self._success
            if terminated or truncated:
                self._ended = (terminated, truncated)
                break
        return np.stack(self._frames), reward, terminated, truncated, self._info(n)

    def _info(self, n_steps: int) -> dict[str, Any]:
        return {
            "n_steps": n_steps,
            "success": self._success,
            "success_once": self._success_once,
            "episode_return": self._return,
            "episode_length": self._length,
        }
