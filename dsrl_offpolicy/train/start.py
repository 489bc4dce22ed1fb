"""How a job starts: torch, its files, its base policy, and what the user should know beforehand."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from dsrl_offpolicy.base_policies.loading import load_base_policy
from dsrl_offpolicy.base_policies.shortcut_flow import DEFAULT_WEIGHTS
from dsrl_offpolicy.configs.loading import check_ranges
from dsrl_offpolicy.configs.shared import BasePolicyConfig, ComputeConfig, SteeringConfig
from dsrl_offpolicy.contracts import BasePolicy, PolicyInfo, RewardTerms, observation_tensors
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.models.latent_layout import LatentLayout
from dsrl_offpolicy.seeding import seed_everything
from dsrl_offpolicy.tracking.sink import find_sinks


def start_torch(config: ComputeConfig) -> torch.device:
    """Check the settings, seed, set threads, choose the device: how every job begins.

    Raises:
        InputError: a setting out of range, or a device that is not there.
    """
    check_ranges(config)
    find_sinks(config)
    torch.set_num_threads(config.torch_threads)
    torch.set_float32_matmul_precision("highest")  # of an earlier job of this process it may be tf32
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
    """Return the path of a setting that must be given.

    Raises:
        InputError: it was not.
    """
    if path is None:
        raise InputError(f"--{flag}: expected {what}, got nothing")
    return path.expanduser()


def load_base(config: BasePolicyConfig, device: torch.device) -> BasePolicy:
    """Load the base policy that ``--base`` or ``--awsc_checkpoint`` names.

    Raises:
        InputError: neither or both are given, or the policy cannot be loaded.
    """
    if config.base is not None and config.awsc_checkpoint is not None:
        raise InputError("base: expected either --base or --awsc_checkpoint, got both")
    flag = "awsc_checkpoint" if config.base is None else "base"
    spec = config.base if config.base is not None else config.awsc_checkpoint
    if not spec:
        raise InputError("--base: expected a base policy (dsrl pretrain writes one), got nothing")
    return load_base_policy(
        spec,
        device,
        flag=flag,
        weights=config.weights if config.weights != DEFAULT_WEIGHTS else None,
        obs_horizon=config.obs_horizon,
        pred_horizon=config.pred_horizon,
        act_horizon=config.act_horizon,
        instruction=config.instruction,
    )


def rewards_of(base: BasePolicy) -> RewardTerms:
    """Return the rewards that a base policy's critic learned; unknown ones without a critic."""
    return base.critic.rewards if base.critic is not None else RewardTerms()


def decodes_from_features(base: BasePolicy, device: torch.device) -> bool:
    """Return whether features alone decode, without a context that nobody keeps; tried on one example."""
    with torch.no_grad():
        return base.encode(observation_tensors(base.example_observation(1), device)).context is None


def note_other_task(info: PolicyInfo, env_id: str) -> None:
    """Tell the user, once the job has begun, that the base policy says it was trained on another task."""
    if info.env_id not in ("", env_id):
        print(f"note: the base policy was trained on {info.env_id}, not {env_id}", file=sys.stderr)


def note_unknown_rewards(rewards: RewardTerms) -> None:
    """Tell the user, once a job that starts from a distilled Q^W has begun, that nothing checks its rewards."""
    unknown = [name for name, value in vars(rewards).items() if value is None]
    if unknown:
        print(
            f"note: the base policy does not say which {', '.join(unknown)} its Q^A was trained with; "
            "this run's are assumed to be the same",
            file=sys.stderr,
        )


def build_layout(info: PolicyInfo, config: SteeringConfig) -> LatentLayout:
    """Return the latents that a job steers."""
    rows, width = info.latent_shape
    return LatentLayout(config.steer_mode, rows, width, info.executed_rows, config.action_magnitude)
