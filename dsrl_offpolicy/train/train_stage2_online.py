"""``dsrl stage2``: improve the latent policy online with SAC over macro-steps."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch

from dsrl_offpolicy.agents.compiled_update import CompiledUpdate
from dsrl_offpolicy.agents.dsrl_sac_agent import DSRLSACAgent
from dsrl_offpolicy.base_policies.shortcut_flow import ShortcutFlowPolicy
from dsrl_offpolicy.buffers.macro_replay_buffer import MacroReplayBuffer
from dsrl_offpolicy.checkpoint import load_weights
from dsrl_offpolicy.configs.jobs import Stage2Config
from dsrl_offpolicy.contracts import LatentSource
from dsrl_offpolicy.envs.spec import EnvSpec
from dsrl_offpolicy.envs.vector import make_vector_env
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.evaluation.episodes import EvaluationSummary, evaluation_seeds, run_episodes, summarise
from dsrl_offpolicy.models.latent_sources import policy_source, squashed_prior_source
from dsrl_offpolicy.reports.curves import plot_stage2_run
from dsrl_offpolicy.rollouts.collector import Collector
from dsrl_offpolicy.seeding import numpy_generator, torch_generator
from dsrl_offpolicy.tracking import ProgressReport, Run, create_run_folder
from dsrl_offpolicy.train.steering_files import load_steering, save_steering
from dsrl_offpolicy.train.wiring import (
    base_env_spec,
    build_layout,
    check_fit,
    command,
    load_base,
    note_other_task,
    note_unknown_rewards,
    start_torch,
    task_env_spec,
)

COMPILE_FROM = 10_000
"""Planned gradient steps from which ``compile=auto`` compiles (docs/performance.md)."""


@dataclass
class Counters:
    """Where a run stands.

    ``earning_transitions`` are the macro-transitions stored since updates began; the effective update-to-data
    ratio is ``gradient_steps / earning_transitions``. Burn-in steps are counted apart.
    """

    env_steps: int = 0
    macro_steps: int = 0
    gradient_steps: int = 0
    burnin_steps: int = 0
    earning_transitions: int = 0
    episodes: int = 0

    def owed(self, utd_ratio: float) -> int:
        """Gradient steps that the stored transitions have earned and that are not done yet."""
        return int(self.earning_transitions * utd_ratio + 1e-9) - self.gradient_steps

    @property
    def utd_effective(self) -> float:
        """Gradient steps per macro-transition, as done."""
        return self.gradient_steps / max(self.earning_transitions, 1)


class Stage2:
    """One Stage 2 run: what it is made of, and its loop."""

    def __init__(self, config: Stage2Config) -> None:
        self.config = config
        self.device = device = start_torch(config)
        self.base = load_base(config, device)
        self.env_spec = _training_env_spec(config, self.base)
        check_fit(self.base.spec, self.env_spec)
        self.agent = _build_agent(config, self.base, device)
        self.buffer = MacroReplayBuffer(
            config.replay_buffer_size,
            self.base.feature_dim,
            self.agent.layout.dim,
            generator=torch_generator(config.seed, "replay", device),
            device=device,
        )
        self._gradient_step: Callable[..., dict[str, torch.Tensor]] = self.agent.update
        self.counters = Counters()
        self.recent: deque[bool] = deque(maxlen=50)
        self.best = -1.0
        self.evaluations: list[dict[str, float]] = []
        self.last_evaluation: EvaluationSummary | None = None
        self._actor_metrics: dict[str, torch.Tensor] = {}
        self._rate_mark = (0.0, 0, 0)

    def run(self) -> Path:
        """Train to ``total_timesteps``. Returns the run folder."""
        config = self.config
        folder = create_run_folder(config.out, f"dsrl_offpolicy_stage2-{config.env_id}-seed{config.seed}")
        note_other_task(self.base.spec, config.env_id)
        if config.init_critic:
            note_unknown_rewards(self.base.spec)
        with Run(folder, config, track=config.track, wandb_project=config.wandb_project) as tracker:
            self._compile()
            env = make_vector_env(self.env_spec, config.num_envs)
            evaluation_spec = base_env_spec(self.base.spec, config, end_on_success=config.eval_end_on_success)
            eval_env = make_vector_env(evaluation_spec, config.num_envs) if config.eval_freq else None
            try:
                self._loop(tracker, env, eval_env)
            finally:
                env.close()
                if eval_env is not None:
                    eval_env.close()
            self._save(tracker.checkpoints / "last.pt", whole=True)
            tracker.write_summary(self._summary(tracker))
        plot_stage2_run(folder, {}, f"{config.env_id}, seed {config.seed}")
        return folder

    def _compile(self) -> None:
        """Compile the learner where asked or worth it; a machine without a compiler is told and goes on."""
        config = self.config
        macro_steps = (config.total_timesteps - config.warmup_steps) / self.base.spec.act_horizon
        planned = config.critic_burnin_steps + macro_steps * config.utd_ratio
        if config.compile == "off" or (config.compile == "auto" and planned < COMPILE_FROM):
            return
        start = time.monotonic()
        try:
            self._gradient_step = CompiledUpdate(self.agent, config.batch_size)
        except RuntimeError as error:
            print(f"note: the learner runs uncompiled, torch.compile failed: {str(error)[:200]}", file=sys.stderr)
        else:
            took = time.monotonic() - start
            print(f"stage2: learner compiled in {took:.1f} s (torch keeps it for the next run)", file=sys.stderr)

    def _loop(self, tracker: Run, env: gym.vector.VectorEnv, eval_env: gym.vector.VectorEnv | None) -> None:
        config, counters = self.config, self.counters
        collector = Collector(
            env,
            self.base,
            self.agent.layout,
            self.buffer,
            gamma=config.gamma,
            noise=torch_generator(config.seed, "behaviour", self.device),
            starts=numpy_generator(config.seed, "training_starts"),
            device=self.device,
        )
        warmup_source = self._warmup_source()
        policy = policy_source(self.agent.actor, deterministic=False)
        next_evaluation = 0
        with ProgressReport("stage2", config.total_timesteps, "env steps") as progress:
            self._rate_mark = (time.monotonic(), 0, 0)
            collector.launch(warmup_source)
            while True:
                collected = collector.collect()
                warm = counters.env_steps >= config.warmup_steps
                counters.env_steps += collected.env_steps
                counters.macro_steps += collected.transitions
                counters.episodes += len(collected.finished)
                self.recent.extend(success for success, _, _ in collected.finished)
                if warm:
                    counters.earning_transitions += collected.transitions
                finished = counters.env_steps >= config.total_timesteps
                if eval_env is not None and counters.env_steps >= next_evaluation and not finished:
                    self._evaluate(tracker, eval_env)
                    next_evaluation += config.eval_freq
                warm = counters.env_steps >= config.warmup_steps
                if not finished:  # the environments work while the learner does
                    collector.launch(policy if warm else warmup_source)
                if warm and counters.burnin_steps < config.critic_burnin_steps:
                    self._burn_in()
                self.agent.scale_learning_rates(self._lr_scale())
                self._update(counters.owed(config.utd_ratio), tracker, progress)
                if finished:
                    break
            if eval_env is not None:
                self._evaluate(tracker, eval_env)

    def _warmup_source(self) -> LatentSource:
        if self.config.warmup_policy == "stage1":
            return policy_source(self.agent.actor, deterministic=False)
        return squashed_prior_source(self.agent.layout)

    def _lr_scale(self) -> float:
        """1 until ``anneal_from``, then linearly to 0 at the end of the run."""
        done = self.counters.env_steps / self.config.total_timesteps
        left = 1 - self.config.anneal_from
        return 1.0 if done <= self.config.anneal_from or left == 0 else max(0.0, (1 - done) / left)

    def _burn_in(self) -> None:
        while self.counters.burnin_steps < self.config.critic_burnin_steps:
            self._gradient_step(self.buffer.sample(self.config.batch_size), update_actor=False)
            self.counters.burnin_steps += 1

    def _update(self, steps: int, tracker: Run, progress: ProgressReport) -> None:
        config, counters = self.config, self.counters
        for _ in range(steps):
            counters.gradient_steps += 1
            with_actor = counters.gradient_steps % config.actor_update_every == 0
            metrics = self._gradient_step(self.buffer.sample(config.batch_size), update_actor=with_actor)
            if with_actor:
                self._actor_metrics = metrics
            if counters.gradient_steps % config.log_freq == 0:
                self._log({**self._actor_metrics, **metrics}, tracker, progress)

    def _log(self, metrics: dict[str, torch.Tensor], tracker: Run, progress: ProgressReport) -> None:
        counters = self.counters
        now, (then, env_steps, gradient_steps) = time.monotonic(), self._rate_mark
        elapsed = max(now - then, 1e-9)
        rates = {
            "env_steps_per_s": (counters.env_steps - env_steps) / elapsed,
            "gradient_steps_per_s": (counters.gradient_steps - gradient_steps) / elapsed,
        }
        self._rate_mark = (now, counters.env_steps, counters.gradient_steps)
        training = {
            "train_success": sum(self.recent) / max(len(self.recent), 1),
            "utd_effective": counters.utd_effective,
            "buffer_size": len(self.buffer),
        }
        row = tracker.log({**metrics, **training, **rates}, self._axes(), "train")
        shown = {"success": row["train_success"], "q_mean": row["q_mean"], "alpha": row.get("alpha", "-")}
        shown |= {"env/s": rates["env_steps_per_s"], "grad/s": rates["gradient_steps_per_s"]}
        progress.report(counters.env_steps, shown)

    def _evaluate(self, tracker: Run, env: gym.vector.VectorEnv) -> None:
        config = self.config
        source = policy_source(self.agent.actor, deterministic=config.eval_deterministic)
        outcomes = run_episodes(env, self.base, source, evaluation_seeds(config.eval_episodes), self.device)
        self.last_evaluation = summary = summarise(outcomes)
        row = {
            "success_once": summary.success_once.value,
            "success_once_low": summary.success_once.low,
            "success_once_high": summary.success_once.high,
            "success_at_end": summary.success_at_end.value,
            "return": summary.episode_return.value,
            "length": summary.length.value,
        }
        tracker.log(row, self._axes(), "eval")
        self.evaluations.append({**self._axes(), **row})
        if row["success_once"] >= self.best:
            self.best = row["success_once"]
            self._save(tracker.checkpoints / "best_eval_success_once.pt", whole=False)

    def _axes(self) -> dict[str, int]:
        counters = self.counters
        return {
            "env_steps": counters.env_steps,
            "macro_steps": counters.macro_steps,
            "gradient_steps": counters.gradient_steps,
        }

    def _save(self, path: Path, *, whole: bool) -> None:
        """The latent policy; ``whole`` adds learner, buffer, counters and random state."""
        extra: dict[str, Any] = {"env_id": self.config.env_id, "counters": asdict(self.counters)}
        if whole:
            extra["training"] = self.agent.training_state()
            extra["buffer"] = self.buffer.state_dict()
            extra["torch_rng"] = torch.get_rng_state()
        save_steering(path, "stage2", self.agent.actor, self.base, self.config.actor_hidden_dims, extra)

    def _summary(self, tracker: Run) -> dict[str, Any]:
        last = self.last_evaluation
        return {
            **asdict(self.counters),
            "utd_effective": self.counters.utd_effective,
            "evaluation": asdict(last) if last is not None else None,
            "best_eval_success_once": self.best if last is not None else None,
            "minutes": round(tracker.minutes, 3),
        }


def _training_env_spec(config: Stage2Config, base: ShortcutFlowPolicy) -> EnvSpec:
    return task_env_spec(
        base.spec,
        config,
        reward_mode=config.reward_mode,
        reward_scale=config.reward_scale,
        end_on_success=config.end_on_success,
        max_episode_steps=config.train_episode_steps or config.max_episode_steps,
        gamma=config.gamma,
    )


def _build_agent(config: Stage2Config, base: ShortcutFlowPolicy, device: torch.device) -> DSRLSACAgent:
    if config.stage1_checkpoint is None and (config.init_critic or config.warmup_policy == "stage1"):
        flag = "init_critic" if config.init_critic else "warmup_policy stage1"
        raise InputError(f"--stage1_checkpoint: expected the checkpoint that --{flag} needs, got nothing")
    agent = DSRLSACAgent(
        base.feature_dim,
        build_layout(base, config),
        actor_hidden_dims=config.actor_hidden_dims,
        critic_hidden_dims=config.critic_hidden_dims,
        num_critics=config.num_critics,
        critic_layer_norm=config.critic_layer_norm,
        actor_lr=config.actor_lr,
        critic_lr=config.critic_lr,
        temp_lr=config.temp_lr,
        polyak_tau=config.tau,
        regularizer=config.regularizer,
        init_temperature=config.init_temperature,
        learn_temperature=config.learn_temperature,
        target_entropy=None if config.target_entropy == "auto" else config.target_entropy,
        target_kl=config.target_kl,
        backup_entropy=config.backup_entropy,
        generator=torch_generator(config.seed, "stage2", device),
        device=device,
    )
    if config.stage1_checkpoint is not None:
        _start_from_stage1(agent, config, config.stage1_checkpoint, base, device)
    return agent


def _start_from_stage1(
    agent: DSRLSACAgent, config: Stage2Config, path: Path, base: ShortcutFlowPolicy, device: torch.device
) -> None:
    policy, content = load_steering(path, "stage1", "stage1_checkpoint", base, device)
    if policy.layout != agent.layout:
        raise InputError(
            f"stage1_checkpoint: expected steer_mode {agent.layout.mode} and action_magnitude "
            f"{agent.layout.magnitude}, got {policy.layout.mode} and {policy.layout.magnitude}"
        )
    load_weights(agent.actor, policy.state_dict(), "stage1_checkpoint: policy (actor_hidden_dims)")
    if not config.init_critic:
        return
    if "critic" not in content:
        raise InputError("stage1_checkpoint: expected a distilled Q^W (stage1 --distill_q), got none")
    trained = base.spec
    for name, expected, found in (
        ("gamma", trained.gamma, config.gamma),
        ("reward_mode", trained.reward_mode, config.reward_mode),
        ("reward_scale", trained.reward_scale, config.reward_scale),
        ("end_on_success", trained.end_on_success, config.end_on_success),
    ):
        if expected is not None and expected != found:
            raise InputError(f"{name}: expected {expected} as in Q^A, from which Q^W was distilled, got {found}")
    load_weights(agent.critic, content["critic"], "stage1_checkpoint: critic")


def run(config: Stage2Config) -> Path:
    """Train. Returns the run folder."""
    if config.warmup_steps >= config.total_timesteps:
        raise InputError(
            f"warmup_steps: expected below total_timesteps {config.total_timesteps}, got {config.warmup_steps}"
        )
    return Stage2(config).run()


main = command(Stage2Config, "stage2_online.yaml", "dsrl stage2")(run)

if __name__ == "__main__":
    sys.exit(main())
