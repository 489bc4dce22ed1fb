"""Latent policies on disk: written by Stages 1 and 2, read by Stage 2 and by evaluation."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dsrl_offpolicy.base_policies.shortcut_flow import ShortcutFlowPolicy
from dsrl_offpolicy.checkpoint import load_checkpoint, load_weights, save_checkpoint
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.models.latent_layout import LatentLayout
from dsrl_offpolicy.models.latent_policy import LatentPolicy


def fingerprint(base: ShortcutFlowPolicy) -> str:
    """A hash of the weights that decode: a latent means nothing over another base policy."""
    return weights_digest(base.encoder, base.velocity)


def weights_digest(*modules: nn.Module) -> str:
    """The SHA-256 of modules' tensors and their names, in hexadecimal."""
    digest = hashlib.sha256()
    for name, value in [item for module in modules for item in module.state_dict().items()]:
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def steering_content(
    policy: LatentPolicy, base: ShortcutFlowPolicy, hidden_dims: tuple[int, ...], extra: Mapping[str, Any]
) -> dict[str, Any]:
    """What a checkpoint of a latent policy holds: what is needed to rebuild it, and what else the stage keeps."""
    layout = policy.layout
    steering = {
        "feature_dim": base.feature_dim,
        "hidden_dims": list(hidden_dims),
        "steer_mode": layout.mode,
        "pred_horizon": layout.pred_horizon,
        "action_dim": layout.action_dim,
        "executed_rows": [layout.executed_rows.start, layout.executed_rows.stop],
        "action_magnitude": layout.magnitude,
    }
    return {
        "steering": steering,
        "policy": policy.state_dict(),
        "base_fingerprint": fingerprint(base),
        **extra,
    }


def save_steering(
    path: Path,
    kind: str,
    policy: LatentPolicy,
    base: ShortcutFlowPolicy,
    hidden_dims: tuple[int, ...],
    extra: Mapping[str, Any],
) -> None:
    """Write a checkpoint of :func:`steering_content`."""
    save_checkpoint(path, kind, steering_content(policy, base, hidden_dims, extra))


def load_steering(
    path: Path, kind: str, flag: str, base: ShortcutFlowPolicy, device: torch.device
) -> tuple[LatentPolicy, dict[str, Any]]:
    """A latent policy and the whole content of its checkpoint.

    Raises:
        InputError: the file is damaged, of another kind, or belongs to another base policy.
    """
    content = load_checkpoint(path, kind, flag, device)
    steering = content.get("steering")
    if not isinstance(steering, dict) or not isinstance(content.get("policy"), dict):
        raise InputError(f"{flag}: expected a latent policy in {path}, got none")
    expected = {
        "feature_dim": base.feature_dim,
        "pred_horizon": base.latent_shape[0],
        "action_dim": base.latent_shape[1],
    }
    for name, value in expected.items():
        if steering.get(name) != value:
            raise InputError(f"{flag}: expected {name} {value} as in the base policy, got {steering.get(name)}")
    if content.get("base_fingerprint") != fingerprint(base):
        raise InputError(f"{flag}: expected a latent policy of this base policy, {path} was trained over another")
    layout = LatentLayout(
        steering["steer_mode"],
        steering["pred_horizon"],
        steering["action_dim"],
        slice(*steering["executed_rows"]),
        steering["action_magnitude"],
    )
    policy = LatentPolicy(base.feature_dim, steering["hidden_dims"], layout).to(device)
    load_weights(policy, content["policy"], f"{flag}: policy")
    return policy, content
