"""Whether what a checkpoint of a Stage 2 run holds is the state of such a run: checked before any is restored."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsrl_offpolicy.buffers.replay_files import ReplayFiles
from dsrl_offpolicy.configs.jobs import Stage2Config
from dsrl_offpolicy.contracts import BasePolicy
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.files.plain import check_fields, reading, shown
from dsrl_offpolicy.train.wiring import build_layout

STATE = {
    "env_id": str, "device": str, "base_fingerprint": str, "counters": dict[str, int], "training": dict[str, Any],
    "replay": dict[str, Any], "collector": dict[str, Any] | None, "recent": list[bool], "best": float,
    "next_evaluation": int, "actor_metrics": dict[str, Tensor],
    "log": dict[str, Any], "random": dict[str, Any],
}  # fmt: skip
LOG = {"minutes": float, "rows": int, "step": int, "wandb_id": str | None}
RANDOM = {"python": list[Any], "numpy": list[Any], "torch": Tensor}
COLLECTOR = {
    "episodes": list[dict[str, Any]],
    "features": Tensor,
    "latent": Tensor,
    "noise": Tensor,
    "starts": str,
}
EPISODE = {"seed": int, "chunks": Tensor}


def check_run_state(
    content: Mapping[str, Any],
    *,
    counters: type,
    config: Stage2Config,
    base: BasePolicy,
    replay: ReplayFiles,
) -> None:
    """Hold the content of a checkpoint against the run that it should be of.

    Args:
        content: what the file holds.
        counters: the dataclass of a run's counters.
        config: the run's settings.
        base: its base policy.
        replay: its files of transitions, which are held against their digests.

    Raises:
        InputError: entries that are missing, of another type or shape, or that contradict each other.
    """
    where = "resume: state of the run"
    check_fields(content, STATE, where)
    check_log_and_random(content, where)
    check_fields(content["counters"], {f.name: int for f in fields(counters)}, f"{where}: counters")
    _check_counters(content, where, counters, config)
    if content["collector"] is not None:
        _check_collector(content["collector"], f"{where}: collector", config, base, content["device"])
    replay.check(content["replay"])


def check_log_and_random(content: Mapping[str, Any], where: str) -> None:
    """Hold what a run of any stage keeps of its logs and of the global generators against what these are.

    Raises:
        InputError: naming ``where``.
    """
    check_fields(content["log"], LOG, f"{where}: log")
    _check_random(content["random"], f"{where}: random")


def _check_counters(content: Mapping[str, Any], where: str, counters: type, config: Stage2Config) -> None:
    """Numbers that would make the rest of the run another length."""
    with reading(f"{where}: counters", f"the counters {', '.join(f.name for f in fields(counters))}"):
        found = counters(**content["counters"])
    log = content["log"]
    for name, value in {**content["counters"], "rows": log["rows"], "minutes": log["minutes"]}.items():
        if not value >= 0:
            raise InputError(f"{where}: {name}: expected a number >= 0, got {shown(value)}")
    most = config.num_envs * config.utd_ratio + 1
    if abs(found.owed(config.utd_ratio)) > most or found.macro_steps > found.env_steps:
        raise InputError(f"{where}: counters: expected numbers that fit each other, got others")


def _check_collector(
    state: Mapping[str, Any], where: str, config: Stage2Config, base: BasePolicy, device: str
) -> None:
    check_fields(state, COLLECTOR, where)
    if len(state["episodes"]) != config.num_envs:
        raise InputError(f"{where}: expected {config.num_envs} episodes, got {len(state['episodes'])}")
    width = build_layout(base.info, config).dim
    for name, expected in (("features", base.info.feature_dim), ("latent", width)):
        _check_tensor(state[name], (config.num_envs, expected), f"{where}: {name}")
    for episode in state["episodes"]:
        check_fields(episode, EPISODE, where)
        if not 0 <= episode["seed"] < 2**32:
            raise InputError(f"{where}: seed: expected a number from 0 to 2^32, got {shown(episode['seed'])}")
        chunks = episode["chunks"]
        if chunks.ndim != 3 or not len(chunks):
            raise InputError(f"{where}: chunks: expected at least one of [H, A], got {tuple(chunks.shape)}")
        _check_tensor(chunks, (len(chunks), base.info.act_horizon, base.info.action_dim), f"{where}: chunks")
    with reading(where, "states of generators"):
        torch.Generator(device).set_state(state["noise"].cpu())
        np.random.default_rng().bit_generator.state = json.loads(state["starts"])


def _check_random(states: Mapping[str, Any], where: str) -> None:
    """Try the states of the global generators on others."""
    check_fields(states, RANDOM, where)
    with reading(where, "states of generators"):
        version, words, gauss = states["python"]
        random.Random().setstate((version, tuple(words.tolist()), gauss))
        name, keys, *rest = states["numpy"]
        np.random.RandomState().set_state((name, keys.numpy().astype(np.uint32), *rest))
        torch.Generator().set_state(states["torch"].cpu())


def _check_tensor(value: Tensor, shape: tuple[int, ...], where: str) -> None:
    if tuple(value.shape) != shape or value.dtype != torch.float32:
        raise InputError(f"{where}: expected {shape} of float32, got {tuple(value.shape)} of {value.dtype}")
    if not bool(value.isfinite().all()):
        raise InputError(f"{where}: expected finite numbers, got NaN or infinity")
