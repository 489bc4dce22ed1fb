"""From YAML and flags to a job's frozen config: shipped YAML < ``--config`` YAML < flags."""

from __future__ import annotations

import contextlib
import io
import math
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import tyro
import yaml

from dsrl_offpolicy.errors import InputError, did_you_mean
from dsrl_offpolicy.files.plain import shown

Config = TypeVar("Config")

_POSITIVE = (lambda x: x > 0, "a number > 0")
_COUNT = (lambda x: x >= 1, "a whole number >= 1")
_NOT_NEGATIVE = (lambda x: x >= 0, "a number >= 0")
_FRACTION = (lambda x: 0 < x < 1, "a number in (0, 1)")
_HALF_OPEN = (lambda x: 0 <= x < 1, "a number in [0, 1)")
_RATE = (lambda x: 0 < x <= 1, "a number in (0, 1]")
_WIDTHS = (lambda x: len(x) > 0 and min(x) > 0, "at least one width > 0")
_POWER_OF_TWO = (lambda x: x >= 1 and x & (x - 1) == 0, "a power of two")

RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(
        ("batch_size", "num_envs", "torch_threads", "log_freq", "num_candidates", "num_critics", "obs_horizon",
         "pred_horizon", "act_horizon", "total_iters", "total_timesteps", "replay_buffer_size", "max_decode",
         "verify_states", "verify_samples", "actor_update_every", "episodes", "demo_steps", "max_episode_steps",
         "num_demos", "screening_episodes", "train_episode_steps", "distill_chunks",
         "visual_dim", "encoder_iters", "encoder_batch_size"),
        _COUNT,
    ),
    **dict.fromkeys(
        ("lr", "encoder_lr", "actor_lr", "critic_lr", "temp_lr", "utd_ratio", "action_magnitude", "beta_latent",
         "advantage_clip", "advantage_temperature", "max_weight", "reward_scale", "seconds", "env_timeout"),
        _POSITIVE,
    ),
    **dict.fromkeys(
        ("warmup_steps", "critic_burnin_steps", "eval_freq", "eval_episodes", "constants", "kappa", "kl_coef",
         "target_kl", "init_temperature", "action_noise", "image_shift",
         "save_freq", "seed"),
        _NOT_NEGATIVE,
    ),
    **dict.fromkeys(("actor_hidden_dims", "critic_hidden_dims", "velocity_widths"), _WIDTHS),
    **dict.fromkeys(("consistency_fraction", "noise_correlation", "ema_decay"), _HALF_OPEN),
    "held_out_fraction": _FRACTION,
    "expectile": _FRACTION,
    "critic_tau": _RATE,
    "budget": _RATE,
    "gamma": _RATE,
    **dict.fromkeys(("wrong_goal_prob", "anneal_from"), (lambda x: 0 <= x <= 1, "a number in [0, 1]")),
    "candidate_pool": (lambda x: x == "auto" or x >= 0, "auto or a number >= 0"),
    "denoising_steps": _POWER_OF_TWO,
    "embed_dim": (lambda x: x >= 4 and x % 2 == 0, "an even number >= 4"),
}  # fmt: skip


JOB_RANGES: dict[tuple[str, str], tuple[Callable[[Any], bool], str]] = {
    ("Stage1Config", "tau"): _POSITIVE,  # a temperature there
    ("Stage2Config", "tau"): _RATE,  # a Polyak rate there
    ("Stage1Config", "eval_episodes"): _COUNT,  # eval_freq 0 is how to leave evaluation out
    ("Stage2Config", "eval_episodes"): _COUNT,
}
LARGEST = 2**63
"""No number of a config is larger: beyond, generators and clocks have no such numbers."""

YAML_ERRORS = (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""What PyYAML raises; impossible dates, endless numbers and deep nests are among what Python refuses in it."""

MAY_BE_INFINITE = ("action_magnitude", "advantage_temperature")


def parse_job(job: type[Config], shipped_yaml: str | None, prog: str, argv: Sequence[str]) -> Config:
    """The config of one job.

    Args:
        job: its dataclass.
        shipped_yaml: file name beside this module; read first. None: the defaults are the dataclass's alone.
        prog: how the command is called, for ``--help``.
        argv: flags. ``--config FILE`` names a YAML file that is read second.

    Raises:
        InputError: an unknown key or flag (with the nearest valid name), or a value that does not fit.
    """
    flags, user_yaml = _take_config_flag(argv)
    _check_resume_alone(flags, user_yaml)
    tokens = _shipped_tokens(job, shipped_yaml)
    if user_yaml is not None:
        if not user_yaml.is_file():
            raise InputError(f"--config: expected a YAML file, {user_yaml} does not exist")
        tokens += _mapping_tokens(job, read_settings(user_yaml), str(user_yaml))
    return _parse_tokens(job, [*tokens, *flags], prog)


def override(job: type[Config], shipped_yaml: str | None, values: Mapping[str, Any], where: str) -> Config:
    """A job's config from its shipped YAML and a mapping of overrides (as a quickstart section gives them)."""
    return _parse_tokens(job, _shipped_tokens(job, shipped_yaml) + _mapping_tokens(job, values, where), where)


def read_settings(path: Path) -> dict[Any, Any]:
    """The settings in a YAML file that exists; an empty file has none.

    Raises:
        InputError: not readable, no text, no YAML, or no mapping.
    """
    try:
        text = path.read_text()
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path}: expected YAML, got: {' '.join(str(error).split())}") from error
    return _mapping(text, str(path))


