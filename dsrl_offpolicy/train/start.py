"""How a job starts: torch, its files, and what the user should know beforehand."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from dsrl_offpolicy.base_policies.loading import load_base_policy
from dsrl_offpolicy.base_policies.shortcut_flow import ShortcutFlowPolicy, ShortcutFlowSpec
from dsrl_offpolicy.configs.loading import check_ranges
from dsrl_offpolicy.configs.shared import BasePolicyConfig, JobConfig, SteeringConfig
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.models.latent_layout import LatentLayout
from dsrl_offpolicy.seeding import seed_everything


def start_torch(config: JobConfig) -> torch.device:
    """Check the settings, seed, set threads, choose the device: how every job begins.

    Raises:
        InputError: a setting out of range, or a device that is not there.
    """
    check_ranges(config)
    torch.set_num_threads(config.torch_threads)
    seed_everything(config.seed)
    name = config.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device: expected a torch device of this machine, got {config.device!r}") from error
    return device


def require_file(path: Path | None, flag: str, what: str) -> Path:
    """The path of a setting that must be given.

    Raises:
        InputError: it was not.
    """
    if path is None:
        raise InputError(f"--{flag}: expected {what}, got nothing")
    return path.expanduser()


def load_base(config: BasePolicyConfig, device: torch.device) -> ShortcutFlowPolicy:
    """The base policy that ``--awsc_checkpoint`` names."""
    return load_base_policy(
        require_file(
            config.awsc_checkpoint,
            "awsc_checkpoint",
            "the checkpoint of a base policy (dsrl pretrain writes one)",
        ),
        device,
        weights=config.weights,
        obs_horizon=config.obs_horizon,
        pred_horizon=config.pred_horizon,
        act_horizon=config.act_horizon,
    )


def note_other_task(spec: ShortcutFlowSpec, env_id: str) -> None:
    """Tell the user, once the job has begun, that the base policy says it was trained on another task."""
    if spec.env_id not in ("", env_id):
        print(f"note: the base policy was trained on {spec.env_id}, not {env_id}", file=sys.stderr)


def note_unknown_rewards(spec: ShortcutFlowSpec) -> None:
    """Tell the user, once a job that starts from a distilled Q^W has begun, that nothing checks its rewards."""
    names = ("gamma", "reward_mode", "reward_scale", "end_on_success")
    unknown = [name for name in names if getattr(spec, name) is None]
    if unknown:
        print(
            f"note: the base policy does not say with which {', '.join(unknown)} its Q^A was trained; "
            f"that they are those of this run is taken on the user's word",
            file=sys.stderr,
        )


def build_layout(base: ShortcutFlowPolicy, config: SteeringConfig) -> LatentLayout:
    """The latents that a job steers."""
    rows, action_dim = base.latent_shape
    return LatentLayout(config.steer_mode, rows, action_dim, base.executed_rows, config.action_magnitude)
