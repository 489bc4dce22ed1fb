"""``dsrl stage1``: warm-start the latent policy from demonstrations by AW-MLE, offline."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor

from dsrl_offpolicy.agents.aw_mle import AWMLEAgent, CandidatePool
from dsrl_offpolicy.base_policies.shortcut_flow import ShortcutFlowPolicy
from dsrl_offpolicy.configs.jobs import Stage1Config
from dsrl_offpolicy.demos.windows import cut_windows, split_episodes
from dsrl_offpolicy.diagnostics.live import HealthMonitor
from dsrl_offpolicy.envs.vector import make_vector_env
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.evaluation.episodes import EvaluationSummary, evaluation_seeds, run_episodes, summarise
from dsrl_offpolicy.evaluation.intervals import mean_interval
from dsrl_offpolicy.models.latent_q_network import LatentCritic
from dsrl_offpolicy.models.latent_sources import policy_source
from dsrl_offpolicy.seeding import torch_generator
from dsrl_offpolicy.tracking import ProgressReport, Run, create_run_folder
from dsrl_offpolicy.train.demo_files import encode_demonstrations, image_shape, load_demonstrations
from dsrl_offpolicy.train.pretrain_stage0 import window_spec
from dsrl_offpolicy.train.steering_files import save_steering
from dsrl_offpolicy.train.wiring import (
    base_env_spec,
    build_layout,
    check_fit,
    command,
    control_mode_of,
    load_base,
    note_other_task,
    require_file,
    start_torch,
)

POOL_BYTES = 2**30
"""Memory that ``candidate_pool=auto`` takes at most."""


def run(config: Stage1Config) -> Path:
    """Train, verify on held-out states, evaluate in the environment. Returns the run folder."""
    device = start_torch(config)
    base = load_base(config, device)
    train_states, held_out_states = load_states(config, base, device)
    agent = build_agent(config, base, device)
    env_spec = base_env_spec(base.spec, config, end_on_success=config.eval_end_on_success)
    if config.eval_freq:
        check_fit(base.spec, env_spec)
    folder = create_run_folder(config.out, f"dsrl_offpolicy_stage1-{config.env_id}-seed{config.seed}")
    note_other_task(base.spec, config.env_id)
    with Run(folder, config, track=config.track, wandb_project=config.wandb_project) as tracker:
        env = make_vector_env(env_spec, config.num_envs) if config.eval_freq else None
        try:
            summary = _train(config, tracker, agent, base, train_states, env, device)
            summary["verification"] = verify(agent, held_out_states, config)
            summary["minutes"] = round(tracker.minutes, 3)
        finally:
            if env is not None:
                env.close()
        tracker.log(
            {f"verification/{k}": v for k, v in summary["verification"].items()},
            {"gradient_steps": config.total_iters},
        )
        tracker.write_summary(summary)
    return folder


def load_states(config: Stage1Config, base: ShortcutFlowPolicy, device: torch.device) -> tuple[Tensor, Tensor]:
    """Features of the demonstrations' frame stacks, ``[N, D]``: to train on, and held out."""
    path = require_file(config.demo_path, "demo_path", "an HDF5 file of demonstrations (dsrl demos writes one)")
    demos = load_demonstrations(
        config, path, obs_mode=base.spec.obs_mode, control_mode=control_mode_of(base.spec, config)
    )
    shape = image_shape(demos)
    if shape is not None and shape[2] != base.image_channels:
        raise InputError(
            f"demo_path: expected images of {base.image_channels // 3} cameras as in the base policy, "
            f"got {shape[2] // 3}"
        )
    if demos.state_dim != base.state_dim:
        raise InputError(
            f"demo_path: expected {base.state_dim} state dimensions as in the base policy, got {demos.state_dim}"
        )
    if demos.action_dim != base.latent_shape[1]:
        raise InputError(
            f"demo_path: expected {base.latent_shape[1]} action dimensions as in the base policy, "
            f"got {demos.action_dim}"
        )
    windows = cut_windows(demos.trajectories, demos.control_mode, window_spec(base.spec, rewards=False))
    parts = split_episodes(windows, config.held_out_fraction)
    table = encode_demonstrations(demos, base.encode_frames, device)
    train, held_out = (table[torch.from_numpy(p.rows).to(device)].flatten(1) for p in parts)
    return train, held_out


def build_agent(config: Stage1Config, base: ShortcutFlowPolicy, device: torch.device) -> AWMLEAgent:
    """The learner of Stage 1.

    Raises:
        InputError: settings that do not fit the base policy or each other.
    """
    layout = build_layout(base, config)
    if config.candidate_pool != "auto" and 0 < config.candidate_pool < config.num_candidates:
        raise InputError(
            f"candidate_pool: expected 0 or at least num_candidates {config.num_candidates}, "
            f"got {config.candidate_pool}"
        )
    if config.distill_q and config.num_critics != base.spec.critic_heads:
        raise InputError(
            f"num_critics: expected {base.spec.critic_heads} as in Q^A (distilled head by head), "
            f"got {config.num_critics}"
        )
    critic = (
        LatentCritic(
            base.feature_dim,
            layout.dim,
            config.critic_hidden_dims,
            config.num_critics,
            layer_norm=config.critic_layer_norm,
        )
        if config.distill_q
        else None
    )
    return AWMLEAgent(
        base,
        layout,
        hidden_dims=config.actor_hidden_dims,
        lr=config.lr,
        num_candidates=config.num_candidates,
        kappa=config.kappa,
        baseline_temperature=config.tau,
        beta_latent=config.beta_latent,
        advantage_clip=config.advantage_clip,
        kl_coef=config.kl_coef,
        max_decode=config.max_decode,
        critic=critic,
        critic_lr=config.critic_lr,
        distill_chunks=config.distill_chunks,
        generator=torch_generator(config.seed, "stage1", device),
        device=device,
    )


