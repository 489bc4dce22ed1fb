"""Train a DiffusionPolicy of states by LeRobot's own classes on demonstrations, and save it as LeRobot does.

    make test-lerobot                                     # makes .venv-lerobot, which has LeRobot
    dsrl demos --env_id pick-place-v3 --out demos.h5 --episodes 60 --seed 1
    .venv-lerobot/bin/python benchmarks/lerobot_policy.py --demo_path demos.h5 --out lerobot_policy

What it saves is loaded by ``--base lerobot:FOLDER``. The first 4 numbers of a state are its ``observation.state``,
the rest ``observation.environment_state``, as LeRobot's data sets of MetaWorld have them. The policy is small: two
frames, 16 rows of which 8 are executed, 10 steps of DDIM.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dsrl_offpolicy.base_policies.lerobot_folder import ACTION, ENV_STATE, STATE
from dsrl_offpolicy.base_policies.lerobot_library import lerobot_classes
from dsrl_offpolicy.demos.format import read_demonstrations
from dsrl_offpolicy.demos.windows import WindowSpec, cut_windows, stack_states

OBS_STEPS, HORIZON, ACTION_STEPS = 2, 16, 8
OWN_STATE = 4
MIN_MAX = {"STATE": "MIN_MAX", "ENV": "MIN_MAX", "ACTION": "MIN_MAX", "VISUAL": "MEAN_STD"}


def windows(path: Path) -> dict[str, Tensor]:
    """Cut ``[N, 2, *]`` observations and ``[N, 16, A]`` actions, none of them normalised."""
    found = read_demonstrations(path)
    spec = WindowSpec(OBS_STEPS, HORIZON, ACTION_STEPS, 0.99, "sparse", 1.0, end_on_success=False)
    cut = cut_windows(found.trajectories, found.control_mode or "", spec)
    states = torch.from_numpy(stack_states(found.trajectories)[cut.rows])
    return {
        STATE: states[..., :OWN_STATE],
        ENV_STATE: states[..., OWN_STATE:],
        ACTION: torch.from_numpy(cut.chunks).float(),
    }


def bounds(data: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return the statistics of every feature that LeRobot's processors read."""
    rows = {name: value.flatten(0, 1) for name, value in data.items()}
    return {
        name: {"min": r.amin(0), "max": r.amax(0), "mean": r.mean(0), "std": r.std(0)} for name, r in rows.items()
    }


def main() -> int:
    """Train, save, and say how long it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo_path", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--total_iters", type=int, default=6000, help="gradient steps")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3, help="falls to 0 along a cosine")
    parser.add_argument("--seed", type=int, default=1)
    flags = parser.parse_args()
    if flags.out.exists():
        parser.error(f"--out: expected a new folder, {flags.out} exists")

    lerobot = lerobot_classes("lerobot_policy.py")
    from lerobot.policies.diffusion.processor_diffusion import make_diffusion_pre_post_processors

    torch.manual_seed(flags.seed)
    torch.set_num_threads(1)
    data = windows(flags.demo_path)
    feature, kind = lerobot.PolicyFeature, lerobot.FeatureType
    config = lerobot.DiffusionConfig(
        n_obs_steps=OBS_STEPS,
        horizon=HORIZON,
        n_action_steps=ACTION_STEPS,
        input_features={
            STATE: feature(type=kind.STATE, shape=data[STATE].shape[2:]),
            ENV_STATE: feature(type=kind.ENV, shape=data[ENV_STATE].shape[2:]),
        },
        output_features={ACTION: feature(type=kind.ACTION, shape=data[ACTION].shape[2:])},
        normalization_mapping={name: lerobot.NormalizationMode(mode) for name, mode in MIN_MAX.items()},
        down_dims=(64, 128),
        kernel_size=3,
        diffusion_step_embed_dim=32,
        crop_shape=None,
        noise_scheduler_type="DDIM",
        num_inference_steps=10,
        device="cpu",
        push_to_hub=False,
    )
    policy = lerobot.DiffusionPolicy(config)
    before, after = make_diffusion_pre_post_processors(config, dataset_stats=bounds(data))
    optimizer = torch.optim.Adam(policy.parameters(), flags.lr, betas=config.optimizer_betas, weight_decay=1e-6)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, flags.total_iters)
    draw, began, losses = np.random.default_rng(flags.seed), time.monotonic(), []
    for step in range(1, flags.total_iters + 1):
        rows = torch.from_numpy(draw.integers(len(data[ACTION]), size=flags.batch_size))
        batch = before({name: value[rows] for name, value in data.items()})
        batch["action_is_pad"] = torch.zeros(flags.batch_size, HORIZON, dtype=torch.bool)
        loss, _ = policy.forward(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % 500 == 0:
            print(f"step {step}  loss {np.mean(losses[-500:]):.4f}  {time.monotonic() - began:.0f} s", flush=True)
    policy.eval().save_pretrained(flags.out)
    for processor in (before, after):
        processor.save_pretrained(flags.out)
    print(f"{flags.out}: {len(data[ACTION])} windows, {flags.total_iters} gradient steps")
    return 0


if __name__ == "__main__":
    sys.exit(main())
