"""Base policies from published AWSC checkpoints, which hold weights alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dsrl_offpolicy.base_policies.published_layout import (
    WEIGHTS,
    CriticLayout,
    VelocityLayout,
    VisualLayout,
    critic_layout,
    entry,
    is_published,
    part,
    velocity_layout,
    visual_layout,
)
from dsrl_offpolicy.base_policies.shortcut_flow import DEFAULT_WEIGHTS, ShortcutFlowPolicy, ShortcutFlowSpec
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.files.checkpoint import load_weights, read_tensors

DEFAULT_OBS_HORIZON = 2
DEFAULT_PRED_HORIZON = 16
DEFAULT_ACT_HORIZON = 8
DEFAULT_DENOISING_STEPS = 8


class PublishedPolicy(ShortcutFlowPolicy):
    """The base policy in a published AWSC checkpoint; shapes say most of what it is, options the rest."""

    @classmethod
    def load(cls, argument: str | None, device: torch.device, **options: Any) -> ShortcutFlowPolicy:
        """Load a published file.

        Args:
            argument: the file.
            device: where it computes.
            options: those of :meth:`from_checkpoint`; ``flag`` is the setting to name in an error.
        """
        flag = options.pop("flag", "base")
        path = Path(argument or "")
        content = read_tensors(path, "published AWSC checkpoint", flag, device)
        if not is_published(content):
            raise InputError(f"{flag}: expected a published AWSC checkpoint, {path} is not one")
        return cls.from_checkpoint(content, f"{flag}: {path}", **options).to(device)

    @classmethod
    def from_checkpoint(cls, content: Mapping[str, Any], where: str, **options: Any) -> ShortcutFlowPolicy:
        """Rebuild from the content of a published file.

        Args:
            content: what the file holds.
            where: setting and path to name in an error.
            options: ``weights``, agent and network of the velocity (Q^A is that agent's); ``obs_horizon`` o,
                default 2; ``pred_horizon`` T, default 16; ``act_horizon`` H, default what the input of Q^A says;
                ``denoising_steps``, Euler steps, default 8.

        Raises:
            InputError: a tensor is missing, extra or of another shape; an option does not fit the file.
        """
        weights = options.get("weights", DEFAULT_WEIGHTS)
        if weights not in WEIGHTS:
            raise InputError(f"weights: expected one of {', '.join(WEIGHTS)}, got {weights!r}")
        agent, net = weights.split(".")
        tensors = entry(content, agent, where)
        inside = f"{where}: {agent}"
        velocity, critic = velocity_layout(tensors, net, inside), critic_layout(tensors, inside)
        images = entry(content, "visual_encoder", where) if "visual_encoder" in content else None
        visual = visual_layout(images, f"{where}: visual_encoder") if images is not None else None
        frames = options.get("obs_horizon", DEFAULT_OBS_HORIZON)
        spec = _spec(
            velocity,
            critic,
            visual,
            obs_horizon=frames,
            state_dim=_state_dim(velocity, visual, frames, where),
            pred_horizon=options.get("pred_horizon", DEFAULT_PRED_HORIZON),
            act_horizon=_act_horizon(velocity, critic, options.get("act_horizon"), inside),
            denoising_steps=options.get("denoising_steps", DEFAULT_DENOISING_STEPS),
        )
        _check_horizons(spec)
        encoder, velocity_net, q_network = spec.build_encoder(), spec.build_velocity(), spec.build_critic()
        load_weights(velocity_net, part(tensors, net), inside, lambda name: f"{net}.{name}")

        def critic_name(name: str) -> str:
            _, head, layer = name.split(".", 2)  # q_nets.<head>.<layer>
            return f"{critic.head_name(int(head))}.{layer}"

        load_weights(q_network, part(tensors, critic.prefix), inside, critic_name)
        if images is not None and encoder.visual is not None:
            load_weights(encoder.visual, images, f"{where}: visual_encoder")
        return cls(spec, encoder, velocity_net, q_network)


def _spec(
    velocity: VelocityLayout, critic: CriticLayout, visual: VisualLayout | None, **given: Any
) -> ShortcutFlowSpec:
    return ShortcutFlowSpec(
        env_id="",
        control_mode="",
        action_dim=velocity.action_dim,
        velocity_net="unet",
        velocity_widths=velocity.widths,
        embed_dim=velocity.embed_dim,
        critic_hidden_dims=critic.hidden_dims,
        critic_heads=critic.heads,
        gamma=None,
        reward_mode=None,
        reward_scale=None,
        end_on_success=None,
        image_channels=visual.channels if visual is not None else 0,
        visual_dim=visual.visual_dim if visual is not None else 0,
        image_size=None,
        published=True,
        **given,
    )


def _state_dim(velocity: VelocityLayout, visual: VisualLayout | None, obs_horizon: int, where: str) -> int:
    """S = G / o - V."""
    width, visual_dim = velocity.feature_dim, visual.visual_dim if visual is not None else 0
    if obs_horizon < 1 or width % obs_horizon:
        raise InputError(
            f"obs_horizon: expected a divisor of the {width} features in the file, got {obs_horizon} ({where})"
        )
    state_dim = width // obs_horizon - visual_dim
    if state_dim <= 0:
        raise InputError(
            f"obs_horizon: expected more than V = {visual_dim} features per frame, got {width} / {obs_horizon} = "
            f"{width // obs_horizon} ({where})"
        )
    return state_dim


def _act_horizon(velocity: VelocityLayout, critic: CriticLayout, given: int | None, inside: str) -> int:
    """H, by the argument or by the input of Q^A, H * A + G.

    Raises:
        InputError: they contradict each other.
    """
    found = critic.act_horizon(velocity)
    if given is None or found is None:
        return given or found or DEFAULT_ACT_HORIZON  # where the input fits no H, loading names the tensor
    if given * velocity.action_dim + velocity.feature_dim not in critic.input_dims:
        raise InputError(
            f"act_horizon: expected {found} by {critic.head_name(0)}.0.weight, got {given} ({inside})"
        )
    return given


def _check_horizons(spec: ShortcutFlowSpec) -> None:
    for name in ("pred_horizon", "act_horizon", "denoising_steps"):
        if getattr(spec, name) < 1:
            raise InputError(f"{name}: expected a whole number >= 1, got {getattr(spec, name)}")
    if spec.executed_rows.stop > spec.pred_horizon:
        raise InputError(
            f"pred_horizon: expected at least obs_horizon - 1 + act_horizon = {spec.executed_rows.stop}, "
            f"got {spec.pred_horizon}"
        )