def to_plain(config: Any) -> dict[str, Any]:
    """A config as plain YAML/JSON values."""

    def plain(value: Any) -> Any:
        if isinstance(value, Path):
            return str(value)
        return list(value) if isinstance(value, tuple) else value

    return {name: plain(value) for name, value in asdict(config).items()}


def _take_config_flag(argv: Sequence[str]) -> tuple[list[str], Path | None]:
    rest: list[str] = []
    path: Path | None = None
    items = iter(argv)
    for item in items:
        if item == "--config":
            value = next(items, None)
            if value is None:
                raise InputError("--config: expected a YAML file after it, got nothing")
            path = Path(value)
        elif item.startswith("--config="):
            path = Path(item.removeprefix("--config="))
        else:
            rest.append(item)
    return rest, path


def _check_resume_alone(flags: Sequence[str], user_yaml: Path | None) -> None:
    given = [flag for flag in flags if flag.startswith("--")]
    if any(flag.split("=")[0] == "--resume" for flag in given):
        others = [flag for flag in given if flag.split("=")[0] not in ("--resume", "--help")]
        others += ["--config"] if user_yaml is not None else []
        if others:
            raise InputError(f"{others[0]}: expected nothing beside --resume, which takes the run's own settings")


def _mapping(text: str, where: str) -> dict[Any, Any]:
    try:
        content = yaml.safe_load(text)
    except YAML_ERRORS as error:
        problem = " ".join(str(error).split())
        raise InputError(f"{where}: expected YAML, got: {problem}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InputError(f"{where}: expected a mapping of settings, got {type(content).__name__}")
    return content


def _shipped_tokens(job: type, name: str | None) -> list[str]:
    if name is None:
        return []
    text = resources.files("dsrl_offpolicy.configs").joinpath(name).read_text()
    return _mapping_tokens(job, _mapping(text, name), name)


def _mapping_tokens(job: type, content: Mapping[Any, Any], where: str) -> list[str]:
    names = [f.name for f in fields(job)]
    tokens: list[str] = []
    for key, value in content.items():
        if key not in names:
            raise InputError(f"{where}: unknown key {shown(key)}{_nearest(str(key)[:60], names)}")
        if isinstance(value, bool):
            tokens.append(f"--{key}" if value else f"--no-{key}")
        elif isinstance(value, list | tuple):
            tokens += [f"--{key}", *(_text(item, f"{where}: {key}") for item in value)]
        else:
            tokens.append(f"--{key}={_text(value, f'{where}: {key}')}")
    return tokens


def _text(value: Any, where: str) -> str:
    """A setting as it would be typed."""
    if isinstance(value, list | tuple | set | Mapping) or "\0" in str(value):
        raise InputError(f"{where}: expected a value or a list of values, got {shown(value)}")
    if re.match("-+[a-zA-Z]", str(value)):  # it would not be typed as a value, but as a flag
        raise InputError(f"{where}: expected a value, got {shown(value)}")
    return str(value)


def _parse_tokens(job: type[Config], tokens: list[str], prog: str) -> Config:
    # Tyro explains errors in a box of several lines; ours are one line.
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            config, unknown = tyro.cli(job, args=tokens, prog=prog, use_underscores=True, return_unknown_args=True)
    except SystemExit as error:
        if error.code in (0, None):
            raise
        raise InputError(_first_paragraph(said.getvalue())) from None
    if unknown:
        names = [f"--{f.name}" for f in fields(job)]  # type: ignore[arg-type]
        flag = next((u for u in unknown if u.startswith("--")), unknown[0])
        raise InputError(f"unknown flag {textwrap.shorten(flag, 80)}{_nearest(flag.split('=')[0][:80], names)}")
    check_ranges(config)
    return config


def check_ranges(config: Any) -> None:
    """Refuse values that no job could use.

    Raises:
        InputError: naming the field, what was expected and what came.
    """
    for f in fields(config):
        value = getattr(config, f.name)
        if value is None:
            continue
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int) and abs(number) >= LARGEST:
                raise InputError(f"{f.name}: expected a number below 2^63, got {shown(number)}")
            infinite = isinstance(number, float) and not math.isfinite(number)
            if infinite and (math.isnan(number) or f.name not in MAY_BE_INFINITE):
                raise InputError(f"{f.name}: expected a finite number, got {number}")
        key = (type(config).__name__, f.name)
        holds, expected = JOB_RANGES.get(key) or RANGES.get(f.name) or (None, "")
        if holds is not None and not holds(value):
            raise InputError(f"{f.name}: expected {expected}, got {value}")


def _nearest(name: str, names: Sequence[str]) -> str:
    return did_you_mean(name, names) or f"; valid: {', '.join(names)}"


def _first_paragraph(box: str) -> str:
    lines = []
    for line in box.splitlines()[1:]:
        text = line.strip("│╭╮╰╯ ")
        if text.startswith("─"):
            break
        lines.append(text)
    return textwrap.shorten(" ".join(lines), 400)
