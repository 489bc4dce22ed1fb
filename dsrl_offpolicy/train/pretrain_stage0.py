"""``dsrl pretrain`` (Stage 0): the AWSC base policy and its action critic Q^A, from demonstrations."""

from __future__ import annotations

import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsrl_offpolicy.agents.awsc import AWSCAgent, DemoBatch, EncoderTraining
from dsrl_offpolicy.base_policies.observation_encoder import ObservationEncoder
from dsrl_offpolicy.base_policies.shortcut_flow import ShortcutFlowPolicy, ShortcutFlowSpec
from dsrl_offpolicy.checkpoint import save_checkpoint
from dsrl_offpolicy.configs.jobs import Stage0Config
from dsrl_offpolicy.demos.trajectory import Demonstrations
from dsrl_offpolicy.demos.windows import Windows, WindowSpec, cut_windows, stack_images, stack_poses, stack_states
from dsrl_offpolicy.envs.vector import make_vector_env
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.evaluation.episodes import evaluation_seeds, run_episodes, summarise
from dsrl_offpolicy.models.latent_sources import prior_source
from dsrl_offpolicy.seeding import torch_generator
from dsrl_offpolicy.tracking import ProgressReport, Run, create_run_folder
from dsrl_offpolicy.train.demo_files import encode_demonstrations, image_shape, load_demonstrations
from dsrl_offpolicy.train.wiring import base_env_spec, check_fit, command, require_file, start_torch

IMAGE_SETTINGS = (
    "visual_dim", "visual_pool", "encoder_iters", "encoder_batch_size", "encoder_lr", "image_shift", "image_size",
)  # fmt: skip


def run(config: Stage0Config) -> Path:
    """Train and save ``checkpoints/last.pt``. Returns the run folder."""
    device = start_torch(config)
    path = require_file(config.demo_path, "demo_path", "an HDF5 file of demonstrations (dsrl demos writes one)")
    demos = load_demonstrations(
        config,
        path,
        obs_mode=config.obs_mode,
        control_mode=config.control_mode,
        reward_mode=config.reward_mode,
        poses=True,
    )
    spec = base_spec(config, demos)
    windows = cut_windows(demos.trajectories, demos.control_mode, window_spec(spec))
    encoder = ObservationEncoder.fit(torch.from_numpy(stack_states(demos.trajectories)), spec.build_visual())
    encoder = encoder.to(device)
    agent = AWSCAgent(
        spec,
        lr=config.lr,
        total_iters=config.total_iters,
        ema_decay=config.ema_decay,
        consistency_fraction=config.consistency_fraction,
        advantage_temperature=config.advantage_temperature,
        max_weight=config.max_weight,
        expectile=config.expectile,
        polyak_tau=config.critic_tau,
        generator=torch_generator(config.seed, "stage0", device),
        device=device,
    )
    if config.eval_episodes:
        check_fit(spec, base_env_spec(spec, config, end_on_success=True))

    folder = create_run_folder(config.out, f"dsrl_offpolicy_stage0-{config.env_id}-seed{config.seed}")
    with Run(folder, config, track=config.track, wandb_project=config.wandb_project) as tracker:
        if spec.image_channels:
            _train_encoder(config, tracker, agent, encoder, demos, windows, device)
        data = to_batch(windows, encode_demonstrations(demos, encoder.encode_frames, device))
        sampler = torch_generator(config.seed, "stage0_batches", device)
        with ProgressReport("stage0", config.total_iters, "gradient steps") as progress:
            for step in range(1, config.total_iters + 1):
                index = torch.randint(len(data), (config.batch_size,), generator=sampler, device=device)
                metrics = agent.update(data.gather(index))
                if step % config.log_freq == 0 or step == config.total_iters:
                    row = tracker.log(metrics, {"gradient_steps": step})
                    progress.report(step, {k: row[k] for k in ("flow_loss", "critic_loss", "q_mean")})
        content = _content(agent, encoder, config.total_iters)
        save_checkpoint(tracker.checkpoints / "last.pt", "base_policy", content)
        summary: dict[str, Any] = {
            "demonstrations": len(demos.trajectories),
            "demonstration_success": float(np.mean([t.success.any() for t in demos.trajectories])),
            "windows": len(windows),
            "gradient_steps": config.total_iters,
            "minutes": round(tracker.minutes, 3),
        }
        if config.eval_episodes:
            policy = ShortcutFlowPolicy.from_checkpoint(content, "stage0").to(device)
            summary["base"] = _evaluate(policy, config, device)
        tracker.write_summary(summary)
    return folder


