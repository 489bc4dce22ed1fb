"""The latent MDP as a Gymnasium environment: actions are noise, a step is a macro-step of the frozen policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from dsrl_offpolicy.base_policies.loading import load_base_policy
from dsrl_offpolicy.configs.ranges import Count, Positive
from dsrl_offpolicy.configs.shared import SteerMode
from dsrl_offpolicy.contracts import BasePolicy
from dsrl_offpolicy.envs.family import MacroVectorEnv
from dsrl_offpolicy.envs.spec import EnvSpec
from dsrl_offpolicy.envs.vector import make_vector_env
from dsrl_offpolicy.errors import InputError, did_you_mean
from dsrl_offpolicy.files.plain import checked
from dsrl_offpolicy.models.latent_layout import LatentLayout
from dsrl_offpolicy.rollouts.acting import encode, executed_chunk, send
from dsrl_offpolicy.rollouts.base_env import check_fit, steered_env_spec
from dsrl_offpolicy.seeding import FIRST_EVALUATION_SEED

TOLD = ("n_steps", "success", "success_once", "episode_return", "episode_length")
"""What ``MacroStepEnv`` tells in ``info``, and we pass on."""
ROUNDING = 1e-4
"""Share by which an action may exceed the bounds: libraries rescale their actions in single precision."""


def make_latent_env(
    base_policy: BasePolicy | str | Path,
    env_id_or_spec: str | EnvSpec,
    num_envs: int = 1,
    *,
    steer_mode: SteerMode = "full",
    action_magnitude: float = 2.0,
    device: str | torch.device = "cpu",
    **settings: Any,
) -> LatentEnv | LatentVectorEnv:
    """Make the latent MDP of a frozen base policy, for any library that speaks Gymnasium.

    Args:
        base_policy: a policy, or what ``--base`` names: a file, ``kind:path`` or ``module:Class[:argument]``.
        env_id_or_spec: the environment that the policy acts in. Horizons are the policy's, whatever a spec says.
        num_envs: 1 makes a ``gymnasium.Env``, more a ``gymnasium.vector.VectorEnv``. Each is a process of its own
            (or one batch on the GPU), which ``close()`` ends.
        steer_mode: which rows of the noise the action is; the others are drawn from the prior.
        action_magnitude: b; actions lie in ``[-b, b]``.
        device: where the policy computes.
        settings: other fields of ``EnvSpec``, such as ``reward_mode``, ``gamma`` or ``max_episode_steps``.

    Raises:
        InputError: a policy that cannot be loaded, an unknown environment or setting, or the two do not fit.
    """
    where = "make_latent_env"
    names = [field.name for field in fields(EnvSpec)]
    for name in settings:
        if name not in names:
            raise InputError(f"{where}: unknown setting {name!r}{did_you_mean(name, names)}")
    checked(num_envs, Count, f"{where}: num_envs")
    checked(action_magnitude, Positive, f"{where}: action_magnitude")
    checked(steer_mode, SteerMode, f"{where}: steer_mode")
    if not isinstance(base_policy, BasePolicy):
        base_policy = load_base_policy(base_policy, device, flag="base_policy")
    info = base_policy.info
    given = env_id_or_spec
    known = vars(given) if isinstance(given, EnvSpec) else {"env_id": given, "obs_mode": info.obs_mode}
    spec = steered_env_spec(info, checked({**known, **settings}, EnvSpec, where))
    check_fit(info, spec)
    layout = LatentLayout(steer_mode, *info.latent_shape, info.executed_rows, float(action_magnitude))
    env = make_vector_env(spec, num_envs)
    made = LatentEnv if num_envs == 1 else LatentVectorEnv
    return made(env, base_policy, layout, gamma=spec.gamma, device=device)


class _MacroSteps:
    """Environments, the frozen policy between them and a learner, and the features of where they stand.

    Args:
        env: macro-step environments that do not reset by themselves.
        base_policy: encodes observations and decodes latents.
        layout: which part of the noise is the action.
        gamma: discount per env step, with which ``env`` sums rewards inside a macro-step.
        device: where the policy computes.

    Attributes:
        features: ``[E, D]`` of the current observations.
    """

    def __init__(
        self,
        env: MacroVectorEnv,
        base_policy: BasePolicy,
        layout: LatentLayout,
        gamma: float,
        device: str | torch.device,
    ) -> None:
        self.env, self.base_policy, self.layout, self.gamma = env, base_policy, layout, gamma
        self.device = torch.device(device)
        bound, inf = np.float32(layout.magnitude), np.float32(np.inf)
        self.action_space = gym.spaces.Box(-bound, bound, (layout.dim,), np.float32)
        self.observation_space = gym.spaces.Box(-inf, inf, (base_policy.info.feature_dim,), np.float32)
        self.features: np.ndarray

    @property
    def discount(self) -> float:
        return self.gamma**self.base_policy.info.act_horizon

    def reset(self, seeds: Sequence[int], mask: np.ndarray) -> None:
        obs, _ = self.env.reset(seed=list(seeds), options={"reset_mask": mask})
        self._see(obs)

    def draw_seeds(self, generator: np.random.Generator) -> list[int]:
        return [int(seed) for seed in generator.integers(FIRST_EVALUATION_SEED, size=(self.env.num_envs,))]

    def step(
        self, latent: np.ndarray, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Take one macro-step in every environment; ``latent`` is ``[E, L]``.

        A macro-step whose process was lost is a truncation after 0 env steps, in the state where it began.

        Returns:
            reward, terminated, truncated and info.
        """
        shape, most = (self.env.num_envs, self.layout.dim), self.layout.magnitude
        if latent.shape != shape or not np.all(np.abs(latent) <= most * (1 + ROUNDING)):
            found = f"{latent.shape} with values up to {np.abs(latent).max(initial=0.0):.4g}"
            raise InputError(f"action: expected latents of shape {shape} within +-{most:g}, got {found}")
        rows = (self.env.num_envs, *self.base_policy.info.latent_shape)
        noise = torch.from_numpy(generator.standard_normal(rows, np.float32)).to(self.device)
        full = self.layout.expand(torch.as_tensor(latent, dtype=torch.float32, device=self.device), noise)
        send(self.env, executed_chunk(self.base_policy, self._encoding, full), self.device)
        obs, reward, terminated, truncated, told = self.env.step_wait()
        before = self.features
        self._see(obs)
        lost = np.asarray(told.get("lost", np.zeros(self.env.num_envs, dtype=bool)))
        self.features = np.where(lost[:, None], before, self.features)
        info = {name: _array(told[name]) for name in TOLD}
        terminated, truncated = _array(terminated), _array(truncated) | lost
        info["discount"] = self.gamma ** info["n_steps"] * ~terminated
        info |= {"is_success": info["success_once"], "lost": lost}
        return _array(reward).astype(np.float64), terminated, truncated, info

    def _see(self, obs: Any) -> None:
        self._encoding = encode(self.base_policy, obs, self.device)
        self.features = self._encoding.features.float().cpu().numpy()


