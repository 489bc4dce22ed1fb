"""The environment of a base policy: as settings and policy describe it, and whether the two fit together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dsrl_offpolicy.configs.jobs import PPOConfig, Stage2LoopConfig
from dsrl_offpolicy.configs.shared import SimulatorConfig
from dsrl_offpolicy.contracts import PolicyInfo, RewardTerms
from dsrl_offpolicy.envs.family import EnvFacts, find_family
from dsrl_offpolicy.envs.spec import EnvSpec
from dsrl_offpolicy.envs.vector import inspect_env
from dsrl_offpolicy.errors import InputError


def task_env_spec(info: PolicyInfo, config: SimulatorConfig, **values: Any) -> EnvSpec:
    """Return the environment that a job's settings and its base policy describe; ``values`` are its other fields.

    Raises:
        InputError: settings that contradict the base policy.
    """
    spec = EnvSpec(
        config.env_id,
        control_mode=config.control_mode,
        obs_mode=config.obs_mode or info.obs_mode,
        sim_backend=config.sim_backend,
        render_backend=config.render_backend,
        image_size=config.image_size,
        robot_uids=config.robot_uids,
        timeout=config.env_timeout,
        env_family=config.env_family,
        **values,
    )
    return steered_env_spec(info, spec)


def steered_env_spec(info: PolicyInfo, spec: EnvSpec) -> EnvSpec:
    """Return ``spec`` with what the base policy decides: horizons, and the controller and image size where the
    family has such settings.

    Raises:
        InputError: fields that contradict the base policy.
    """
    if None not in (spec.image_size, info.image_size) and spec.image_size != info.image_size:
        raise InputError(
            f"image_size: expected {info.image_size} as the base policy was trained with, got {spec.image_size}"
        )
    if spec.obs_mode != info.obs_mode:
        raise InputError(
            f"obs_mode: expected {info.obs_mode} as the base policy was trained with, got {spec.obs_mode}"
        )
    understood = find_family(spec.env_id, spec.env_family).settings
    if "control_mode" in understood:
        spec = replace(spec, control_mode=control_mode_of(info, spec))
    if "image_size" in understood:
        spec = replace(spec, image_size=spec.image_size or info.image_size)
    return replace(spec, obs_horizon=info.obs_horizon, act_horizon=info.act_horizon)


def control_mode_of(info: PolicyInfo, config: SimulatorConfig | EnvSpec) -> str | None:
    """Return the controller of demonstrations and environment; a published base policy does not say its own.

    Raises:
        InputError: the setting contradicts the base policy.
    """
    default = find_family(config.env_id, config.env_family).default_control_mode
    trained = info.control_mode or config.control_mode or default
    if config.control_mode not in (None, trained):
        raise InputError(
            f"control_mode: expected {trained} as the base policy was trained with, got {config.control_mode}"
        )
    return trained


def base_env_spec(
    info: PolicyInfo, rewards: RewardTerms, config: SimulatorConfig, *, end_on_success: bool
) -> EnvSpec:
    """Return the environment in which a base policy is evaluated, with the rewards of its Q^A (default ones where
    it has none, or does not say)."""
    terms = rewards.known()
    return task_env_spec(
        info,
        config,
        reward_mode=terms.reward_mode,
        reward_scale=terms.reward_scale,
        end_on_success=end_on_success,
        max_episode_steps=config.max_episode_steps,
        gamma=terms.gamma,
    )


def training_env_spec(config: Stage2LoopConfig | PPOConfig, info: PolicyInfo) -> EnvSpec:
    """Return the environment that Stage 2 or PPO learns in."""
    return task_env_spec(
        info,
        config,
        reward_mode=config.reward_mode,
        reward_scale=config.reward_scale,
        end_on_success=config.end_on_success,
        max_episode_steps=config.train_episode_steps or config.max_episode_steps,
        gamma=config.gamma,
    )


def check_fit(info: PolicyInfo, env_spec: EnvSpec) -> EnvFacts:
    """Build the environment once and hold it against the base policy.

    Raises:
        InputError: unknown environment, no time limit, or dimensions that differ.
    """
    facts = inspect_env(env_spec)
    if facts.max_episode_steps is None:
        raise InputError(
            f"--max_episode_steps: expected the env steps after which an episode ends, {env_spec.env_id} has no "
            "time limit of its own, got nothing"
        )
    for what, expected, found in (
        ("state dimensions", facts.state_dim, info.state_dim),
        ("action dimensions", facts.action_dim, info.action_dim),
    ):
        if expected != found:
            trained = f" (trained on {info.env_id})" if info.env_id else ""
            raise InputError(
                f"base policy: expected {expected} {what} for {env_spec.env_id}, got {found}{trained}"
            )
    if facts.image_shape is not None:
        _check_images(info, env_spec.env_id, facts.image_shape, facts.cameras)
    return facts


def _check_images(info: PolicyInfo, env_id: str, shape: tuple[int, ...], cameras: tuple[str, ...]) -> None:
    size, channels = shape[:2], shape[2]
    if channels != info.image_channels:
        names = f" ({', '.join(cameras)})" if cameras else ""
        raise InputError(
            f"base policy: expected images of {channels // 3} cameras{names} for {env_id}, "
            f"got {info.image_channels // 3}"
        )
    if info.image_size is not None and info.image_size != size:
        raise InputError(
            f"base policy: expected images of {size[0]} x {size[1]} pixels for {env_id}, "
            f"got {info.image_size[0]} x {info.image_size[1]}"
        )
