"""The environment of a base policy: as settings and policy describe it, and whether the two fit together."""

from __future__ import annotations

from typing import Any

from dsrl_offpolicy.base_policies.shortcut_flow import ShortcutFlowSpec
from dsrl_offpolicy.configs.jobs import Stage2LoopConfig
from dsrl_offpolicy.configs.shared import SimulatorConfig
from dsrl_offpolicy.envs.maniskill import DEFAULT_CONTROL_MODE
from dsrl_offpolicy.envs.simulators import simulator_of
from dsrl_offpolicy.envs.spec import EnvSpec
from dsrl_offpolicy.envs.vector import EnvFacts, inspect_env
from dsrl_offpolicy.errors import InputError


def task_env_spec(spec: ShortcutFlowSpec, config: SimulatorConfig, **values: Any) -> EnvSpec:
    """The environment that a job's settings and its base policy describe; ``values`` are its other fields.

    Raises:
        InputError: settings that contradict the base policy.
    """
    control_mode, obs_mode = config.control_mode, config.obs_mode or spec.obs_mode
    if None not in (config.image_size, spec.image_size) and config.image_size != spec.image_size:
        raise InputError(
            f"image_size: expected {spec.image_size} as the base policy was trained with, got {config.image_size}"
        )
    if obs_mode != spec.obs_mode:
        raise InputError(f"obs_mode: expected {spec.obs_mode} as the base policy was trained with, got {obs_mode}")
    if simulator_of(config.env_id) == "maniskill":
        control_mode = control_mode_of(spec, config)
    return EnvSpec(
        config.env_id,
        obs_horizon=spec.obs_horizon,
        act_horizon=spec.act_horizon,
        control_mode=control_mode,
        obs_mode=obs_mode,
        sim_backend=config.sim_backend,
        render_backend=config.render_backend,
        image_size=config.image_size or spec.image_size,
        robot_uids=config.robot_uids,
        timeout=config.env_timeout,
        **values,
    )


def control_mode_of(spec: ShortcutFlowSpec, config: SimulatorConfig) -> str | None:
    """The controller of demonstrations and environment; a published base policy does not say its own.

    Raises:
        InputError: the setting contradicts the base policy.
    """
    default = DEFAULT_CONTROL_MODE if simulator_of(config.env_id) == "maniskill" else None
    trained = spec.control_mode or config.control_mode or default
    if config.control_mode not in (None, trained):
        raise InputError(
            f"control_mode: expected {trained} as the base policy was trained with, got {config.control_mode}"
        )
    return trained


def base_env_spec(spec: ShortcutFlowSpec, config: SimulatorConfig, *, end_on_success: bool) -> EnvSpec:
    """The environment in which a base policy is evaluated, with the rewards of its Q^A (or the default ones)."""
    return task_env_spec(
        spec,
        config,
        reward_mode=spec.rewards.reward_mode,
        reward_scale=spec.rewards.reward_scale,
        end_on_success=end_on_success,
        max_episode_steps=config.max_episode_steps,
        gamma=spec.rewards.gamma,
    )


def training_env_spec(config: Stage2LoopConfig, spec: ShortcutFlowSpec) -> EnvSpec:
    """The environment that Stage 2 learns in."""
    return task_env_spec(
        spec,
        config,
        reward_mode=config.reward_mode,
        reward_scale=config.reward_scale,
        end_on_success=config.end_on_success,
        max_episode_steps=config.train_episode_steps or config.max_episode_steps,
        gamma=config.gamma,
    )


def check_fit(spec: ShortcutFlowSpec, env_spec: EnvSpec) -> EnvFacts:
    """Build the environment once and hold it against the base policy.

    Raises:
        InputError: unknown environment, or dimensions that differ.
    """
    facts = inspect_env(env_spec)
    for what, expected, found in (
        ("state dimensions", facts.state_dim, spec.state_dim),
        ("action dimensions", facts.action_dim, spec.action_dim),
    ):
        if expected != found:
            trained = f" (trained on {spec.env_id})" if spec.env_id else ""
            raise InputError(
                f"awsc_checkpoint: expected {expected} {what} for {env_spec.env_id}, got {found}{trained}"
            )
    if facts.image_shape is not None:
        _check_images(spec, env_spec.env_id, facts.image_shape, facts.cameras)
    return facts


def _check_images(
    spec: ShortcutFlowSpec, env_id: str, shape: tuple[int, int, int], cameras: tuple[str, ...]
) -> None:
    size, channels = shape[:2], shape[2]
    if channels != spec.image_channels:
        raise InputError(
            f"awsc_checkpoint: expected images of {channels // 3} cameras ({', '.join(cameras)}) for {env_id}, "
            f"got {spec.image_channels // 3}"
        )
    if spec.image_size is not None and spec.image_size != size:
        raise InputError(
            f"awsc_checkpoint: expected images of {size[0]} x {size[1]} pixels for {env_id}, "
            f"got {spec.image_size[0]} x {spec.image_size[1]}"
        )
