"""Gradient steps per second of our learner against SAC of Stable-Baselines3 and SBX, and against matrix products.

    pip install -e ".[peers]"
    python benchmarks/learner.py [--widths 256 512] [--batches 256] [--threads 1] [--device cpu] [--json FILE]
        [--precisions fp32 bf16] [--learners NAME ...] [--clock cpu]

One process, held to as many CPUs as threads; all learners in turn, `--repeats` times, medians. Every gradient step
of every learner samples its batch from a full replay buffer and updates twin critics, actor, temperature and
targets once. A limit is the time of the matrix products that such an update cannot do without (`torch.mm`, one by
one), in fp32 or, of operands that are bf16 already, in bf16. bf16 is measured where the device has instructions
for it, or where --precisions asks for it. Ours normalises in actor and critics; its rows "critic norm" and "no
norm" leave that out, to do the same work as their peers. `--clock cpu` counts the CPU time of this process: for a
machine that others use, and for learners on the CPU alone.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Shape = tuple[int, int, int]
ROWS, ACTION_DIM = 16, 7
FEATURES = 64
LAYERS = 3
STORED = 10_000
"""Transitions in every replay buffer."""
TRAITS = {
    "ours": "ReLU, LayerNorm in actor and critics",
    "ours, compiled": "ReLU, LayerNorm in actor and critics",
    "ours, compiled, critic norm": "ReLU, LayerNorm in the critics",
    "ours, compiled, no norm": "ReLU, no normalisation",
    "ours, bf16": "ReLU, LayerNorm in actor and critics",
    "ours, compiled, bf16": "ReLU, LayerNorm in actor and critics",
    "ours, compiled, bf16, critic norm": "ReLU, LayerNorm in the critics",
    "ours, compiled, bf16, no norm": "ReLU, no normalisation",
    "Stable-Baselines3": "ReLU, no normalisation (it offers none)",
    "SBX, layer_norm": "ReLU, LayerNorm in the critics",
    "SBX": "ReLU, no normalisation",
}
PEERS = {"Stable-Baselines3": "stable_baselines3", "SBX, layer_norm": "sbx", "SBX": "sbx"}
"""And the packages that they come in."""
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def products(width: int, batch: int, heads: int = 2, latent: int = ROWS * ACTION_DIM) -> list[Shape]:
    """(m, k, n) of every matrix product of one update: an [m, k] by a [k, n]."""
    critic_dims = [FEATURES + latent] + [width] * LAYERS + [1]
    actor_dims = [FEATURES] + [width] * LAYERS + [2 * latent]

    def layers(dims: list[int]) -> list[tuple[int, int]]:
        return list(itertools.pairwise(dims))

    def forward(dims: list[int]) -> list[Shape]:
        return [(batch, i, o) for i, o in layers(dims)]

    def weights(dims: list[int]) -> list[Shape]:
        return [(i, batch, o) for i, o in layers(dims)]

    def inputs(dims: list[int]) -> list[Shape]:
        return [(batch, o, i) for i, o in layers(dims)[1:]]

    # Critic step: target and online forward, gradients of the weights and of all inputs but the first layer's.
    critic = 2 * forward(critic_dims) + weights(critic_dims) + inputs(critic_dims)
    # Actor step: online critics forward, and back to the latent.
    critic += forward(critic_dims) + inputs(critic_dims) + [(batch, width, latent)]
    # The policy at next_obs, for the target, and at obs with its gradients.
    actor = 2 * forward(actor_dims) + weights(actor_dims) + inputs(actor_dims)
    return heads * critic + actor


def finished(device: str) -> None:
    """Wait for what torch has queued on the device."""
    import torch

    if device != "cpu":
        torch.accelerator.synchronize(device)


def matrix_limit(width: int, batch: int, steps: int, device: str, precision: str = "fp32") -> Callable[[], None]:
    """Runs the products of ``steps`` updates."""
    import torch

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    shapes = products(width, batch)
    tensors = {
        (m, k, n): (
            torch.randn(m, k, device=device).to(dtype),
            torch.randn(k, n, device=device).to(dtype),
            torch.empty(m, n, device=device, dtype=dtype),
        )
        for m, k, n in set(shapes)
    }

    def run() -> None:
        for _ in range(steps):
            for shape in shapes:
                left, right, out = tensors[shape]
                torch.mm(left, right, out=out)
        finished(device)

    return run


def our_agent(
    width: int,
    *,
    layers: int = LAYERS,
    heads: int = 2,
    rows: int = ROWS,
    device: str = "cpu",
    actor_norm: bool = True,
    critic_norm: bool = True,
) -> Any:
    """Our agent of the shapes above; without ``actor_norm`` it is one that only this benchmark knows."""
    import torch

    from dsrl_offpolicy.agents.dsrl_sac_agent import DSRLSACAgent, SACConfig
    from dsrl_offpolicy.models.latent_layout import LatentLayout
    from dsrl_offpolicy.models.layers import Layers

    torch.manual_seed(0)
    config = SACConfig(
        actor_hidden_dims=(width,) * layers, critic_hidden_dims=(width,) * layers, num_critics=heads,
        actor_lr=3e-4, critic_lr=3e-4, temp_lr=3e-4, critic_layer_norm=critic_norm,
    )  # fmt: skip
    layout = LatentLayout("full", rows, ACTION_DIM, slice(0, rows), 2.0)
    generator = torch.Generator(device).manual_seed(0)
    agent = DSRLSACAgent(config, FEATURES, layout, generator=generator, device=device)
    if not actor_norm:
        agent.actor.net = Layers(*(m for m in agent.actor.net if not isinstance(m, torch.nn.LayerNorm)))
        agent.actor_optimizer.param_groups[0]["params"] = list(agent.actor.parameters())
    return agent


def filled_buffer(latent_dim: int, stored: int = STORED, device: str = "cpu") -> Any:
    """A replay buffer of ours, full of noise."""
    import torch

    from dsrl_offpolicy.buffers.macro_replay_buffer import MacroReplayBuffer
    from dsrl_offpolicy.contracts import MacroTransitions

    generator = torch.Generator(device).manual_seed(0)
    buffer = MacroReplayBuffer(stored, FEATURES, latent_dim, generator=generator, device=device)
    ended = torch.zeros(stored, dtype=torch.bool, device=device)
    buffer.add(
        MacroTransitions(
            obs_features=torch.randn(stored, FEATURES, device=device),
            latent=torch.randn(stored, latent_dim, device=device).clamp(-2, 2),
            reward=torch.randn(stored, device=device),
            next_obs_features=torch.randn(stored, FEATURES, device=device),
            terminated=ended,
            truncated=ended,
            n_steps=torch.full((stored,), 8, dtype=torch.int32, device=device),
        ),
        gamma=0.99,
    )
    return buffer


def ours(width: int, batch: int, steps: int, device: str, words: Sequence[str]) -> Callable[[], None]:
    """Our learner, as the words of its name say."""
    from dsrl_offpolicy.agents.compiled_update import CompiledUpdate
    from dsrl_offpolicy.models.precision import use_precision

    norms = {"actor_norm": not {"critic norm", "no norm"} & set(words), "critic_norm": "no norm" not in words}
    agent, buffer = our_agent(width, device=device, **norms), filled_buffer(ROWS * ACTION_DIM, device=device)
    use_precision(agent, "bf16" if "bf16" in words else "fp32")
    update: Callable[..., Any] = agent.update
    if "compiled" in words:
        start = time.monotonic()
        update = CompiledUpdate(agent, batch)
        print(f"compiled for width {width}, batch {batch} in {time.monotonic() - start:.1f} s", file=sys.stderr)

    def run() -> None:
        for _ in range(steps):
            update(buffer.sample(batch))
        finished(device)

    return run


def peer(name: str, width: int, batch: int, steps: int, device: str) -> Callable[[], None]:
    """SAC of Stable-Baselines3 (torch) or SBX (JAX), on spaces of the same dimensions, buffer on the host."""
    import gymnasium as gym
    import numpy as np
    from stable_baselines3.common.logger import configure

    class Spaces(gym.Env):
        observation_space = gym.spaces.Box(-np.inf, np.inf, (FEATURES,), np.float32)
        action_space = gym.spaces.Box(-2.0, 2.0, (ROWS * ACTION_DIM,), np.float32)

    options: dict[str, Any] = {"net_arch": [width] * LAYERS}
    if name == "Stable-Baselines3":
        import torch
        from stable_baselines3 import SAC

        options["activation_fn"] = torch.nn.ReLU
    else:
        from sbx import SAC

        options["layer_norm"] = name == "SBX, layer_norm"
    model = SAC(
        "MlpPolicy", Spaces(), policy_kwargs=options, batch_size=batch, buffer_size=STORED, device=device, seed=0
    )
    model.set_logger(configure(None, []))
    rng = np.random.default_rng(0)
    for _ in range(STORED):
        obs, next_obs = rng.standard_normal((2, 1, FEATURES), np.float32)
        action = rng.uniform(-1, 1, (1, ROWS * ACTION_DIM)).astype(np.float32)
        model.replay_buffer.add(obs, next_obs, action, rng.standard_normal(1), np.zeros(1), [{}])

    def run() -> None:
        model.train(gradient_steps=steps, batch_size=batch)
        if name.startswith("SBX"):
            import jax

            jax.block_until_ready((model.policy.qf_state.params, model.policy.actor_state.params))
        else:
            finished(device)

    return run


def learner(name: str, width: int, batch: int, steps: int, device: str) -> Callable[[], None] | None:
    """The learner of that name in ``TRAITS``; None, with a line, where its package is missing."""
    if name not in PEERS:
        return ours(width, batch, steps, device, name.split(", "))
    if importlib.util.find_spec(PEERS[name]):
        return peer(name, width, batch, steps, device)
    print(f"{name}: left out, {PEERS[name]} is not installed (pip install -e '.[peers]')", file=sys.stderr)
    return None


def measure(width: int, batch: int, arguments: argparse.Namespace) -> dict[str, float]:
    """Medians of gradient steps per second, of the limits and of every learner that can be imported."""
    steps, device, now = arguments.steps, arguments.device, CLOCKS[arguments.clock]
    runs = {
        f"limit, {precision}": matrix_limit(width, batch, steps, device, precision)
        for precision in arguments.precisions
    }
    for name in arguments.learners:
        found = learner(name, width, batch, steps, device)
        if found is not None:
            runs[name] = found
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()  # what is compiled or allocated once
    for _ in range(arguments.repeats):
        for name, run in runs.items():
            start = now()
            run()
            rates[name].append(steps / (now() - start))
    return {name: statistics.median(values) for name, values in rates.items()}


def parsed(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--batches", type=int, nargs="+", default=[256])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20, help="gradient steps per turn")
    parser.add_argument("--repeats", type=int, default=15, help="turns of every learner")
    parser.add_argument("--device", default="cpu", help="of all learners and of the limit: cpu or cuda")
    parser.add_argument("--precisions", nargs="+", choices=["fp32", "bf16"], help="default: those of the device")
    parser.add_argument("--learners", nargs="+", choices=TRAITS, help="default: all, in these precisions")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    arguments = parser.parse_args(argv)
    if arguments.clock == "cpu" and arguments.device != "cpu":
        parser.error("--clock cpu does not see what another device does")
    return arguments


def fill_in(arguments: argparse.Namespace) -> None:
    """Choose the precisions that the device has, and all learners in these, where nothing else is asked for."""
    if arguments.precisions is None:
        import torch

        from dsrl_offpolicy.train.precision import supported

        arguments.precisions = [p for p in supported(torch.device(arguments.device)) if p != "tf32"]
    if arguments.learners is None:
        wanted = set(arguments.precisions)
        arguments.learners = [n for n in TRAITS if n in PEERS or ("bf16" if "bf16" in n else "fp32") in wanted]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    arguments = parsed(argv)
    # Before any library starts its threads; JAX has no other way to be held to one.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-arguments.threads :])
    os.environ["JAX_PLATFORMS"] = arguments.device
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    import torch

    torch.set_num_threads(arguments.threads)
    fill_in(arguments)
    rows = []
    for width in arguments.widths:
        for batch in arguments.batches:
            found = measure(width, batch, arguments)
            limits = {p: found.pop(f"limit, {p}") for p in arguments.precisions}
            where = f"{arguments.threads} thread(s), {arguments.device}, {arguments.clock} time"
            told = ", ".join(f"{rate:.1f} in {precision}" for precision, rate in limits.items())
            print(f"\nwidth {width}, batch {batch}, {where}; limits: {told} updates/s")
            heads = "".join(f"{'of ' + precision:>9}" for precision in limits)
            print(f"{'learner':<34}{'steps/s':>9}{heads}  activation, normalisation")
            for name, rate in found.items():
                shares = "".join(f"{rate / limit:>9.2f}" for limit in limits.values())
                print(f"{name:<34}{rate:>9.1f}{shares}  {TRAITS[name]}")
                rows.append(
                    {
                        "learner": name,
                        "width": width,
                        "batch": batch,
                        "threads": arguments.threads,
                        "device": arguments.device,
                        "steps_per_second": round(rate, 2),
                        "clock": arguments.clock,
                        "fraction_of_limit": {p: round(rate / limit, 4) for p, limit in limits.items()},
                    }
                )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
