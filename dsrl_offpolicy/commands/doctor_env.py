"""What an environment is on this machine, and how fast."""

from __future__ import annotations

import time
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from dsrl_offpolicy.envs.family import EnvFacts, EnvFamily, family_of
from dsrl_offpolicy.envs.spec import EnvSpec
from dsrl_offpolicy.envs.vector import inspect_env, make_vector_env


def examine_environment(spec: EnvSpec, seconds: float) -> dict[str, Any]:
    """Return simulator, render device, spaces and speed of one environment, as plain values.

    Args:
        spec: what to build; where the family has images, it is examined with states and with images.
        seconds: how long to step for each figure. An environment that nobody may step on trial is not timed.

    Raises:
        InputError: an environment that cannot be made; says why, and what cures it.
    """
    family = family_of(spec)
    report: dict[str, Any] = {"env_id": spec.env_id, "simulator": _simulator(family), **family.describe(spec)}
    for mode in ("state", "rgb") if "obs_mode" in family.settings else ("state",):
        seen = replace(spec, obs_mode=mode)
        report[mode] = _spaces(inspect_env(seen))
        if family.capabilities(seen).trial_steps:
            report[mode]["env_steps_per_s"] = round(_speed(seen, seconds), 1)
    return report


def _simulator(family: EnvFamily) -> str:
    return f"{family.name} {version(family.package)}" if family.package else family.name


def _spaces(facts: EnvFacts) -> dict[str, Any]:
    found: dict[str, Any] = {
        "state_dim": facts.state_dim,
        "action_dim": facts.action_dim,
        "max_episode_steps": facts.max_episode_steps,
    }
    if facts.image_shape is not None:
        found |= {"cameras": list(facts.cameras), "image_shape": list(facts.image_shape)}
    if facts.state_keys is not None:
        found["state_keys"] = list(facts.state_keys)
    return found


def _speed(spec: EnvSpec, seconds: float) -> float:
    """Env steps per second of one environment under random chunks; images are drawn once per chunk."""
    env = make_vector_env(spec, 1)
    rng = np.random.default_rng(0)
    try:
        space = env.single_action_space
        env.reset(seed=[0])
        steps, start = 0, time.monotonic()
        while (elapsed := time.monotonic() - start) < seconds:
            chunk = rng.uniform(-1, 1, (1, *space.shape)).astype(np.float32)
            *_, terminated, truncated, info = env.step(chunk)
            steps += int(np.sum(info["n_steps"]))
            if bool(torch.as_tensor(terminated | truncated).any()):
                env.reset(seed=[steps])
        return steps / elapsed
    finally:
        env.close()
