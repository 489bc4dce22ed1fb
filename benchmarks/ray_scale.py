"""How ``--backend ray`` scales: environments of a set latency, a base policy of a set decode time, a learner of a
set time per gradient step. All three sleep, so that what is measured is the actors and not the processors.

    python benchmarks/ray_scale.py --runners 1 2 4 8 16 --env_latency 0.4 --decode 0.05 --gradient 0.005

Then the overhead: four environments in processes, of ``--env_latency`` too, with the local collector and with one
runner in lockstep, both without a learner. Needs the extra `ray`; prints a Markdown table.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np

from dsrl_offpolicy.envs.family import Capabilities, MacroVectorEnv
from dsrl_offpolicy.envs.spec import EnvSpec
from dsrl_offpolicy.envs.vector import make_vector_env

if TYPE_CHECKING:
    import torch

    from dsrl_offpolicy.contracts import BasePolicy

HORIZON, STATE, ACTION = 8, 39, 4


class LatencyEnv(gym.Env):
    """Takes ``DSRL_ENV_LATENCY / 8`` seconds a step and never ends; for the processes of ``make_vector_env``."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (STATE,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (ACTION,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        return np.zeros(STATE, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        time.sleep(float(os.environ["DSRL_ENV_LATENCY"]) / HORIZON)
        return np.zeros(STATE, np.float32), 0.0, False, False, {"success": False}


if "Latency-v0" not in gym.registry:  # this file is imported besides, by its name
    gym.register("Latency-v0", LatencyEnv)


class LatencyVector(MacroVectorEnv):
    """One environment in the runner's own process whose macro-step takes ``latency`` seconds."""

    capabilities = Capabilities()
    num_envs = 1
    single_observation_space = gym.spaces.Box(-np.inf, np.inf, (1, STATE), np.float32)
    single_action_space = gym.spaces.Box(-1, 1, (HORIZON, ACTION), np.float32)

    def __init__(self, latency: float) -> None:
        self._latency = latency

    def reset(self, **kwargs: Any) -> tuple[Any, dict]:
        return np.zeros((1, 1, STATE), np.float32), {}

    def step_async(self, actions: Any) -> None:
        self._until = time.monotonic() + self._latency

    def step_wait(self) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        time.sleep(max(self._until - time.monotonic(), 0.0))
        never = np.zeros(1, dtype=bool)
        return np.zeros((1, 1, STATE), np.float32), np.zeros(1), never, never, {"n_steps": np.array([HORIZON])}


def make_one(latency: float, index: int) -> MacroVectorEnv:
    """Make the environment of a runner."""
    return LatencyVector(latency)


def make_four(index: int = 0) -> MacroVectorEnv:
    """Make four environments in processes."""
    return make_vector_env(EnvSpec("ray_scale:Latency-v0", act_horizon=HORIZON, reward_mode="dense"), 4)


def make_base(decode: float) -> tuple[BasePolicy, torch.device]:
    """Make a base policy whose every batch takes ``decode`` seconds."""
    import torch

    from dsrl_offpolicy.contracts import BasePolicy, Encoding, PolicyInfo

    class Slow(BasePolicy):
        info = PolicyInfo(1, STATE, STATE, (HORIZON, ACTION), (HORIZON, ACTION), slice(0, HORIZON))

        def encode(self, obs: Any) -> Encoding:
            return Encoding(obs.flatten(1))

        def decode(self, encoding: Encoding, latent: torch.Tensor) -> torch.Tensor:
            time.sleep(decode)
            return latent.clamp(-1, 1)

    torch.set_num_threads(1)
    return Slow(), torch.device("cpu")


def collector(ray: Any, make_env: Any, envs: list[int], decode: float, **plan: Any) -> Any:
    """Make a Ray collector over environments and a base policy of those times."""
    import torch

    from dsrl_offpolicy.models.latent_layout import LatentLayout
    from dsrl_offpolicy.rollouts.ray_collector import RayCollector, RayPlan

    settings = RayPlan(make_env, envs, functools.partial(make_base, decode), start_seed=int, **plan)
    info, fingerprint = make_base(0)[0].info, make_base(0)[0].fingerprint()
    layout = LatentLayout("full", *info.latent_shape, info.executed_rows, 2.0)
    return RayCollector(ray, settings, info, fingerprint, layout, noise=torch.Generator().manual_seed(1))


