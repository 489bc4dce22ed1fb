"""The base policy that settings and demonstrations make, and its learner (Stage 0)."""

from __future__ import annotations

from dataclasses import fields

import torch

from dsrl_offpolicy.agents.awsc import AWSCAgent
from dsrl_offpolicy.base_policies.shortcut_flow import ShortcutFlowSpec
from dsrl_offpolicy.configs.jobs import Stage0Config
from dsrl_offpolicy.demos.trajectory import Demonstrations
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.seeding import torch_generator

IMAGE_SETTINGS = (
    "visual_dim", "visual_pool", "encoder_iters", "encoder_batch_size", "encoder_lr", "image_shift", "image_size",
)  # fmt: skip


def base_spec(config: Stage0Config, demos: Demonstrations) -> ShortcutFlowSpec:
    """Return the base policy that a configuration and a file of demonstrations make."""
    shape = demos.image_shape
    if shape is not None and config.image_size not in (None, shape[:2]):
        raise InputError(f"image_size: expected {shape[:2]} as in {demos.path}, got {config.image_size}")
    if shape is None:
        _refuse_image_settings(config)
    return ShortcutFlowSpec(
        env_id=config.env_id,
        control_mode=demos.control_mode,
        state_dim=demos.state_dim,
        action_dim=demos.action_dim,
        obs_horizon=config.obs_horizon,
        pred_horizon=config.pred_horizon,
        act_horizon=config.act_horizon,
        velocity_net=config.velocity_net,
        velocity_widths=config.velocity_widths,
        embed_dim=config.embed_dim,
        denoising_steps=config.denoising_steps,
        critic_hidden_dims=config.critic_hidden_dims,
        critic_heads=config.num_critics,
        gamma=config.gamma,
        reward_mode=config.reward_mode,
        reward_scale=config.reward_scale,
        end_on_success=config.end_on_success,
        image_channels=shape[2] if shape else 0,
        visual_dim=config.visual_dim if shape else 0,
        image_size=shape[:2] if shape else None,
        visual_pool=config.visual_pool if shape else "max",
    )


def _refuse_image_settings(config: Stage0Config) -> None:
    """Raises InputError for settings of the image encoder over demonstrations that have no images."""
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name in IMAGE_SETTINGS and value != field.default:
            raise InputError(f"{field.name}: expected nothing for demonstrations without images, got {value}")


def build_agent(config: Stage0Config, spec: ShortcutFlowSpec, device: torch.device) -> AWSCAgent:
    """Build the learner of Stage 0."""
    return AWSCAgent(
        spec,
        lr=config.lr,
        total_iters=config.total_iters,
        ema_decay=config.ema_decay,
        consistency_fraction=config.consistency_fraction,
        advantage_temperature=config.advantage_temperature,
        max_weight=config.max_weight,
        expectile=config.expectile,
        polyak_tau=config.critic_tau,
        generator=torch_generator(config.seed, "stage0", device),
        device=device,
    )