def _train_encoder(
    config: Stage0Config,
    tracker: Run,
    agent: AWSCAgent,
    encoder: ObservationEncoder,
    demos: Demonstrations,
    windows: Windows,
    device: torch.device,
) -> None:
    """Train the image encoder and freeze it. All images are held in memory, as bytes."""
    found = stack_poses(demos.trajectories)
    poses = torch.from_numpy(found).to(device) if found is not None else None
    training = EncoderTraining(
        agent,
        encoder,
        pose_dim=poses.shape[1] if poses is not None else 0,
        lr=config.encoder_lr,
        total_iters=config.encoder_iters,
        shift=config.image_shift,
    )
    states = torch.from_numpy(stack_states(demos.trajectories)).to(device)
    images = torch.from_numpy(stack_images(demos.trajectories))
    assert encoder.visual is not None
    encoder.visual.fit(images)
    chunks, rows = torch.from_numpy(windows.chunks), torch.from_numpy(windows.rows)
    sampler = torch_generator(config.seed, "stage0_encoder_batches")
    with ProgressReport("encoder", config.encoder_iters, "gradient steps") as progress:
        for step in range(1, config.encoder_iters + 1):
            index = torch.randint(len(windows), (config.encoder_batch_size,), generator=sampler)
            batch = rows[index]
            metrics = training.update(
                states[batch.to(device)],
                images[batch].to(device),
                chunks[index].to(device),
                poses[batch[:, -1].to(device)] if poses is not None else None,
            )
            if step % config.log_freq == 0 or step == config.encoder_iters:
                row = tracker.log(metrics, {"gradient_steps": step}, "encoder")
                progress.report(step, {k: row[k] for k in metrics})
    encoder.requires_grad_(False)


def _content(agent: AWSCAgent, encoder: ObservationEncoder, gradient_steps: int) -> dict[str, Any]:
    """The checkpoint: all that rebuilds the base policy, and what training it left."""
    return {
        "spec": agent.spec.to_plain(),
        "encoder": encoder.state_dict(),
        "velocity_net": agent.velocity_net.state_dict(),
        "velocity_net_ema": agent.velocity_net_ema.state_dict(),
        "critic": agent.critic.state_dict(),
        "critic_target": agent.critic_target.state_dict(),
        "value": agent.value.state_dict(),
        "optimizer": agent.optimizer.state_dict(),
        "gradient_steps": gradient_steps,
    }


def _evaluate(policy: ShortcutFlowPolicy, config: Stage0Config, device: torch.device) -> dict[str, Any]:
    env_spec = base_env_spec(policy.spec, config, end_on_success=config.eval_end_on_success)
    env = make_vector_env(env_spec, config.num_envs)
    try:
        outcomes = run_episodes(env, policy, prior_source(), evaluation_seeds(config.eval_episodes), device)
    finally:
        env.close()
    return asdict(summarise(outcomes))


def base_spec(config: Stage0Config, demos: Demonstrations) -> ShortcutFlowSpec:
    """The base policy that a configuration and a file of demonstrations make."""
    shape = image_shape(demos)
    if shape is not None and config.image_size not in (None, shape[:2]):
        raise InputError(f"image_size: expected {shape[:2]} as in {demos.path}, got {config.image_size}")
    if shape is None:
        _refuse_image_settings(config)
    return ShortcutFlowSpec(
        env_id=config.env_id,
        control_mode=demos.control_mode,
        state_dim=demos.state_dim,
        action_dim=demos.action_dim,
        obs_horizon=config.obs_horizon,
        pred_horizon=config.pred_horizon,
        act_horizon=config.act_horizon,
        velocity_net=config.velocity_net,
        velocity_widths=config.velocity_widths,
        embed_dim=config.embed_dim,
        denoising_steps=config.denoising_steps,
        critic_hidden_dims=config.critic_hidden_dims,
        critic_heads=config.num_critics,
        gamma=config.gamma,
        reward_mode=config.reward_mode,
        reward_scale=config.reward_scale,
        end_on_success=config.end_on_success,
        image_channels=shape[2] if shape else 0,
        visual_dim=config.visual_dim if shape else 0,
        image_size=shape[:2] if shape else None,
        visual_pool=config.visual_pool if shape else "max",
    )


def _refuse_image_settings(config: Stage0Config) -> None:
    """Raises InputError for settings of the image encoder over demonstrations that have no images."""
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name in IMAGE_SETTINGS and value != field.default:
            raise InputError(f"{field.name}: expected nothing for demonstrations without images, got {value}")


def window_spec(spec: ShortcutFlowSpec, *, rewards: bool = True) -> WindowSpec:
    """The windows that a base policy is trained on; without ``rewards`` those of the file are not asked for."""
    terms = spec.rewards
    return WindowSpec(
        spec.obs_horizon,
        spec.pred_horizon,
        spec.act_horizon,
        terms.gamma,
        terms.reward_mode if rewards else "sparse",
        terms.reward_scale,
        terms.end_on_success,
    )


def to_batch(windows: Windows, table: Tensor) -> DemoBatch:
    """Windows as tensors on the device of ``table [F, V+S]``, the encoded frames of all demonstrations."""

    def tensor(values: np.ndarray) -> Tensor:
        return torch.as_tensor(values, dtype=torch.float32, device=table.device)

    def features(rows: np.ndarray) -> Tensor:
        return table[torch.from_numpy(rows).to(table.device)].flatten(1)

    return DemoBatch(
        features(windows.rows),
        tensor(windows.chunks),
        tensor(windows.reward),
        tensor(windows.discount),
        features(windows.next_rows),
    )


main = command(Stage0Config, "stage0_pretrain.yaml", "dsrl pretrain")(run)

if __name__ == "__main__":
    sys.exit(main())
