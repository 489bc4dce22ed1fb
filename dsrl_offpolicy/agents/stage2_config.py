"""The settings of ``dsrl stage2``: its loop's and, beside them, those of the algorithm that ``--algo`` names."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from dsrl_offpolicy.agents.dsrl_sac_agent import SACConfig
from dsrl_offpolicy.agents.steering_agent import SteeringAgent
from dsrl_offpolicy.configs.jobs import Stage2LoopConfig
from dsrl_offpolicy.configs.loading import read_preset, read_settings, take_preset
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.registry import ALGORITHMS

CONTRACT = (
    "a Stage 2 algorithm subclasses SteeringAgent, is built as Algorithm(config, feature_dim, layout, *, "
    "generator, device, base), and has a frozen dataclass Config with a default for every field"
)


@dataclass(frozen=True, kw_only=True)
class Stage2Config(SACConfig, Stage2LoopConfig):
    """dsrl stage2: online SAC in the latent space of the frozen base policy."""


def find_algorithm(name: str) -> type[SteeringAgent]:
    """Return the algorithm that ``--algo`` names.

    Raises:
        InputError: an unknown name, or a class that does not fulfil the contract.
    """
    found = ALGORITHMS.find(name, "algo", SteeringAgent)
    problem = _breach(found)
    if problem:
        raise InputError(f"algo: {name} {problem}; {CONTRACT}")
    return found


def _breach(found: Any) -> str:
    """What an algorithm lacks; empty if nothing."""
    config = getattr(found, "Config", None)
    if not (isinstance(config, type) and is_dataclass(config) and config.__dataclass_params__.frozen):  # type: ignore[attr-defined]
        return "has no frozen dataclass Config"
    without = [f.name for f in fields(config) if f.default is MISSING and f.default_factory is MISSING]
    if without:
        return f"has no default for {', '.join(without)} in its Config"
    try:
        inspect.signature(found).bind(None, 1, None, generator=None, device=None, base=None)
    except TypeError as error:
        return f"cannot be built: {error}"
    return ""


def stage2_config(name: str) -> type[Stage2LoopConfig]:
    """Return the settings of a Stage 2 run with the algorithm ``name``, as one flat frozen dataclass.

    Raises:
        InputError: as :func:`find_algorithm`.
    """
    return Stage2Config if name == "sac" else _combined(name, find_algorithm(name).Config)


@functools.cache
def _combined(name: str, own: type) -> type[Stage2LoopConfig]:
    doc = f"dsrl stage2 --algo {name}."
    body = {"__doc__": doc, "__module__": __name__, "__annotations__": {"algo": str}, "algo": name}
    loop = Stage2Config if issubclass(own, SACConfig) else Stage2LoopConfig
    return dataclass(frozen=True, kw_only=True)(type("Stage2Config", (own, loop), body))


def chosen_algorithm(argv: Sequence[str]) -> str:
    """Return the algorithm that flags name, or their ``--config``, the run they resume, or their ``--preset``."""
    flags = {"--algo": "", "--config": "", "--resume": ""}
    for flag, following in pairwise([*argv, ""]):
        name, _, value = flag.partition("=")
        if name in flags:
            flags[name] = value or following
    if flags["--algo"]:
        return flags["--algo"]
    files = (Path(flags["--config"]), Path(flags["--resume"]).expanduser() / "config.yaml")
    for given, path in zip((flags["--config"], flags["--resume"]), files, strict=True):
        if given and path.is_file():
            settings = read_settings(path)
            if "algo" in settings:
                return str(settings["algo"])
    preset = take_preset(argv)[1]
    return str(read_preset(preset).get("algo", "sac")) if preset is not None else "sac"


def shipped_yaml(name: str) -> str | None:
    """Return the file of defaults beside the configs; the settings of a user's own algorithm have none."""
    return "stage2_online.yaml" if name == "sac" else None
