"""Many ManiSkill environments in one GPU simulation, as a vector of macro-step environments.

Imports torch, so nothing that worker processes need imports this file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from torch import Tensor

from dsrl_offpolicy.envs.families.maniskill import (
    check_actions,
    check_cameras,
    make_simulator,
    state_keys,
    time_limit,
)
from dsrl_offpolicy.envs.family import Capabilities, MacroVectorEnv
from dsrl_offpolicy.envs.macro_step import stacked_space
from dsrl_offpolicy.envs.spec import EnvSpec
from dsrl_offpolicy.envs.success import no_success
from dsrl_offpolicy.rewards import sparse_reward

Frames = dict[str, Tensor]


class BatchedMacroStepEnv(MacroVectorEnv):
    """What ``MacroStepEnv`` is to one environment, for E of them that a simulator steps together.

    Observations, rewards and ends are tensors on the simulator's device; ``info`` holds host arrays ``[E]``.
    All environments step in unison, so one whose episode has ended inside a chunk is stepped on with a zero
    action, and nothing of it is looked at: its frames, reward, n and info stay as they were until ``reset``.

    A batched simulator draws the starts of one reset together, from the first seed: which start a slot gets
    depends on the slots that are reset with it (see ``Capabilities.batched``).

    Args:
        simulator: ManiSkill's environment (``make_simulator``), without a time limit.
        spec: what it was made from.
        limit: env steps until truncation, or None.
    """

    capabilities = Capabilities(batched=True)
    metadata = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012  (gymnasium's own attribute)

    def __init__(self, simulator: Any, spec: EnvSpec, limit: int | None) -> None:
        from mani_skill.vector.wrappers.gymnasium import ManiSkillVectorEnv

        self.simulator = ManiSkillVectorEnv(simulator, auto_reset=False, ignore_terminations=False)
        self.env_spec = spec
        self.max_episode_steps = limit
        self.num_envs = int(simulator.num_envs)
        self.device = torch.device(simulator.device)
        actions = simulator.single_action_space
        check_actions(spec, actions)
        self.single_action_space = gym.spaces.Box(-1.0, 1.0, (spec.act_horizon, *actions.shape), np.float32)
        raw = simulator._init_raw_obs
        self.state_keys: tuple[str, ...] | None = None
        self.cameras: tuple[str, ...] = ()
        if not isinstance(raw, Tensor):
            check_cameras(spec, raw)
            self.state_keys, self.cameras = state_keys(raw), tuple(raw["sensor_data"])
        first = self._frame(raw)
        self.single_observation_space = self._observation_space(first)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self._frames: Frames = {}
        self._ended = self._zeros(torch.bool)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, np.ndarray]]:
        mask = (options or {}).get("reset_mask")
        chosen = torch.ones(self.num_envs, dtype=torch.bool, device=self.device)
        if mask is not None:
            chosen = torch.as_tensor(np.asarray(mask), device=self.device)
        with torch.inference_mode():
            obs, _ = self.simulator.reset(
                seed=_complete_seeds(seed), options={"env_idx": torch.nonzero(chosen).flatten()}
            )
        frame = self._frame(obs)
        stack = {
            name: part[:, None].expand(-1, self.env_spec.obs_horizon, *part.shape[1:])
            for name, part in frame.items()
        }
        if not self._frames:
            self._frames = {name: part.clone() for name, part in stack.items()}
            self._terminated, self._truncated = self._zeros(torch.bool), self._zeros(torch.bool)
            self._success, self._success_once = self._zeros(torch.bool), self._zeros(torch.bool)
            self._return, self._length = self._zeros(torch.float32), self._zeros(torch.int32)
        self._frames = {name: _where(chosen, stack[name], self._frames[name]) for name in stack}
        for values in (self._ended, self._terminated, self._truncated, self._success, self._success_once):
            values[chosen] = False
        self._return[chosen] = 0
        self._length[chosen] = 0
        return self._observation(), self._info(self._zeros(torch.int32))

    def step_async(self, actions: Tensor | np.ndarray) -> None:
        """Keep the chunks: they are stepped in this process, when they are waited for."""
        self._chunk = torch.as_tensor(actions, device=self.device, dtype=torch.float32)

    def step_wait(self) -> tuple[Any, Tensor, Tensor, Tensor, dict[str, np.ndarray]]:
        """Step the chunks."""
        chunk = self._chunk
        total, n = self._zeros(torch.float32), self._zeros(torch.int32)
        for row in range(chunk.shape[1]):
            active = ~self._ended
            with torch.inference_mode():
                obs, reward, terminated, _, info = self.simulator.step(_where(active, chunk[:, row], 0.0))
            frame = self._frame(obs)
            success, failed, reward = self._judge(info, terminated, reward)
            ends = failed | (success & self.env_spec.end_on_success)
            total += torch.where(active, self.env_spec.gamma**row * reward, 0.0)
            n += active
            self._length += active
            self._return += torch.where(active, reward, 0.0)
            self._success = torch.where(active, success, self._success)
            self._success_once |= active & success
            self._terminated |= active & ends
            if self.max_episode_steps is not None:
                self._truncated |= active & (self._length >= self.max_episode_steps)
            self._frames = {
                name: _where(active, torch.cat((old[:, 1:], frame[name][:, None]), dim=1), old)
                for name, old in self._frames.items()
            }
            self._ended = self._terminated | self._truncated
        return self._observation(), total, self._terminated.clone(), self._truncated.clone(), self._info(n)

    def close_extras(self, **kwargs: Any) -> None:
        self.simulator.base_env.close()

    def _judge(
        self, info: Mapping[str, Tensor], terminated: Tensor, reward: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Success, failure, and the reward that the spec asks for (see ``SuccessReward``)."""
        spec = self.env_spec
        if "success" not in info and spec.reward_mode == "sparse":
            raise no_success(spec)
        told = info["success"] if "success" in info else self._zeros(torch.bool)
        success = (told == told) & (told != 0)  # NaN is none
        # ManiSkill ends an episode on success or failure; ending on success is the spec's to decide.
        failed = terminated & ~success
        if spec.reward_mode == "sparse":
            reward = sparse_reward(success, failed, spec.gamma, 1.0)
        return success, failed, reward.clone() * spec.reward_scale

    def _frame(self, obs: Any) -> Frames:
        from mani_skill.utils import common

        if isinstance(obs, Tensor):
            return {"state": obs.clone()}
        parts = {name: part for name, part in obs.items() if not name.startswith("sensor")}
        images = [data["rgb"] for data in obs["sensor_data"].values()]
        return {
            "state": common.flatten_state_dict(parts, use_torch=True).clone(),
            "rgb": torch.cat(images, dim=-1),
        }

    def _observation_space(self, frame: Frames) -> gym.Space:
        state = gym.spaces.Box(-np.inf, np.inf, tuple(frame["state"].shape[1:]), np.float32)
        if "rgb" not in frame:
            return stacked_space(state, self.env_spec.obs_horizon)
        rgb = gym.spaces.Box(0, 255, tuple(frame["rgb"].shape[1:]), np.uint8)
        return stacked_space(gym.spaces.Dict({"state": state, "rgb": rgb}), self.env_spec.obs_horizon)

    def _observation(self) -> Any:
        return dict(self._frames) if "rgb" in self._frames else self._frames["state"]

    def _info(self, n_steps: Tensor) -> dict[str, np.ndarray]:
        values = {
            "n_steps": n_steps,
            "success": self._success,
            "success_once": self._success_once,
            "episode_return": self._return,
            "episode_length": self._length,
        }
        return {name: value.cpu().numpy().copy() for name, value in values.items()}

    def _zeros(self, dtype: torch.dtype) -> Tensor:
        return torch.zeros(self.num_envs, dtype=dtype, device=self.device)


def make_batched_env(spec: EnvSpec, num_envs: int) -> BatchedMacroStepEnv:
    """Make ``num_envs`` environments in one simulation.

    Raises:
        InputError: no such task, device, controller or observation mode.
    """
    with torch.inference_mode():
        simulator = make_simulator(spec, num_envs)
    return BatchedMacroStepEnv(simulator, spec, time_limit(spec))


def _where(mask: Tensor, chosen: Tensor, other: Tensor | float) -> Tensor:
    """``chosen`` in the environments where ``mask`` holds, ``other`` elsewhere."""
    return torch.where(mask.view(-1, *[1] * (chosen.ndim - 1)), chosen, other)


def _complete_seeds(seed: int | Sequence[int | None] | None) -> int | list[int] | None:
    """Seeds for every slot: slots that are not reset have none of their own."""
    if seed is None or isinstance(seed, int):
        return seed
    first = next((s for s in seed if s is not None), 0)
    return [first if s is None else s for s in seed]
