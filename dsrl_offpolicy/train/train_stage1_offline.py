"""``dsrl stage1``: warm-start the latent policy from demonstrations by AW-MLE, offline."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from dsrl_offpolicy.agents.aw_mle import AWMLEAgent, CandidatePool
from dsrl_offpolicy.analysis.live import HealthMonitor
from dsrl_offpolicy.configs.jobs import Stage1Config
from dsrl_offpolicy.contracts import ActionCritic, BasePolicy
from dsrl_offpolicy.demos.windows import cut_windows, split_episodes
from dsrl_offpolicy.envs.vector import make_vector_env
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.evaluation.episodes import evaluation_seeds, run_episodes, summarise
from dsrl_offpolicy.evaluation.intervals import mean_interval
from dsrl_offpolicy.files.plain import reading
from dsrl_offpolicy.models.latent_q_network import LatentCritic
from dsrl_offpolicy.models.latent_sources import policy_source
from dsrl_offpolicy.seeding import restore_random_states, torch_generator
from dsrl_offpolicy.tracking.progress import ProgressReport
from dsrl_offpolicy.tracking.run import create_run_folder
from dsrl_offpolicy.train.demonstrations import (
    demonstrations_digest,
    encode_windows,
    load_demonstrations,
)
from dsrl_offpolicy.train.interruption import EvaluationStopped
from dsrl_offpolicy.train.offline_run import OfflineRun, offline_run
from dsrl_offpolicy.train.stage0_parts import window_spec
from dsrl_offpolicy.train.steering_files import save_steering
from dsrl_offpolicy.train.wiring import (
    base_env_spec,
    build_layout,
    check_fit,
    command,
    config_of_run,
    control_mode_of,
    load_base,
    note_other_task,
    require_file,
    start_torch,
)

POOL_BYTES = 2**30
"""Memory that ``candidate_pool=auto`` takes at most."""


class Stage1:
    """One Stage 1 run: what it is made of, and its loop.

    Args:
        config: its settings.
        resume: a run folder that an interrupted run of these settings left; it goes on there.
    """

    def __init__(self, config: Stage1Config, resume: Path | None = None) -> None:
        self.config = config
        self.resume = resume
        self.device = device = start_torch(config)
        self.base = load_base(config, device)
        self.action_critic = _critic_of(self.base)
        self.states, self.held_out = load_states(config, self.base, device)
        self.agent = build_agent(config, self.base, device)
        self.sampler = torch_generator(config.seed, "stage1_batches", device)
        self.env_spec = base_env_spec(
            self.base.info, self.action_critic.rewards, config, end_on_success=config.eval_end_on_success
        )
        if config.eval_freq:
            check_fit(self.base.info, self.env_spec)
        self.step = 0
        self.evaluated = 0
        self.best = -1.0
        self.evaluation: dict[str, Any] | None = None

    def run(self) -> Path:
        """Train, verify on held-out states, evaluate in the environment. Returns the run folder."""
        config = self.config
        default = f"dsrl_offpolicy_stage1-{config.env_id}-seed{config.seed}"
        folder = self.resume or create_run_folder(config.out, default)
        note_other_task(self.base.info, config.env_id)
        with offline_run(folder, config, "dsrl stage1", self._same(), resume=self.resume is not None) as run:
            pool = self._pool()
            if run.state is not None:
                self._restore(run.state)
            env = make_vector_env(self.env_spec, config.num_envs) if config.eval_freq else None
            try:
                self._loop(run, pool, env)
            finally:
                if env is not None:
                    env.close()
            self._save(run.tracker.checkpoints / "last.pt")
            verification = verify(self.agent, self.held_out, config)
            run.tracker.log(
                {f"verification/{k}": v for k, v in verification.items()}, {"gradient_steps": self.step}
            )
            run.tracker.write_summary(
                {
                    "gradient_steps": self.step,
                    "evaluation": self.evaluation,
                    "best_eval_success_once": self.best if self.evaluation is not None else None,
                    "verification": verification,
                    "minutes": round(run.tracker.minutes, 3),
                }
            )
        return folder

    def _pool(self) -> CandidatePool | None:
        """Drawn before anything else is, so that a run that goes on draws the same one again: it may fill a GiB,
        too much to save."""
        size = pool_size(self.config, len(self.states), self.agent.layout.dim + self.action_critic.heads)
        return CandidatePool(self.agent, self.states, size) if size else None

    def _loop(self, run: OfflineRun, pool: CandidatePool | None, env: gym.vector.VectorEnv | None) -> None:
        config, total = self.config, self.config.total_iters
        health = HealthMonitor(config, run.tracker.path)
        with ProgressReport("stage1", total, "gradient steps") as progress:
            while True:
                if env is not None and self._evaluation_due():
                    self._evaluate(run, env)
                run.between_steps(self.step, total, self._state)
                if self.step == total:
                    break
                index = torch.randint(
                    len(self.states), (config.batch_size,), generator=self.sampler, device=self.device
                )
                metrics = self.agent.update(self.states[index], pool.draw(index) if pool else None)
                self.step += 1
                if self.step % config.log_freq == 0 or self.step == total:
                    row = run.tracker.log(metrics, {"gradient_steps": self.step})
                    health.observe({"gradient_steps": self.step, **row})
                    shown = ("nll_loss", "kl_loss", "eff_num", "corr_A_logprob")
                    progress.report(self.step, {name: row[name] for name in shown})

    def _evaluation_due(self) -> bool:
        at = self.step % self.config.eval_freq == 0 or self.step == self.config.total_iters
        return at and self.step > self.evaluated

    def _evaluate(self, run: OfflineRun, env: gym.vector.VectorEnv) -> None:
        """A signal ends it, to be made up for when the run goes on."""
        config = self.config
        source = policy_source(self.agent.policy, deterministic=config.eval_deterministic)
        seeds = evaluation_seeds(config.eval_episodes)
        try:
            outcomes = run_episodes(env, self.base, run.stop.listening(source), seeds, self.device)
        except EvaluationStopped:
            return
        summary = summarise(outcomes)
        row = {
            "success_once": summary.success_once.value,
            "success_at_end": summary.success_at_end.value,
            "return": summary.episode_return.value,
        }
        run.tracker.log(row, {"gradient_steps": self.step}, "eval")
        self.evaluated, self.evaluation = self.step, asdict(summary)
        if row["success_once"] > self.best:
            self.best = row["success_once"]
            self._save(run.tracker.checkpoints / "best_eval_success_once.pt")

    def _same(self) -> dict[str, str]:
        """What must not have changed when the run goes on. A digest reads the demonstrations once more."""
        return {
            "device": self.device.type,
            "demonstrations": demonstrations_digest(self.config),
            "base": self.base.fingerprint() + self.action_critic.fingerprint(),
        }

    def _state(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on, but the pool."""
        return {
            "gradient_steps": self.step,
            "training": self.agent.training_state(),
            "sampler": self.sampler.get_state(),
            "evaluated": self.evaluated,
            "best": self.best,
            "evaluation": self.evaluation,
        }

    def _restore(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`_state`."""
        with reading("resume: state of the run", "that of a run of these settings"):
            self.step = state["gradient_steps"]
            self.agent.load_training_state(state["training"])
            self.sampler.set_state(state["sampler"])
            self.evaluated, self.best, self.evaluation = state["evaluated"], state["best"], state["evaluation"]
        restore_random_states(state["random"])

    def _save(self, path: Path) -> None:
        """The latent policy, and what it was distilled into, for other jobs."""
        config, agent = self.config, self.agent
        extra: dict[str, Any] = {
            "env_id": config.env_id,
            "gradient_steps": self.step,
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
        save_steering(path, "stage1", agent.policy, self.base, config.actor_hidden_dims, extra)


def run(config: Stage1Config) -> Path:
    """Train, or go on with an interrupted run. Returns the run folder."""
    if config.resume is not None:
        settings = config_of_run(config, "stage1_offline.yaml")
        return Stage1(settings, resume=config.resume.expanduser()).run()
    return Stage1(config).run()


def _critic_of(base: BasePolicy) -> ActionCritic:
    """The Q^A that AW-MLE scores candidates with.

    Raises:
        InputError: the base policy has none.
    """
    if base.critic is None:
        raise InputError(
            "base: Stage 1 scores candidates with an action critic Q^A, and this policy has none; "
            "dsrl stage2 starts from the prior without one"
        )
    return base.critic


def load_states(config: Stage1Config, base: BasePolicy, device: torch.device) -> tuple[Tensor, Tensor]:
    """Features of the demonstrations' frame stacks, ``[N, D]``: to train on, and held out."""
    info = base.info
    path = require_file(config.demo_path, "demo_path", "a file of demonstrations (dsrl demos writes one)")
    demos = load_demonstrations(config, path, obs_mode=info.obs_mode, control_mode=control_mode_of(info, config))
    shape = demos.image_shape
    if shape is not None and shape[2] != info.image_channels:
        raise InputError(
            f"demo_path: expected images of {info.image_channels // 3} cameras as in the base policy, "
            f"got {shape[2] // 3}"
        )
    if demos.state_dim != info.state_dim:
        raise InputError(
            f"demo_path: expected {info.state_dim} state dimensions as in the base policy, got {demos.state_dim}"
        )
    if demos.action_dim != info.action_dim:
        raise InputError(
            f"demo_path: expected {info.action_dim} action dimensions as in the base policy, "
            f"got {demos.action_dim}"
        )
    rewards = replace(_critic_of(base).rewards, reward_mode="sparse")  # those of the file are not asked for
    spec = window_spec(info, rewards)
    windows = cut_windows(demos.trajectories, demos.control_mode, spec, has_gripper=demos.has_gripper)
    parts = split_episodes(windows, config.held_out_fraction)
    features = encode_windows(demos, np.concatenate([p.rows for p in parts]), base, device)
    return features[: len(parts[0])], features[len(parts[0]) :]


def build_agent(config: Stage1Config, base: BasePolicy, device: torch.device) -> AWMLEAgent:
    """The learner of Stage 1.

    Raises:
        InputError: settings that do not fit the base policy or each other.
    """
    layout = build_layout(base.info, config)
    if config.candidate_pool != "auto" and 0 < config.candidate_pool < config.num_candidates:
        raise InputError(
            f"candidate_pool: expected 0 or at least num_candidates {config.num_candidates}, "
            f"got {config.candidate_pool}"
        )
    if config.distill_q and config.num_critics != _critic_of(base).heads:
        raise InputError(
            f"num_critics: expected {_critic_of(base).heads} as in Q^A (distilled head by head), "
            f"got {config.num_critics}"
        )
    critic = (
        LatentCritic(
            base.info.feature_dim,
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
