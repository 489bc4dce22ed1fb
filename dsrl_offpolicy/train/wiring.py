"""What every job does before it starts: device, files, environment, and whether they fit together."""

from __future__ import annotations

import functools
import logging
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import torch

from dsrl_offpolicy.base_policies.awsc import DEFAULT_WEIGHTS
from dsrl_offpolicy.base_policies.loading import load_base_policy
from dsrl_offpolicy.configs.loading import check_ranges, override, parse_job, read_settings
from dsrl_offpolicy.configs.shared import BasePolicyConfig, JobConfig, SimulatorConfig, SteeringConfig
from dsrl_offpolicy.contracts import BasePolicy, PolicyInfo, RewardTerms
from dsrl_offpolicy.envs.family import EnvFacts, find_family
from dsrl_offpolicy.envs.spec import EnvSpec
from dsrl_offpolicy.envs.vector import inspect_env
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.models.latent_layout import LatentLayout
from dsrl_offpolicy.seeding import seed_everything
from dsrl_offpolicy.train.interruption import Interrupted

Config = TypeVar("Config")


def command(job: type[Config], shipped_yaml: str, name: str) -> Callable[[Callable[[Config], Any]], Callable]:
    """Turn a job ``run(config)`` into a ``main(argv)`` that returns an exit status.

    0 where the job ended well; 2, with one line on standard error, where something the user gave is wrong.
    """

    def decorate(run: Callable[[Config], Any]) -> Callable[[Sequence[str] | None], int]:
        @functools.wraps(run)
        def main(argv: Sequence[str] | None = None) -> int:
            logging.getLogger("gymnasium").setLevel(logging.CRITICAL)
            threading.excepthook = _tell_unless_files
            try:
                run(parse_job(job, shipped_yaml, name, sys.argv[1:] if argv is None else argv))
            except InputError as error:
                print(f"{name}: error: {error}", file=sys.stderr)
                return 2
            except OSError as error:  # a full disk, a folder that may not be written
                print(f"{name}: error: expected files that can be read and written, got: {error}", file=sys.stderr)
                return 2
            except Interrupted as stop:
                print(f"{name}: {stop}", file=sys.stderr)
                return stop.exit_status
            except KeyboardInterrupt:
                print(f"{name}: interrupted", file=sys.stderr)
                return 130
            return 0

        return main

    return decorate


def _tell_unless_files(args: threading.ExceptHookArgs) -> None:
    """TensorBoard's thread cannot write on a full disk; the main thread hears of it and tells in one line."""
    if not issubclass(args.exc_type, OSError):
        threading.__excepthook__(args)


def config_of_run(config: Config, shipped_yaml: str) -> Config:
    """The settings of the run folder that ``config.resume`` names.

    Raises:
        InputError: no such run, or other settings given beside ``resume``.
    """
    folder: Path = config.resume.expanduser()  # type: ignore[attr-defined]
    for field in fields(config):  # type: ignore[arg-type]
        if field.name != "resume" and getattr(config, field.name) != field.default:
            raise InputError(
                f"--{field.name}: expected nothing beside --resume, which takes the run's own settings"
            )
    path = folder / "config.yaml"
    if not path.is_file():
        raise InputError(f"resume: expected a run folder, {path} does not exist")
    settings = read_settings(path)
    if not settings:
        raise InputError(f"{path}: expected a mapping of settings, got an empty file")
    return override(type(config), shipped_yaml, settings, str(path))


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