def _array(values: Any) -> np.ndarray:
    return torch.as_tensor(values).cpu().numpy()


class LatentEnv(gym.Env):
    """The latent MDP of one environment.

    Observations are the frozen features ``[D]``, actions the steered part of the noise ``[L]`` (``LatentLayout``).
    The reward is ``sum_{i<n} gamma^i r_i`` over the n env steps that were executed. ``info`` holds ``n_steps``,
    which is n; ``discount``, which multiplies the value of the next state: ``gamma^n``, 0 after a termination;
    ``success`` of the last env step; ``success_once`` of the episode, also as ``is_success``, the name that
    Stable-Baselines3 reads; ``episode_return``, ``episode_length``; and ``lost``: the environment's process died
    and was replaced, which ends the episode by a truncation after 0 env steps.

    ``reset(seed=s)`` begins the episode that an evaluation calls s, and seeds what is drawn later; ``reset()``
    draws a start that no evaluation uses.

    Args:
        env: one macro-step environment; ``close()`` closes it.
        base_policy, layout, gamma, device: as ``make_latent_env`` gives them.

    Attributes:
        discount: ``gamma^H``, for a learner with a constant discount. It is exact except where a time limit cuts
            a macro-step short.
    """

    def __init__(
        self,
        env: MacroVectorEnv,
        base_policy: BasePolicy,
        layout: LatentLayout,
        *,
        gamma: float,
        device: str | torch.device = "cpu",
    ) -> None:
        self._steps = steps = _MacroSteps(env, base_policy, layout, gamma, device)
        self.observation_space, self.action_space = steps.observation_space, steps.action_space
        self.discount = steps.discount

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode."""
        super().reset(seed=seed)
        seeds = self._steps.draw_seeds(self.np_random) if seed is None else [seed]
        self._steps.reset(seeds, np.ones(1, dtype=bool))
        return self._steps.features[0], {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Decode the latent and execute the chunk.

        Raises:
            InputError: a latent of another shape or beyond the magnitude; a process lost again and again.
            NonFiniteError: observations or actions that are not finite.
        """
        reward, terminated, truncated, info = self._steps.step(np.asarray(action)[None], self.np_random)
        told = {name: values[0].item() for name, values in info.items()}
        return self._steps.features[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), told

    def close(self) -> None:
        """End the process."""
        self._steps.env.close()


class LatentVectorEnv(VectorEnv):
    """The latent MDPs of several environments, as :class:`LatentEnv`, with every entry batched.

    An ended episode is reset in the same step (``AutoresetMode.SAME_STEP``): its true last observation and its
    info are ``info["final_obs"]`` and ``info["final_info"]`` where ``info["_final_obs"]``.
    """

    def __init__(
        self,
        env: MacroVectorEnv,
        base_policy: BasePolicy,
        layout: LatentLayout,
        *,
        gamma: float,
        device: str | torch.device = "cpu",
    ) -> None:
        self._steps = steps = _MacroSteps(env, base_policy, layout, gamma, device)
        self.num_envs = env.num_envs
        self.single_observation_space, self.single_action_space = steps.observation_space, steps.action_space
        self.observation_space = batch_space(steps.observation_space, env.num_envs)
        self.action_space = batch_space(steps.action_space, env.num_envs)
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
        self.layout, self.discount = layout, steps.discount

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode in every environment; ``seed=s`` is s, s + 1, ..."""
        seeds = seed if seed is None or isinstance(seed, Sequence) else [seed + i for i in range(self.num_envs)]
        super().reset(seed=None if seeds is None else seeds[0])
        self._steps.reset(self._steps.draw_seeds(self.np_random) if seeds is None else seeds, self._all())
        return self._steps.features, {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Decode the latents, execute the chunks, reset what ended. Raises as :meth:`LatentEnv.step`."""
        reward, terminated, truncated, told = self._steps.step(np.asarray(actions), self.np_random)
        info: dict[str, Any] = dict(told)
        ended = terminated | truncated
        if ended.any():
            info |= {
                "final_obs": self._steps.features,
                "_final_obs": ended,
                "final_info": told,
                "_final_info": ended,
            }
            self._steps.reset(self._steps.draw_seeds(self.np_random), ended)
        return self._steps.features, reward, terminated, truncated, info

    def close_extras(self, **kwargs: Any) -> None:
        """End the processes."""
        self._steps.env.close()

    def _all(self) -> np.ndarray:
        return np.ones(self.num_envs, dtype=bool)
