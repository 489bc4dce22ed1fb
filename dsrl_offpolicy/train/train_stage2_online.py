"""``dsrl stage2``: improve the latent policy online with SAC over macro-steps."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch

from dsrl_offpolicy.agents.compiled_update import CompiledUpdate
from dsrl_offpolicy.analysis.curves import plot_stage2_run
from dsrl_offpolicy.analysis.live import HealthMonitor
from dsrl_offpolicy.buffers.macro_replay_buffer import MacroReplayBuffer
from dsrl_offpolicy.buffers.replay_files import ReplayFiles
from dsrl_offpolicy.configs.jobs import Stage2Config
from dsrl_offpolicy.contracts import LatentSource, MacroBatch
from dsrl_offpolicy.envs.vector import make_vector_env
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.evaluation.episodes import EvaluationSummary, evaluation_seeds, run_episodes, summarise
from dsrl_offpolicy.models.latent_sources import policy_source, squashed_prior_source
from dsrl_offpolicy.rollouts.collector import Collected, Collector
from dsrl_offpolicy.seeding import numpy_generator, random_states, restore_random_states, torch_generator
from dsrl_offpolicy.tracking.progress import ProgressReport
from dsrl_offpolicy.tracking.run import Run, create_run_folder
from dsrl_offpolicy.train.interruption import EvaluationStopped, Interrupted, Interruption
from dsrl_offpolicy.train.run_checkpoints import RunCheckpoints
from dsrl_offpolicy.train.run_state import check_run_state
from dsrl_offpolicy.train.snapshots import check_finite, snapshot_of_non_finite
from dsrl_offpolicy.train.stage2_parts import Counters, build_agent, training_env_spec
from dsrl_offpolicy.train.steering_files import fingerprint, save_steering, steering_content
from dsrl_offpolicy.train.wiring import (
    base_env_spec,
    check_fit,
    command,
    config_of_run,
    load_base,
    note_other_task,
    note_unknown_rewards,
    start_torch,
)

COMPILE_FROM = 10_000
"""Planned gradient steps from which ``compile=auto`` compiles (docs/performance.md)."""


class Stage2:
    """One Stage 2 run: what it is made of, and its loop.

    Args:
        config: its settings.
        resume: a run folder that an interrupted run of these settings left; it goes on there.
    """

    def __init__(self, config: Stage2Config, resume: Path | None = None) -> None:
        self.config = config
        self.resume = resume
        self.device = device = start_torch(config)
        self.base = load_base(config, device)
        self.env_spec = training_env_spec(config, self.base)
        check_fit(self.base.spec, self.env_spec)
        self.agent = build_agent(config, self.base, device)
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
        self.next_evaluation = 0
        self.last_evaluation: EvaluationSummary | None = None
        self._actor_metrics: dict[str, torch.Tensor] = {}
        self._rate_mark = (0.0, 0, 0)
        self._batch: MacroBatch | None = None

    def run(self) -> Path:
        """Train to ``total_timesteps``. Returns the run folder."""
        config = self.config
        default = f"dsrl_offpolicy_stage2-{config.env_id}-seed{config.seed}"
        folder = self.resume or create_run_folder(config.out, default)
        self.checkpoints = RunCheckpoints(folder / "checkpoints", "stage2")
        self.replay_files = ReplayFiles(folder / "replay")
        state = self._load_state() if self.resume else None
        note_other_task(self.base.spec, config.env_id)
        if config.init_critic:
            note_unknown_rewards(self.base.spec)
        resumed = state["log"] if state else None
        with (
            Run(folder, config, track=config.track, wandb_project=config.wandb_project, resume=resumed) as tracker,
            Interruption() as stop,
            snapshot_of_non_finite(folder, self._snapshot),
        ):
            self.health = HealthMonitor(config, folder)
            self._compile()
            env = make_vector_env(self.env_spec, config.num_envs)
            evaluation_spec = base_env_spec(self.base.spec, config, end_on_success=config.eval_end_on_success)
            eval_env = make_vector_env(evaluation_spec, config.num_envs) if config.eval_freq else None
            try:
                self._loop(tracker, env, eval_env, state, stop)
            finally:
                for vector in (env, eval_env):
                    if vector is not None:
                        vector.close()
            tracker.write_summary(self._summary(tracker))
            self._save_run(tracker, None)
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

    def _loop(
        self,
        tracker: Run,
        env: gym.vector.VectorEnv,
        eval_env: gym.vector.VectorEnv | None,
        state: dict[str, Any] | None,
        stop: Interruption,
    ) -> None:
        config, counters = self.config, self.counters
        collector = Collector(
            env,
            self.base,
            self.agent.layout,
            noise=torch_generator(config.seed, "behaviour", self.device),
            starts=numpy_generator(config.seed, "training_starts"),
            device=self.device,
        )
        warmup_source = self._warmup_source()
        policy = policy_source(self.agent.actor, deterministic=False)
        with ProgressReport("stage2", config.total_timesteps, "env steps") as progress:
            if state is None:
                collector.launch(warmup_source)
            elif not self._restore(state, collector):
                collector.launch(policy if counters.env_steps >= config.warmup_steps else warmup_source)
            self._rate_mark = (time.monotonic(), counters.env_steps, counters.gradient_steps)
            next_save = counters.env_steps + config.save_freq
            launched = state is not None  # a run is saved while its environments work
            finished = False
            while not finished:
                if not launched:
                    self._store(collector.collect())
                    collector.launch(policy if counters.env_steps >= config.warmup_steps else warmup_source)
                launched = False
                finished = counters.env_steps >= config.total_timesteps
                if eval_env is not None and not finished and counters.env_steps >= self.next_evaluation:
                    self._evaluate(tracker, eval_env, collector, stop)
                    self.next_evaluation += config.eval_freq
                if counters.env_steps >= config.warmup_steps:
                    self._burn_in()
                self.agent.scale_learning_rates(self._lr_scale())
                self._update(counters.owed(config.utd_ratio), tracker, progress)
                if eval_env is not None and finished:
                    self._evaluate(tracker, eval_env, collector, stop)
                if not finished and (stop.requested or (config.save_freq and counters.env_steps >= next_save)):
                    self._save_run(tracker, collector)
                    next_save += config.save_freq
                    if stop.requested:  # in here: a signal that comes after the question above is not saved yet
                        raise self._interrupted(stop, tracker)

    def _interrupted(self, stop: Interruption, tracker: Run) -> Interrupted:
        assert stop.requested is not None
        return Interrupted(stop.requested, f"to go on: dsrl stage2 --resume {tracker.path}")

    def _store(self, collected: Collected) -> None:
        counters = self.counters
        self.buffer.add(collected, gamma=self.config.gamma)
        if counters.env_steps >= self.config.warmup_steps:
            counters.earning_transitions += len(collected)
        counters.env_steps += collected.env_steps
        counters.macro_steps += len(collected)
        counters.episodes += len(collected.finished)
        counters.lost_macro_steps += collected.lost
        self.recent.extend(success for success, _, _ in collected.finished)

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
            self._batch = self.buffer.sample(config.batch_size)
            metrics = self._gradient_step(self._batch, update_actor=with_actor)
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
            "lost_macro_steps": counters.lost_macro_steps,
            "latent_dim": self.agent.layout.dim,
        }
        row = tracker.log({**metrics, **training, **rates}, self._axes(), "train")
        self.health.observe({**self._axes(), **row})
        shown = {"success": row["train_success"], "q_mean": row["q_mean"], "alpha": row.get("alpha", "-")}
        shown |= {"env/s": rates["env_steps_per_s"], "grad/s": rates["gradient_steps_per_s"]}
        progress.report(counters.env_steps, shown)

    def _evaluate(self, tracker: Run, env: gym.vector.VectorEnv, collector: Collector, stop: Interruption) -> None:
        """Evaluate the policy. A signal ends the run here, saved so that it goes on with this evaluation."""
        config = self.config
        policy = policy_source(self.agent.actor, deterministic=config.eval_deterministic)
        seeds = evaluation_seeds(config.eval_episodes)
        try:
            outcomes = run_episodes(env, self.base, stop.listening(policy), seeds, self.device)
        except EvaluationStopped:
            self._save_run(tracker, collector)
            raise self._interrupted(stop, tracker) from None
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
        self.health.observe({**self._axes(), **row})
        if row["success_once"] >= self.best:
            self.best = row["success_once"]
            self._save_policy(tracker.checkpoints / "best_eval_success_once.pt")

    def _axes(self) -> dict[str, int]:
        counters = self.counters
        return {
            "env_steps": counters.env_steps,
            "macro_steps": counters.macro_steps,
            "gradient_steps": counters.gradient_steps,
        }

    def _save_policy(self, path: Path) -> None:
        """The latent policy alone."""
        extra = {"env_id": self.config.env_id, "counters": asdict(self.counters)}
        save_steering(path, "stage2", self.agent.actor, self.base, self.config.actor_hidden_dims, extra)

    def _save_run(self, tracker: Run, collector: Collector | None) -> None:
        """Everything that the rest of the run depends on; without a collector, of a run that is at its end."""
        check_finite(self.agent.state_dict(), self._axes())
        state: dict[str, Any] = {
            "env_id": self.config.env_id,
            "device": self.device.type,
            "counters": asdict(self.counters),
            "training": self.agent.training_state(),
            "replay": self.replay_files.save(self.buffer),
            "collector": collector.state_dict() if collector is not None else None,
            "recent": list(self.recent),
            "best": self.best,
            "next_evaluation": self.next_evaluation,
            "actor_metrics": self._actor_metrics,
            "log": tracker.state_dict(),
            "random": random_states(),
        }
        content = steering_content(self.agent.actor, self.base, self.config.actor_hidden_dims, state)
        self.checkpoints.save(content)
        self.replay_files.discard_older()

    def _snapshot(self) -> dict[str, Any]:
        """What to look at beside a number that is not finite."""
        return {
            "env_id": self.config.env_id,
            "counters": asdict(self.counters),
            "networks": self.agent.state_dict(),
            "batch": vars(self._batch) if self._batch is not None else None,
        }

    def _load_state(self) -> dict[str, Any]:
        state = self.checkpoints.load(
            partial(
                check_run_state, counters=Counters, config=self.config, base=self.base, replay=self.replay_files
            )
        )
        if state["collector"] is None:
            raise InputError(f"resume: expected a run that was interrupted, {self.resume} is at its end")
        if state["device"] != self.device.type:
            raise InputError(f"device: expected {state['device']}, where the run began, got {self.device.type}")
        if state["base_fingerprint"] != fingerprint(self.base):
            raise InputError("resume: expected the base policy that the run began with, got another")
        return state

    def _restore(self, state: dict[str, Any], collector: Collector) -> bool:
        """Bring everything to where :meth:`_save_run` was called; False if the episodes in flight could not be."""
        self.agent.load_training_state(state["training"])
        self.replay_files.load(self.buffer, state["replay"])
        for name, value in state["counters"].items():
            setattr(self.counters, name, value)
        self.recent.extend(state["recent"])
        self.best, self.next_evaluation = state["best"], state["next_evaluation"]
        self._actor_metrics = state["actor_metrics"]
        same = collector.load_state_dict(state["collector"])
        if not same:
            print("note: the episodes in flight could not be repeated exactly; they begin anew", file=sys.stderr)
        restore_random_states(state["random"])
        return same

    def _summary(self, tracker: Run) -> dict[str, Any]:
        last = self.last_evaluation
        return {
            **asdict(self.counters),
            "utd_effective": self.counters.utd_effective,
            "evaluation": asdict(last) if last is not None else None,
            "best_eval_success_once": self.best if last is not None else None,
            "minutes": round(tracker.minutes, 3),
        }


def run(config: Stage2Config) -> Path:
    """Train, or go on with an interrupted run. Returns the run folder."""
    if config.resume is not None:
        settings = config_of_run(config, "stage2_online.yaml")
        return Stage2(settings, resume=config.resume.expanduser()).run()
    if config.warmup_steps >= config.total_timesteps:
        raise InputError(
            f"warmup_steps: expected below total_timesteps {config.total_timesteps}, got {config.warmup_steps}"
        )
    return Stage2(config).run()


main = command(Stage2Config, "stage2_online.yaml", "dsrl stage2")(run)

if __name__ == "__main__":
    sys.exit(main())