def pool_size(config: Stage1Config, states: int, floats: int) -> int:
    """Candidates per state to decode once; 0 for fresh ones at every gradient step.

    Args:
        config: its ``candidate_pool``, and what training would decode without a pool.
        states: N.
        floats: kept of one candidate, L + K.
    """
    if config.candidate_pool != "auto":
        return config.candidate_pool
    most = 4 * config.num_candidates
    fits = POOL_BYTES // (4 * floats * states)
    pays = config.total_iters * config.batch_size * config.num_candidates // (2 * states)
    size = min(most, fits, pays)
    return size if size >= 2 * config.num_candidates else 0


def _train(
    config: Stage1Config,
    tracker: Run,
    agent: AWMLEAgent,
    base: ShortcutFlowPolicy,
    states: Tensor,
    env: gym.vector.VectorEnv | None,
    device: torch.device,
) -> dict[str, Any]:
    """The loop. Returns the summary so far."""
    best = -1.0
    evaluation: EvaluationSummary | None = None
    sampler = torch_generator(config.seed, "stage1_batches", device)
    size = pool_size(config, len(states), agent.layout.dim + base.spec.critic_heads)
    pool = CandidatePool(agent, states, size) if size else None
    health = HealthMonitor(config, tracker.path)
    with ProgressReport("stage1", config.total_iters, "gradient steps") as progress:
        for step in range(1, config.total_iters + 1):
            index = torch.randint(len(states), (config.batch_size,), generator=sampler, device=device)
            metrics = agent.update(states[index], pool.draw(index) if pool else None)
            last = step == config.total_iters
            if step % config.log_freq == 0 or last:
                row = tracker.log(metrics, {"gradient_steps": step})
                health.observe(row)
                progress.report(step, {k: row[k] for k in ("nll_loss", "kl_loss", "eff_num", "corr_A_logprob")})
            if env is not None and (step % config.eval_freq == 0 or last):
                source = policy_source(agent.policy, deterministic=config.eval_deterministic)
                outcomes = run_episodes(env, base, source, evaluation_seeds(config.eval_episodes), device)
                evaluation = summarise(outcomes)
                rates = {
                    "success_once": evaluation.success_once.value,
                    "success_at_end": evaluation.success_at_end.value,
                    "return": evaluation.episode_return.value,
                }
                tracker.log(rates, {"gradient_steps": step}, "eval")
                if rates["success_once"] > best:
                    best = rates["success_once"]
                    _save(tracker.checkpoints / "best_eval_success_once.pt", config, agent, base, step)
    _save(tracker.checkpoints / "last.pt", config, agent, base, config.total_iters)
    return {
        "gradient_steps": config.total_iters,
        "evaluation": asdict(evaluation) if evaluation is not None else None,
        "best_eval_success_once": best if evaluation is not None else None,
    }


def _save(path: Path, config: Stage1Config, agent: AWMLEAgent, base: ShortcutFlowPolicy, step: int) -> None:
    extra: dict[str, Any] = {
        "env_id": config.env_id,
        "gradient_steps": step,
        "optimizer": agent.optimizer.state_dict(),
        "generator": agent.generator.get_state(),
    }
    if agent.critic is not None:
        agent.critic.synchronise_target()
        extra["critic"] = agent.critic.state_dict()
        extra["critic_shape"] = {
            "hidden_dims": list(config.critic_hidden_dims),
            "num_critics": config.num_critics,
            "layer_norm": config.critic_layer_norm,
        }
    save_steering(path, "stage1", agent.policy, base, config.actor_hidden_dims, extra)


def verify(agent: AWMLEAgent, states: Tensor, config: Stage1Config) -> dict[str, float]:
    """The seed's check: E[Q(s, w)] under policy and prior on held-out states, with the 95 % interval (Student's t
    over states) of their paired difference."""
    generator = torch_generator(config.seed, "stage1_verification", states.device)
    count = min(config.verify_states, len(states))
    chosen = states[torch.randperm(len(states), generator=generator, device=states.device)[:count]]
    prior, policy = agent.paired_q(chosen, config.verify_samples)
    difference = mean_interval((policy - prior).cpu().numpy())
    return {
        "q_prior": float(prior.mean()),
        "q_policy": float(policy.mean()),
        "difference": difference.value,
        "difference_low": difference.low,
        "difference_high": difference.high,
        "states": float(count),
    }


main = command(Stage1Config, "stage1_offline.yaml", "dsrl stage1")(run)

if __name__ == "__main__":
    sys.exit(main())
