"""What of a Stage 2 run is saved, how it is checked before anything is restored, and how it is restored."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dsrl_offpolicy.buffers.replay_files import ReplayFiles
from dsrl_offpolicy.configs.jobs import Stage2LoopConfig
from dsrl_offpolicy.contracts import BasePolicy
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.files.plain import check_fields, reading, shown
from dsrl_offpolicy.rollouts.collector import Collector
from dsrl_offpolicy.rollouts.ray_collector import RayCollector
from dsrl_offpolicy.seeding import restore_random_states
from dsrl_offpolicy.train.run import Resumable
from dsrl_offpolicy.train.start import build_layout
from dsrl_offpolicy.train.steering_files import steering_content

if TYPE_CHECKING:
    from dsrl_offpolicy.train.train_stage2_online import Stage2

STATE = {
    "env_id": str, "base_fingerprint": str, "counters": dict[str, int], "replay": dict[str, Any],
    "collector": dict[str, Any] | None, "recent": list[bool], "best": float, "best_return": float,
    "next_evaluation": int, "actor_metrics": dict[str, Tensor], "offline": Tensor | None,
}  # fmt: skip
COLLECTOR = {
    "episodes": list[dict[str, Any]],
    "features": Tensor,
    "latent": Tensor,
    "noise": Tensor,
    "starts": str,
}
EPISODE = {"seed": int, "chunks": Tensor}
RAY_COLLECTOR = {"noise": Tensor, "lives": int}


@dataclass
class Counters:
    """Where a run stands.

    ``earning_transitions`` are the macro-transitions stored since updates began; the effective update-to-data
    ratio is ``gradient_steps / earning_transitions``. Burn-in steps are counted apart. ``lost_macro_steps`` were
    dropped because their environment process or their runner died or hung. ``restarted_episodes`` began anew in
    the middle: after such a loss, or because a run that resumed could not go on with them.
    """

    env_steps: int = 0
    macro_steps: int = 0
    gradient_steps: int = 0
    burnin_steps: int = 0
    earning_transitions: int = 0
    episodes: int = 0
    lost_macro_steps: int = 0
    restarted_episodes: int = 0

    def owed(self, utd_ratio: float) -> int:
        """Return gradient steps that the stored transitions have earned and that are not done yet."""
        return int(self.earning_transitions * utd_ratio + 1e-9) - self.gradient_steps

    @property
    def utd_effective(self) -> float:
        """Gradient steps per macro-transition, as done."""
        return self.gradient_steps / max(self.earning_transitions, 1)

    @property
    def axes(self) -> dict[str, int]:
        """What a row of metrics stands at."""
        return {
            "env_steps": self.env_steps,
            "macro_steps": self.macro_steps,
            "gradient_steps": self.gradient_steps,
        }


COUNTERS = {f.name: int for f in fields(Counters)}


class Stage2State(Resumable):
    """Saves and restores a Stage 2 run.

    Args:
        stage: what is trained.
        folder: of the run; transitions go to ``replay/`` in it.
    """

    def __init__(self, stage: Stage2, folder: Path) -> None:
        self.stage = stage
        self.replay_files = ReplayFiles(folder / "replay")

    def progress(self) -> tuple[int, int]:
        """Return env steps, done and planned."""
        return self.stage.counters.env_steps, self.stage.config.total_timesteps

    def state(self) -> dict[str, Any]:
        """Return the state; that of a finished run has no collector."""
        stage, config = self.stage, self.stage.config
        state: dict[str, Any] = {
            "env_id": config.env_id,
            "counters": asdict(stage.counters),
            "training": stage.agent.training_state(),
            "replay": self.replay_files.save(stage.buffer),
            "collector": stage.collector.state_dict() if stage.collector is not None else None,
            "recent": list(stage.recent),
            **stage.best.state_dict(),
            "next_evaluation": stage.next_evaluation,
            "actor_metrics": stage.actor_metrics,
            "offline": stage.offline.generator.get_state() if stage.offline is not None else None,
        }
        return steering_content(stage.agent.actor, stage.base, config.actor_hidden_dims, state)

    def saved(self) -> None:
        """Remove the files of transitions that neither the last save nor the one before needs."""
        self.replay_files.discard_older()

    def snapshot(self) -> dict[str, Any]:
        """Return counters, weights, and the batch of the last gradient step."""
        stage = self.stage
        return {
            "env_id": stage.config.env_id,
            "counters": asdict(stage.counters),
            "networks": stage.agent.state_dict(),
            "batch": vars(stage.batch) if stage.batch is not None else None,
        }

    def check(self, state: Mapping[str, Any], where: str) -> None:
        """Check types, shapes, counters against each other, and the files of transitions."""
        config = self.stage.config
        check_fields(state, STATE, where, optional=("best_return", "offline"))
        check_fields(state["counters"], COUNTERS, f"{where}: counters", ("restarted_episodes",))
        _check_counters(state, where, config)
        if state["collector"] is not None:
            check = _check_ray_collector if config.backend == "ray" else _check_collector
            check(state["collector"], f"{where}: collector", config, self.stage.base, state["device"])
        self.replay_files.check(state["replay"])

    def restore(self, state: Mapping[str, Any], collector: Collector | RayCollector) -> bool:
        """Bring everything to where the run was saved; False if the episodes in flight could not be."""
        stage = self.stage
        stage.agent.load_training_state(state["training"])
        self.replay_files.load(stage.buffer, state["replay"])
        for name, value in state["counters"].items():
            setattr(stage.counters, name, value)
        stage.recent.extend(state["recent"])
        stage.best.load_state_dict(state)
        stage.next_evaluation = state["next_evaluation"]
        stage.actor_metrics = state["actor_metrics"]
        if stage.offline is not None:
            with reading("resume: offline", "the state of a generator"):
                stage.offline.generator.set_state(state["offline"].cpu())
        same = collector.load_state_dict(state["collector"])
        if not same:
            stage.counters.restarted_episodes += stage.config.num_envs
            print("note: the episodes in flight could not be repeated exactly; new ones begin", file=sys.stderr)
        restore_random_states(state["random"])
        return same


def _check_counters(content: Mapping[str, Any], where: str, config: Stage2LoopConfig) -> None:
    """Numbers that would make the rest of the run another length."""
    with reading(f"{where}: counters", f"the counters {', '.join(f.name for f in fields(Counters))}"):
        found = Counters(**content["counters"])
    log = content["log"]
    for name, value in {**content["counters"], "rows": log["rows"], "minutes": log["minutes"]}.items():
        if not value >= 0:
            raise InputError(f"{where}: {name}: expected a number >= 0, got {shown(value)}")
    most = config.num_envs * config.utd_ratio + 1
    if abs(found.owed(config.utd_ratio)) > most or found.macro_steps > found.env_steps:
        raise InputError(f"{where}: counters: the numbers contradict each other")


def _check_collector(
    state: Mapping[str, Any], where: str, config: Stage2LoopConfig, base: BasePolicy, device: str
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


def _check_ray_collector(
    state: Mapping[str, Any], where: str, config: Stage2LoopConfig, base: BasePolicy, device: str
) -> None:
    check_fields(state, RAY_COLLECTOR, where)
    if not 0 <= state["lives"] < 2**63:
        raise InputError(f"{where}: lives: expected a number >= 0, got {shown(state['lives'])}")
    with reading(where, "the state of a generator"):
        torch.Generator(device).set_state(state["noise"].cpu())


def _check_tensor(value: Tensor, shape: tuple[int, ...], where: str) -> None:
    if tuple(value.shape) != shape or value.dtype != torch.float32:
        raise InputError(f"{where}: expected {shape} of float32, got {tuple(value.shape)} of {value.dtype}")
    if not bool(value.isfinite().all()):
        raise InputError(f"{where}: expected finite numbers, got NaN or infinity")
