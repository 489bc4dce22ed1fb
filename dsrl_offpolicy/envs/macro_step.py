"""Run one action chunk correctly: the step of the latent MDP."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector.utils import batch_space

from dsrl_offpolicy.envs.frames import FrameRecorder
from dsrl_offpolicy.envs.spec import EnvSpec


class MacroStepEnv(gym.Wrapper):
    """An environment whose action is a chunk ``[H, A]`` and whose observation is a frame stack: ``[o, S]``, or
    ``{"state": [o, S], "rgb": [o, H, W, 3k], ...}``. Strings are not stacked: the newest frame's is passed on.

    A chunk is cut short when the episode ends. ``reward`` is ``sum_{i<n} gamma^i r_i`` over the n env steps
    that were executed; ``info["n_steps"]`` is n. Nothing resets by itself: the returned observation after the
    end is the true last one, and stepping an ended episode changes nothing (n = 0) until ``reset``.

    With ``lazy_images`` (``Capabilities.lazy_images``) images are rendered for the frames that the stack will
    hold, and not for those between. Only where a
    termination comes unforeseen inside a chunk do the older frames of that last stack repeat the image of the
    newest (its states are exact); its discount is 0, so no target reads it.

    ``info`` always holds ``n_steps``, ``success`` (of the last env step), ``success_once``, ``intervened``
    (somebody else than the policy chose an action of this chunk; such an episode is no ``success_once`` from there
    on), ``episode_return`` (undiscounted, of the
    scaled reward) and ``episode_length`` (env steps); where ``spec.frames_every`` is set, also what
    ``FrameRecorder.take`` returns.
    """

    def __init__(self, env: gym.Env, spec: EnvSpec, *, lazy_images: bool = False) -> None:
        super().__init__(env)
        self.env_spec = spec
        self._frames: deque[Any] = deque(maxlen=spec.obs_horizon)
        space = env.action_space
        assert isinstance(space, gym.spaces.Box)
        self.action_space = gym.spaces.Box(
            np.tile(space.low, (spec.act_horizon, 1)), np.tile(space.high, (spec.act_horizon, 1)), dtype=np.float32
        )
        self.observation_space = stacked_space(env.observation_space, spec.obs_horizon)
        self._cameras: Any = env.unwrapped if lazy_images else None
        self._ended: tuple[bool, bool] | None = None
        self._recorder: FrameRecorder | None = None
        if spec.frames_every:
            self._recorder = FrameRecorder(env, spec.frames_every, spec.act_horizon)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        obs, _ = self.env.reset(seed=seed, options=options)
        self._frames.extend([_copy(obs)] * self.env_spec.obs_horizon)
        self._ended = None
        self._success = self._success_once = self._intervened = self._helped = False
        self._return = 0.0
        self._length = 0
        if self._recorder is not None:
            self._recorder.begin()
        return _stack(self._frames), self._info(0)

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self._ended is not None:
            return _stack(self._frames), 0.0, *self._ended, self._info(0)
        reward, n = 0.0, 0
        self._intervened = False
        terminated = truncated = False
        rows = self._rows_left(len(action))
        for row in action:
            if self._cameras is not None:
                self._cameras.images_wanted = n >= rows - self.env_spec.obs_horizon
            obs, r, terminated, truncated, info = self.env.step(row)
            self._frames.append(_copy(obs))
            reward += self.env_spec.gamma**n * float(r)
            n += 1
            self._return += float(r)
            self._length += 1
            self._success = info["success"]
            self._intervened |= bool(info.get("intervened", False))
            self._helped |= self._intervened
            self._success_once |= self._success and not self._helped
            if self._recorder is not None:
                self._recorder.see(self._length, self._success_once, last=terminated or truncated)
            if terminated or truncated:
                self._ended = (terminated, truncated)
                break
        if self._cameras is not None:
            self._complete_images()
        return _stack(self._frames), reward, terminated, truncated, self._info(n)

    def _rows_left(self, rows: int) -> int:
        """Rows of this chunk that the time limit leaves."""
        limit = self._cameras.max_episode_steps if self._cameras is not None else None
        return rows if limit is None else min(rows, limit - self._length)

    def _complete_images(self) -> None:
        """Render the newest frame where its step did not, and give its image to older frames that have none."""
        self._cameras.images_wanted = True
        if self._frames[-1]["rgb"] is None:
            self._frames[-1] = {**self._frames[-1], "rgb": self._cameras.image()}
        for i, frame in enumerate(self._frames):
            if frame["rgb"] is None:
                self._frames[i] = {**frame, "rgb": self._frames[-1]["rgb"]}

    def _info(self, n_steps: int) -> dict[str, Any]:
        return {
            "n_steps": n_steps,
            "success": self._success,
            "success_once": self._success_once,
            "intervened": self._intervened,
            "episode_return": self._return,
            "episode_length": self._length,
            **(self._recorder.take() if self._recorder is not None and n_steps else self._no_frames()),
        }

    def _no_frames(self) -> dict[str, Any]:
        return self._recorder.nothing() if self._recorder is not None else {}


@dataclass(frozen=True)
class News:
    """What the info of a vector macro-step says beside its transitions.

    Attributes:
        kept: ``[E]``, macro-steps that are experience of the policy.
        lost: ``[E]``, those whose environment process died or hung.
        intervened: ``[E]``, others in which somebody else than the policy chose an action.
        finished: of each episode that ended: (success_once, return, env steps).
    """

    kept: np.ndarray
    lost: np.ndarray
    intervened: np.ndarray
    finished: list[tuple[bool, float, int]]


def read_news(info: Mapping[str, Any], ended: np.ndarray) -> News:
    """Read the info of a vector macro-step in which the episodes ``ended`` ``[E]`` came to their end."""
    lost = np.asarray(info.get("lost", np.zeros(len(ended), dtype=bool)))
    intervened = np.asarray(info.get("intervened", np.zeros_like(lost))) & ~lost
    finished = [
        (bool(info["success_once"][i]), float(info["episode_return"][i]), int(info["episode_length"][i]))
        for i in np.flatnonzero(ended)
    ]
    return News(~lost & ~intervened, lost, intervened, finished)


def _copy(obs: Any) -> Any:
    """A frame of its own: environments may write their next observation into the same memory."""
    if isinstance(obs, Mapping):
        return {name: _copy(part) for name, part in obs.items()}
    return obs if obs is None or isinstance(obs, str) else np.array(obs)


def _stack(frames: Sequence[Any]) -> Any:
    if isinstance(frames[-1], Mapping):
        return {name: _stack([frame[name] for frame in frames]) for name in frames[-1]}
    return frames[-1] if isinstance(frames[-1], str) else np.stack(frames)


def stacked_space(space: gym.Space, frames: int) -> gym.Space:
    """Return the space of a stack of so many frames."""
    if isinstance(space, gym.spaces.Dict):
        return gym.spaces.Dict({name: stacked_space(part, frames) for name, part in space.items()})
    return space if isinstance(space, gym.spaces.Text) else batch_space(space, frames)
