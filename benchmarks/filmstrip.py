"""What the robot's cameras see, before and after Stage 2, on the same starts: one row per episode.

    python benchmarks/filmstrip.py --env_id LiftPegUpright-v1 --max_episode_steps 100 \\
        --awsc_checkpoint .../stage0/checkpoints/last.pt --stage2_checkpoint .../stage2/checkpoints/last.pt \\
        --episodes 3 --out docs/results/filmstrip.png

For base policies of images. Every column is one macro-step; the title of a row says how its episode ended.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

FRAMES = 9
"""Columns; an episode's frames are spread over them."""


def views(rgb: Any) -> Any:
    """The cameras of one frame ``[H, W, 3k]``, one below the other: ``[kH, W, 3]``."""
    import numpy as np

    return np.concatenate(np.split(rgb, rgb.shape[-1] // 3, axis=-1), axis=0)


def watch(env: Any, base: Any, source: Any, seed: int) -> tuple[list[Any], bool, int]:
    """The newest images of every macro-step of one episode, whether it succeeded, and its env steps."""
    import torch

    from dsrl_offpolicy.contracts import observation_tensors
    from dsrl_offpolicy.evaluation.episodes import NoiseStreams

    noise = NoiseStreams(base.info.latent_shape)
    noise.start(0, seed)
    obs, info = env.reset(seed=[seed])
    images, ended = [views(obs["rgb"][0, -1])], False
    while not ended:
        encoding = base.encode(observation_tensors(obs, "cpu"))
        latent = source(encoding.features, noise.draw(1))
        chunk = base.decode(encoding, latent)[:, base.info.executed_rows]
        obs, _, terminated, truncated, info = env.step(chunk.numpy())
        images.append(views(obs["rgb"][0, -1]))
        ended = bool(torch.as_tensor(terminated | truncated).any())
    return images, bool(info["success_once"][0]), int(info["episode_length"][0])


def main() -> int:
    """Run the episodes and draw them."""
    import matplotlib
    import numpy as np
    import torch

    from dsrl_offpolicy.configs.jobs import EvalConfig
    from dsrl_offpolicy.configs.loading import parse_job
    from dsrl_offpolicy.envs.vector import make_vector_env
    from dsrl_offpolicy.evaluation.episodes import evaluation_seeds
    from dsrl_offpolicy.models.latent_sources import policy_source, prior_source
    from dsrl_offpolicy.rollouts.base_env import base_env_spec
    from dsrl_offpolicy.train.start import load_base, rewards_of, start_torch
    from dsrl_offpolicy.train.steering_files import load_steering

    matplotlib.use("Agg")
    from matplotlib import pyplot

    flags = [*sys.argv[1:], "--device", "cpu", "--sim_backend", "physx_cpu"]
    config = parse_job(EvalConfig, "eval.yaml", "filmstrip", flags)
    device = start_torch(config)
    base = load_base(config, device)
    assert config.stage2_checkpoint is not None and config.out is not None
    policy, _ = load_steering(config.stage2_checkpoint, "stage2", "stage2_checkpoint", base, device)
    sources = {"before": prior_source(), "after": policy_source(policy, deterministic=True)}
    env = make_vector_env(base_env_spec(base.info, rewards_of(base), config, end_on_success=True), 1)
    rows = []
    with torch.no_grad():
        for seed in evaluation_seeds(config.episodes):
            rows += [(name, *watch(env, base, source, seed)) for name, source in sources.items()]
    env.close()
    height = 0.2 + 1.3 * (base.info.image_channels // 3)
    figure, axes = pyplot.subplots(len(rows), FRAMES, figsize=(1.3 * FRAMES, height * len(rows)), squeeze=False)
    for line, (name, images, success, steps) in zip(axes, rows, strict=True):
        for place, axis in zip(np.linspace(0, len(images) - 1, FRAMES).round().astype(int), line, strict=True):
            axis.imshow(images[place])
            axis.axis("off")
        outcome = "success" if success else "no success"
        line[0].set_title(f"{name}: {outcome}, {steps} env steps", fontsize=8, loc="left")
    figure.tight_layout()
    Path(config.out).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(config.out, dpi=80)
    return 0


if __name__ == "__main__":
    sys.exit(main())