def scale(ray: Any, args: argparse.Namespace, runners: int) -> str:
    """Measure one number of runners; returns a row of the table."""
    from dsrl_offpolicy.models.latent_sources import squashed_prior_source

    steps = {"gradient": 0, "env": 0, "stored": 0}
    made = collector(
        ray, functools.partial(make_one, args.env_latency), [1] * runners, args.decode,
        clock=lambda: steps["gradient"], max_lag=args.max_lag,
    )  # fmt: skip
    try:
        source = squashed_prior_source(made.layout)
        made.launch(source)
        for _ in range(2 * runners):  # every actor has started and the batches have found their size
            made.collect()
            made.launch(source)
        made.metrics()
        start = time.monotonic()
        while time.monotonic() - start < args.seconds:
            found = made.collect()
            steps["env"] += found.env_steps
            steps["stored"] += len(found)
            made.launch(source)
            owed = steps["stored"] * args.utd_ratio - steps["gradient"]
            time.sleep(owed * args.gradient)
            steps["gradient"] += owed
        elapsed = time.monotonic() - start
        told = made.metrics()
    finally:
        made.close()
    utd = steps["gradient"] / steps["stored"]
    return (
        f"| {runners} | {steps['env'] / elapsed:.0f} | {steps['gradient'] / elapsed:.0f} | {utd:.2f} | "
        f"{told['staleness_mean']:.1f} | {told['learner_waiting']:.0%} | {told['runners_waiting']:.0%} |"
    )


def overhead(ray: Any, args: argparse.Namespace) -> list[float]:
    """Return env steps per second of four environments: with the local collector, and with one runner."""
    import torch

    from dsrl_offpolicy.models.latent_layout import LatentLayout
    from dsrl_offpolicy.models.latent_sources import squashed_prior_source
    from dsrl_offpolicy.rollouts.collector import Collector

    base, _ = make_base(args.decode)
    layout = LatentLayout("full", *base.info.latent_shape, base.info.executed_rows, 2.0)
    source, env = squashed_prior_source(layout), make_four()
    noise, starts = torch.Generator().manual_seed(1), np.random.default_rng(1)
    local = Collector(env, base, layout, noise=noise, starts=starts)
    actors = collector(ray, make_four, [4], args.decode, clock=int)
    rates = []
    try:
        for made in (local, actors):
            made.launch(source)
            made.collect()
            start, steps = time.monotonic(), 0
            while time.monotonic() - start < args.seconds:
                made.launch(source)
                steps += made.collect().env_steps
            rates.append(steps / (time.monotonic() - start))
    finally:
        actors.close()
        env.close()
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runners", type=int, nargs="*", default=[1, 2, 4, 8, 16])
    parser.add_argument("--env_latency", type=float, default=0.4, help="seconds of a macro-step of 8 env steps")
    parser.add_argument("--decode", type=float, default=0.05, help="seconds that a batch of chunks takes")
    parser.add_argument("--gradient", type=float, default=0.005, help="seconds of a gradient step")
    parser.add_argument("--utd_ratio", type=int, default=20)
    parser.add_argument("--max_lag", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10.0, help="of every measurement")
    args = parser.parse_args()
    folder = str(Path(__file__).parent)
    os.environ["PYTHONPATH"] = os.pathsep.join([folder, os.environ.get("PYTHONPATH", "")])
    os.environ["DSRL_ENV_LATENCY"] = str(args.env_latency)
    sys.path.insert(0, folder)
    import ray_scale  # by its name, as the actors find it

    from dsrl_offpolicy.rollouts.ray_cluster import ray_cluster

    with ray_cluster(None, max([*args.runners, 1]) + 1) as ray:
        print("| runners | env steps/s | gradient steps/s | UTD | staleness | learner waits | runners wait |")
        print("|---|---|---|---|---|---|---|")
        for runners in args.runners:
            print(ray_scale.scale(ray, args, runners), flush=True)
        local, actors = ray_scale.overhead(ray, args)
        print(
            f"\nfour environments: local {local:.1f} env steps/s, ray {actors:.1f}: {1 - actors / local:.1%} less"
        )


if __name__ == "__main__":
    main()
