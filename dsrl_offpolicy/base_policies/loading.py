"""Loading base policies from files."""

from __future__ import annotations

from pathlib import Path

import torch

from dsrl_offpolicy.base_policies.published import published_policy
from dsrl_offpolicy.base_policies.published_layout import is_published
from dsrl_offpolicy.base_policies.shortcut_flow import ShortcutFlowPolicy
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.files.checkpoint import check_kind, read_tensors

DEFAULT_WEIGHTS = "ema_agent.velocity_net"


def load_base_policy(
    path: str | Path,
    device: str | torch.device = "cpu",
    *,
    weights: str = DEFAULT_WEIGHTS,
    obs_horizon: int | None = None,
    pred_horizon: int | None = None,
    act_horizon: int | None = None,
    denoising_steps: int | None = None,
    flag: str = "awsc_checkpoint",
) -> ShortcutFlowPolicy:
    """A frozen base policy, from a file that ``dsrl pretrain`` wrote or from a published AWSC checkpoint.

    A published file holds weights alone: what their shapes do not say is an argument. Ours knows all of it, and an
    argument may only repeat what it says.

    Args:
        path: the file.
        device: where it computes.
        weights: of a published file, agent and velocity network: ``{agent,ema_agent}.{velocity_net,
            velocity_net_ema}``. Q^A is the one of the same agent.
        obs_horizon: o, stacked frames; 2 for a published file.
        pred_horizon: T, rows of a chunk; 16 for a published file.
        act_horizon: H, executed rows; for a published file what its Q^A takes (8 in most).
        denoising_steps: Euler steps from noise to chunk; 8 for a published file.
        flag: the setting to name in an error.

    Raises:
        InputError: the file is missing, damaged, no base policy, or does not fit the arguments.
    """
    path = Path(path)
    content = read_tensors(path, "base_policy checkpoint", flag, device)
    where = f"{flag}: {path}"
    horizons = {"obs_horizon": obs_horizon, "pred_horizon": pred_horizon, "act_horizon": act_horizon}
    if is_published(content):
        policy = published_policy(content, where, weights=weights, denoising_steps=denoising_steps, **horizons)
        return policy.to(device)
    content = check_kind(content, path, "base_policy", flag)
    if weights != DEFAULT_WEIGHTS:
        raise InputError(
            f"weights: expected the default {DEFAULT_WEIGHTS}, since {path} is ours and holds one set, "
            f"got {weights!r}"
        )
    policy = ShortcutFlowPolicy.from_checkpoint(content, where)
    for name, given in {**horizons, "denoising_steps": denoising_steps}.items():
        held = getattr(policy.spec, name)
        if given is not None and given != held:
            raise InputError(f"{name}: expected {held} as in {path}, got {given}")
    return policy.to(device)
