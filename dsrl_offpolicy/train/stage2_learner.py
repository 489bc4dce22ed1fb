"""The learner that Stage 2 begins with: from the prior, or from Stage 1."""

from __future__ import annotations

from pathlib import Path

import torch

from dsrl_offpolicy.agents.stage2_config import find_algorithm
from dsrl_offpolicy.agents.steering_agent import SteeringAgent
from dsrl_offpolicy.configs.jobs import Stage2LoopConfig
from dsrl_offpolicy.contracts import BasePolicy, PolicyInfo
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.files.checkpoint import load_weights
from dsrl_offpolicy.files.plain import check_fields
from dsrl_offpolicy.seeding import torch_generator
from dsrl_offpolicy.train.start import build_layout, rewards_of
from dsrl_offpolicy.train.steering_files import start_actor


def build_agent(config: Stage2LoopConfig, base: BasePolicy, device: torch.device) -> SteeringAgent:
    """Build the learner, from the prior or from Stage 1.

    Raises:
        InputError: settings that do not fit the checkpoint of Stage 1, or need one that is not given.
    """
    if config.stage1_checkpoint is None and (config.init_critic or config.warmup_policy == "stage1"):
        flag = "init_critic" if config.init_critic else "warmup_policy stage1"
        raise InputError(f"--stage1_checkpoint: expected the checkpoint that --{flag} needs, got nothing")
    agent = find_algorithm(config.algo)(
        config,
        base.info.feature_dim,
        build_layout(base.info, config),
        generator=torch_generator(config.seed, "stage2", device),
        device=device,
        base=base,
    )
    for flag in ("init_critic", "critic_burnin_steps"):
        if agent.critic is None and getattr(config, flag):
            raise InputError(f"{flag}: {config.algo} has no critic of latents; leave it out")
    if config.init_critic and not agent.takes_distilled_critic:
        raise InputError(f"init_critic: {config.algo} learns Q^A, not the Q^W of Stage 1; leave it out")
    if config.stage1_checkpoint is not None:
        _start_from_stage1(agent, config, config.stage1_checkpoint, base, device)
    return agent


def planned_steps(config: Stage2LoopConfig, info: PolicyInfo) -> float:
    """Return gradient steps of a run, burn-in included, if every macro-step executes a whole chunk."""
    macro_steps = (config.total_timesteps - config.warmup_steps) / info.act_horizon
    return config.critic_burnin_steps + macro_steps * config.utd_ratio


def check_plan(config: Stage2LoopConfig, info: PolicyInfo) -> None:
    """Refuse settings under which something would never be trained or kept.

    Raises:
        InputError: naming the setting and its bound.
    """
    if config.warmup_steps >= config.total_timesteps:
        raise InputError(
            f"warmup_steps: expected below total_timesteps {config.total_timesteps}, got {config.warmup_steps}"
        )
    if config.replay_buffer_size < config.num_envs:
        raise InputError(
            f"replay_buffer_size: expected at least num_envs {config.num_envs}, got {config.replay_buffer_size}"
        )
    if config.video_every and not config.eval_freq:
        raise InputError(
            f"video_every: expected 0 where eval_freq is 0, because nothing is evaluated, got {config.video_every}"
        )
    most = max(int(planned_steps(config, info) - config.critic_burnin_steps), 1)
    if config.actor_update_every > most:
        raise InputError(
            f"actor_update_every: expected at most {most}, the gradient steps of this run, got "
            f"{config.actor_update_every}: the actor would never be trained"
        )


def _start_from_stage1(
    agent: SteeringAgent, config: Stage2LoopConfig, path: Path, base: BasePolicy, device: torch.device
) -> None:
    content = start_actor(agent.actor, path, base, device)
    check_fields(content, {"kl_to_prior": float}, f"stage1_checkpoint: {path}", optional=["kl_to_prior"])
    agent.started(content.get("kl_to_prior"))
    if not config.init_critic or agent.critic is None:
        return
    if "critic" not in content:
        raise InputError("stage1_checkpoint: expected a distilled Q^W (stage1 --distill_q), got none")
    trained = rewards_of(base)
    for name, expected, found in (
        ("gamma", trained.gamma, config.gamma),
        ("reward_mode", trained.reward_mode, config.reward_mode),
        ("end_on_success", trained.end_on_success, config.end_on_success),
    ):
        if expected is not None and expected != found:
            raise InputError(f"{name}: expected {expected} as in Q^A, from which Q^W was distilled, got {found}")
    load_weights(agent.critic, content["critic"], "stage1_checkpoint: critic")
    if trained.reward_scale is not None:  # values are proportional to it
        agent.critic.scale_output(config.reward_scale / trained.reward_scale)
