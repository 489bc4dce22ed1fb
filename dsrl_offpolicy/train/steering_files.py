"""Latent policies on disk: written by Stages 1 and 2, read by Stage 2 and by evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from dsrl_offpolicy.contracts import BasePolicy
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.files.checkpoint import check_weights, load_checkpoint, load_weights, save_checkpoint
from dsrl_offpolicy.files.plain import from_plain, reading, shown
from dsrl_offpolicy.models.latent_layout import LatentLayout, SteerMode
from dsrl_offpolicy.models.latent_policy import LatentPolicy


@dataclass(frozen=True)
class Steering:
    """What it takes to rebuild a latent policy from its weights; the fields mean what they mean in the layout."""

    feature_dim: int
    hidden_dims: tuple[int, ...]
    steer_mode: SteerMode
    pred_horizon: int
    action_dim: int
    executed_rows: tuple[int, int]
    action_magnitude: float

    def layout(self, where: str) -> LatentLayout:
        """Return the steered part of the noise.

        Raises:
            InputError: rows that a chunk does not have, a magnitude that is no positive number, widths below 1.
        """
        start, stop = self.executed_rows
        if not 0 <= start < stop <= self.pred_horizon:
            raise InputError(
                f"{where}: executed_rows: expected rows of 0 to {self.pred_horizon}, got {self.executed_rows}"
            )
        if not self.action_magnitude > 0:
            raise InputError(f"{where}: action_magnitude: expected a number > 0, got {self.action_magnitude}")
        if min(self.hidden_dims, default=0) < 1:
            raise InputError(f"{where}: hidden_dims: expected at least one width > 0, got {self.hidden_dims}")
        return LatentLayout(
            self.steer_mode, self.pred_horizon, self.action_dim, slice(start, stop), self.action_magnitude
        )


def steering_content(
    policy: LatentPolicy, base: BasePolicy, hidden_dims: tuple[int, ...], extra: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what a checkpoint of a latent policy holds: what rebuilds it, and what else the stage keeps."""
    layout = policy.layout
    steering = Steering(
        feature_dim=base.info.feature_dim,
        hidden_dims=tuple(hidden_dims),
        steer_mode=layout.mode,
        pred_horizon=layout.pred_horizon,
        action_dim=layout.action_dim,
        executed_rows=(layout.executed_rows.start, layout.executed_rows.stop),
        action_magnitude=layout.magnitude,
    )
    return {
        "steering": {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(steering).items()},
        "policy": policy.state_dict(),
        "base_fingerprint": base.fingerprint(),
        **extra,
    }


def save_steering(
    path: Path,
    kind: str,
    policy: LatentPolicy,
    base: BasePolicy,
    hidden_dims: tuple[int, ...],
    extra: Mapping[str, Any],
) -> None:
    """Write a checkpoint of :func:`steering_content`."""
    save_checkpoint(path, kind, steering_content(policy, base, hidden_dims, extra))


def load_steering(
    path: Path, kind: str, flag: str, base: BasePolicy, device: torch.device
) -> tuple[LatentPolicy, dict[str, Any]]:
    """Load a latent policy and the whole content of its checkpoint.

    Raises:
        InputError: the file is damaged, of another kind, or belongs to another base policy.
    """
    content = load_checkpoint(path, kind, flag, device)
    if not isinstance(content.get("steering"), dict) or not isinstance(content.get("policy"), dict):
        raise InputError(f"{flag}: expected a latent policy in {path}, got none")
    steering = from_plain(Steering, content["steering"], f"{flag}: {path}")
    expected = {
        "feature_dim": base.info.feature_dim,
        "pred_horizon": base.info.latent_shape[0],
        "action_dim": base.info.latent_shape[1],
    }
    for name, value in expected.items():
        found = getattr(steering, name)
        if found != value:
            raise InputError(f"{flag}: expected {name} {value} as in the base policy, got {shown(found)}")
    if content.get("base_fingerprint") != base.fingerprint():
        raise InputError(f"{flag}: expected a latent policy of this base policy, {path} was trained over another")
    layout = steering.layout(f"{flag}: {path}")
    with torch.device("meta"), reading(f"{flag}: {path}", "dimensions that make a network"):  # before any memory
        shapes = LatentPolicy(base.info.feature_dim, steering.hidden_dims, layout)
        check_weights(shapes, content["policy"], f"{flag}: policy")
    policy = LatentPolicy(base.info.feature_dim, steering.hidden_dims, layout).to(device)
    load_weights(policy, content["policy"], f"{flag}: policy")
    return policy, content


def start_actor(actor: LatentPolicy, path: Path, base: BasePolicy, device: torch.device) -> dict[str, Any]:
    """Start a latent policy as the one of Stage 1. Returns the whole content of that checkpoint.

    Raises:
        InputError: as :func:`load_steering`, or its latents or widths are others.
    """
    policy, content = load_steering(path, "stage1", "stage1_checkpoint", base, device)
    if policy.layout != actor.layout:
        raise InputError(
            f"stage1_checkpoint: expected steer_mode {actor.layout.mode} and action_magnitude "
            f"{actor.layout.magnitude}, got {policy.layout.mode} and {policy.layout.magnitude}"
        )
    load_weights(actor, policy.state_dict(), "stage1_checkpoint: policy (actor_hidden_dims)")
    return content