def load_base(config: BasePolicyConfig, device: torch.device) -> BasePolicy:
    """The base policy that ``--base`` or ``--awsc_checkpoint`` names.

    Raises:
        InputError: neither or both are given, or the policy cannot be loaded.
    """
    if config.base is not None and config.awsc_checkpoint is not None:
        raise InputError("base: expected either --base or --awsc_checkpoint, got both")
    flag = "awsc_checkpoint" if config.base is None else "base"
    spec = config.base if config.base is not None else config.awsc_checkpoint
    if spec is None:
        raise InputError("--base: expected a base policy (dsrl pretrain writes one), got nothing")
    return load_base_policy(
        spec,
        device,
        flag=flag,
        weights=config.weights if config.weights != DEFAULT_WEIGHTS else None,
        obs_horizon=config.obs_horizon,
        pred_horizon=config.pred_horizon,
        act_horizon=config.act_horizon,
    )


def task_env_spec(info: PolicyInfo, config: SimulatorConfig, **values: Any) -> EnvSpec:
    """The environment that a job's settings and its base policy describe; ``values`` are its other fields.

    Raises:
        InputError: settings that contradict the base policy.
    """
    control_mode, obs_mode = config.control_mode, config.obs_mode or info.obs_mode
    if None not in (config.image_size, info.image_size) and config.image_size != info.image_size:
        raise InputError(
            f"image_size: expected {info.image_size} as the base policy was trained with, got {config.image_size}"
        )
    if obs_mode != info.obs_mode:
        raise InputError(f"obs_mode: expected {info.obs_mode} as the base policy was trained with, got {obs_mode}")
    if "control_mode" in find_family(config.env_id, config.env_family).settings:
        control_mode = control_mode_of(info, config)
    return EnvSpec(
        config.env_id,
        obs_horizon=info.obs_horizon,
        act_horizon=info.act_horizon,
        control_mode=control_mode,
        obs_mode=obs_mode,
        sim_backend=config.sim_backend,
        render_backend=config.render_backend,
        image_size=config.image_size or info.image_size,
        robot_uids=config.robot_uids,
        timeout=config.env_timeout,
        env_family=config.env_family,
        **values,
    )


def control_mode_of(info: PolicyInfo, config: SimulatorConfig) -> str | None:
    """The controller of demonstrations and environment; a published base policy does not say its own.

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
    """The environment in which a base policy is evaluated, with the rewards of its Q^A (default ones where it has
    none, or does not say)."""
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


def rewards_of(base: BasePolicy) -> RewardTerms:
    """The rewards that a base policy's critic learned; unknown ones without a critic."""
    return base.critic.rewards if base.critic is not None else RewardTerms()


def check_fit(info: PolicyInfo, env_spec: EnvSpec) -> EnvFacts:
    """Build the environment once and hold it against the base policy.

    Raises:
        InputError: unknown environment, or dimensions that differ.
    """
    facts = inspect_env(env_spec)
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
        raise InputError(
            f"base policy: expected images of {channels // 3} cameras ({', '.join(cameras)}) for {env_id}, "
            f"got {info.image_channels // 3}"
        )
    if info.image_size is not None and info.image_size != size:
        raise InputError(
            f"base policy: expected images of {size[0]} x {size[1]} pixels for {env_id}, "
            f"got {info.image_size[0]} x {info.image_size[1]}"
        )


def note_other_task(info: PolicyInfo, env_id: str) -> None:
    """Tell the user, once the job has begun, that the base policy says it was trained on another task."""
    if info.env_id not in ("", env_id):
        print(f"note: the base policy was trained on {info.env_id}, not {env_id}", file=sys.stderr)


def note_unknown_rewards(rewards: RewardTerms) -> None:
    """Tell the user, once a job that starts from a distilled Q^W has begun, that nothing checks its rewards."""
    unknown = [name for name, value in vars(rewards).items() if value is None]
    if unknown:
        print(
            f"note: the base policy does not say with which {', '.join(unknown)} its Q^A was trained; "
            f"that they are those of this run is taken on the user's word",
            file=sys.stderr,
        )


def build_layout(info: PolicyInfo, config: SteeringConfig) -> LatentLayout:
    """The latents that a job steers."""
    rows, width = info.latent_shape
    return LatentLayout(config.steer_mode, rows, width, info.executed_rows, config.action_magnitude)
