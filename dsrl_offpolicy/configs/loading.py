"""From YAML and flags to a job's frozen config: shipped YAML < ``--config`` YAML < flags."""

from __future__ import annotations

import contextlib
import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import tyro
import yaml

from dsrl_offpolicy.configs.help import help_text
from dsrl_offpolicy.errors import InputError, did_you_mean
from dsrl_offpolicy.files.plain import checked, shown

Config = TypeVar("Config")

YAML_ERRORS = (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""What PyYAML raises; impossible dates, endless numbers and deep nests are among what Python refuses in it."""

HELP_ALL = ("--help_all", "--help-all")
PRESETS = "presets"
"""Folder beside this module: a YAML file per preset."""
MAY_BE_INFINITE = ("action_magnitude", "advantage_temperature")


def parse_job(job: type[Config], shipped_yaml: str | None, prog: str, argv: Sequence[str]) -> Config:
    """Parse the config of one job.

    Args:
        job: its dataclass.
        shipped_yaml: file name beside this module; read first. None: the defaults are the dataclass's alone.
        prog: how the command is called, for ``--help``.
        argv: flags. ``--preset NAME``, for jobs that have presets, names shipped settings that are read second,
            ``--config FILE`` a YAML file that is read third.

    Raises:
        InputError: an unknown key or flag (with the nearest valid name), or a value that does not fit.
        SystemExit: ``--help`` or ``--help_all`` was asked for, and is printed.
    """
    asked = [flag for flag in argv if flag in ("-h", "--help", *HELP_ALL)]
    if asked:
        everything = asked[-1] in HELP_ALL
        defaults = override(job, shipped_yaml, {}, "")
        presets = preset_names() if getattr(job, "has_presets", False) else ()
        print(help_text(defaults, prog, everything=everything, presets=presets))
        raise SystemExit(0)
    flags, user_yaml = _take_config_flag(argv)
    flags, preset = take_preset(flags) if getattr(job, "has_presets", False) else (flags, None)
    _check_resume_alone(flags, {"--config": user_yaml, "--preset": preset})
    if user_yaml is not None and not user_yaml.is_file():
        raise InputError(f"--config: expected a YAML file, {user_yaml} does not exist")
    values = read_settings(user_yaml) if user_yaml is not None else {}
    chosen = read_preset(preset) if preset is not None else {}
    return _with_flags(override(job, shipped_yaml, {**chosen, **values}, str(user_yaml)), flags, prog)


def preset_names() -> list[str]:
    """Return what ``--preset`` takes."""
    folder = resources.files("dsrl_offpolicy.configs").joinpath(PRESETS)
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def read_preset(name: str) -> dict[Any, Any]:
    """Return the settings of a preset.

    Raises:
        InputError: an unknown name.
    """
    if name not in preset_names():
        raise InputError(f"--preset: unknown preset {shown(name)}{_nearest(name[:60], preset_names())}")
    file = resources.files("dsrl_offpolicy.configs").joinpath(PRESETS, f"{name}.yaml")
    return _mapping(file.read_text(), f"--preset {name}")


def take_preset(argv: Sequence[str]) -> tuple[list[str], str | None]:
    """Take ``--preset NAME`` out of the flags.

    Raises:
        InputError: no name after it.
    """
    rest, names = take_flag(argv, "--preset")
    if None in names:
        raise InputError("--preset: expected a name after it, got nothing")
    return rest, names[-1] if names else None


def take_flag(argv: Sequence[str], flag: str) -> tuple[list[str], list[str | None]]:
    """Take every ``FLAG VALUE`` and ``FLAG=VALUE`` out of ``argv``; return the rest and the values.

    The last value is None where nothing follows the flag.
    """
    rest: list[str] = []
    values: list[str | None] = []
    items = iter(argv)
    for item in items:
        name, given, value = item.partition("=")
        if name == flag:
            values.append(value if given else next(items, None))
        else:
            rest.append(item)
    return rest, values


def override(job: type[Config], shipped_yaml: str | None, values: Mapping[Any, Any], where: str) -> Config:
    """Build a job's config from its shipped YAML and a mapping of overrides."""
    shipped: dict[Any, Any] = {}
    if shipped_yaml is not None:
        text = resources.files("dsrl_offpolicy.configs").joinpath(shipped_yaml).read_text()
        shipped = _mapping(text, shipped_yaml)
    return _checked(job, {**shipped, **values}, where)


def read_settings(path: Path) -> dict[Any, Any]:
    """Read the settings in a YAML file that exists; an empty file has none.

    Raises:
        InputError: not readable, no text, no YAML, or no mapping.
    """
    try:
        text = path.read_text()
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path}: expected YAML, got: {' '.join(str(error).split())}") from error
    return _mapping(text, str(path))


def to_plain(config: Any) -> dict[str, Any]:
    """Return a config as plain YAML/JSON values."""
    return plain_settings(asdict(config))


def plain_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as a YAML file would hold them: paths as text, tuples as lists."""

    def plain(value: Any) -> Any:
        if isinstance(value, Path):
            return str(value)
        return list(value) if isinstance(value, tuple) else value

    return {name: plain(value) for name, value in settings.items()}


def _take_config_flag(argv: Sequence[str]) -> tuple[list[str], Path | None]:
    rest, paths = take_flag(argv, "--config")
    if None in paths:
        raise InputError("--config: expected a YAML file after it, got nothing")
    return rest, Path(paths[-1]) if paths and paths[-1] is not None else None


def _check_resume_alone(flags: Sequence[str], taken: Mapping[str, Path | str | None]) -> None:
    given = [flag for flag in flags if flag.startswith("--")]
    if any(flag.split("=")[0] == "--resume" for flag in given):
        others = [flag for flag in given if flag.split("=")[0] != "--resume"]
        others += [flag for flag, value in taken.items() if value is not None]
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


def _checked(job: type[Config], values: Mapping[Any, Any], where: str) -> Config:
    names = [f.name for f in fields(job)]  # type: ignore[arg-type]
    for key, value in values.items():
        if key not in names:
            raise InputError(f"{where}: unknown key {shown(key)}{_nearest(str(key)[:60], names)}")
        if isinstance(value, str) and "\0" in value:
            raise InputError(f"{where}: {key}: expected text without NUL, got {shown(value)}")
    unbounded = {name: math.inf for name in MAY_BE_INFINITE if values.get(name) in (math.inf, "inf")}
    config: Any = checked({n: v for n, v in values.items() if n not in unbounded}, job, where, strict=False)
    return replace(config, **unbounded)


def _with_flags(config: Config, flags: Sequence[str], prog: str) -> Config:
    # Tyro explains errors in a box of several lines; ours are one line.
    job, said = type(config), io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            config, unknown = tyro.cli(
                job, args=flags, prog=prog, default=config, use_underscores=True, return_unknown_args=True
            )
    except SystemExit:
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
    _checked(type(config), vars(config), "")


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
