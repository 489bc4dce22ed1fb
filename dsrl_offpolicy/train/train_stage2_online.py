"""``dsrl stage2``: improve the latent policy online, with SAC or another algorithm, over macro-steps."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from dsrl_offpolicy.agents.optimization import annealed
from dsrl_offpolicy.agents.stage2_config import chosen_algorithm, shipped_yaml, stage2_config
from dsrl_offpolicy.agents.steering_agent import Update
from dsrl_offpolicy.analysis.curves import plot_online_run
from dsrl_offpolicy.analysis.live import HealthMonitor
from dsrl_offpolicy.buffers.macro_replay_buffer import MacroReplayBuffer
from dsrl_offpolicy.configs.jobs import Stage2LoopConfig
from dsrl_offpolicy.configs.loading import parse_job
from dsrl_offpolicy.contracts import LatentSource, MacroBatch
from dsrl_offpolicy.envs.family import MacroVectorEnv
from dsrl_offpolicy.errors import InputError, NonFiniteError
from dsrl_offpolicy.evaluation.episodes import EvaluationSummary, choosing_seeds
from dsrl_offpolicy.files.metrics import read_metrics
from dsrl_offpolicy.models.latent_sources import prior_source, squashed_prior_source
from dsrl_offpolicy.rollouts.collector import Collected, Collector
from dsrl_offpolicy.rollouts.ray_collector import RayCollector
from dsrl_offpolicy.seeding import numpy_generator, torch_generator
from dsrl_offpolicy.tracking.progress import ProgressReport, tell
from dsrl_offpolicy.tracking.run import Run
from dsrl_offpolicy.train.choosing import Best, evaluate, success_of
from dsrl_offpolicy.train.command import config_of_run, parsed_command
from dsrl_offpolicy.train.offline_data import offline_data
from dsrl_offpolicy.train.online_env import OnlineEnvironments
from dsrl_offpolicy.train.precision import start_precision
from dsrl_offpolicy.train.ray_backend import check_backend, ray_collector
from dsrl_offpolicy.train.run import STAGE2, TrainingRun, run_folder, training_run
from dsrl_offpolicy.train.stage2_learner import build_agent, check_plan, planned_steps
from dsrl_offpolicy.train.stage2_state import Counters, Stage2State
from dsrl_offpolicy.train.start import load_base, note_other_task, note_unknown_rewards, rewards_of, start_torch
from dsrl_offpolicy.train.steering_files import save_steering
from dsrl_offpolicy.train.videos import BASE, STEERED, Start, Videos

COMPILE_FROM = 10_000
"""Planned gradient steps from which ``compile=auto`` compiles (docs/performance.md)."""


class Stage2:
    """One Stage 2 run: what it is made of, and its loop.

    Args:
        config: its settings; ``resume`` names the folder of an interrupted run of them, which goes on.
    """

    def __init__(self, config: Stage2LoopConfig) -> None:
        self.config = config
        self.device = device = start_torch(config)
        self.base = load_base(config, device)
        check_plan(config, self.base.info)
        self.online_env = OnlineEnvironments(config, self.base)
        check_backend(config, self.online_env.training)
        self.videos: Videos | None = None
        if config.video_every:
            self.videos = Videos(self.base, self.online_env.evaluation, device)
        self.agent = build_agent(config, self.base, device)
        self.config = config = start_precision(config, self.agent, config.batch_size, device)
        self.buffer = MacroReplayBuffer(
            config.replay_buffer_size,
            self.base.info.feature_dim,
            self.agent.layout.dim,
            generator=torch_generator(config.seed, "replay", device),
            device=device,
        )
        self.config, self.offline = offline_data(config, self.base, self.agent.layout, device)
        self.collector: Collector | RayCollector | None = None
        self.gradient_step: Update | None = None
        self.counters = Counters()
        self.recent: deque[bool] = deque(maxlen=50)
        self.recently_intervened: deque[bool] = deque(maxlen=100)
        self.best = Best()
        self.next_evaluation = 0
        self.last_evaluation: EvaluationSummary | None = None
        self.actor_metrics: dict[str, torch.Tensor] = {}
        self.batch: MacroBatch | None = None
        self._rate_mark = (0.0, 0, 0)

    def run(self) -> Path:
        """Train to ``total_timesteps``. Returns the run folder."""
        config = self.config
        folder = run_folder(config)
        state = Stage2State(self, folder)
        same = {"device": self.device.type, "base_fingerprint": self.base.fingerprint()}
        if self.offline is not None:
            same |= self.offline.same()
        with training_run(STAGE2, state, config, folder, same) as run:
            note_other_task(self.base.info, config.env_id)
            if config.init_critic:
                note_unknown_rewards(rewards_of(self.base))
            if self.offline is not None and run.resumed is None:
                self.offline.keep(folder)
                numbers = {f"inversion_{name}": value for name, value in self.offline.report.items()}
                run.tracker.log("diag", numbers, self.counters.axes)
            self.health = HealthMonitor(config, folder)
            with self._collecting(run) as (collector, eval_env):
                self._loop(run, state, collector, eval_env)
            self.collector = None
            run.tracker.write_summary(self._summary(run.tracker))
        plot_online_run(folder, {}, f"{config.env_id}, seed {config.seed}")
        return folder

    def _loop(
        self,
        run: TrainingRun,
        state: Stage2State,
        collector: Collector | RayCollector,
        eval_env: MacroVectorEnv | None,
    ) -> None:
        """Act, store, evaluate, learn, save, until the env steps are spent."""
        config, counters = self.config, self.counters
        self.collector = collector
        saved_while_acting = run.resumed is not None and state.restore(run.resumed, collector)
        if not saved_while_acting:
            collector.launch(self._acting())
        with ProgressReport("stage2", config.total_timesteps, "env steps") as progress:
            self._mark_rates()
            act, finished = run.resumed is None, False
            while not finished:
                if act:
                    self._store(collector.collect())
                    collector.launch(self._acting())
                act, finished = True, counters.env_steps >= config.total_timesteps
                if eval_env is not None and not finished and counters.env_steps >= self.next_evaluation:
                    self._evaluate(run, eval_env)
                    if eval_env is collector.env:
                        collector.take_back()
                        collector.launch(self._acting())
                    due_next = self.next_evaluation + config.eval_freq
                    self.next_evaluation = max(due_next, counters.env_steps + 1)
                if counters.env_steps >= config.warmup_steps:
                    self._learn(run, progress)
                if eval_env is not None and finished:
                    self._evaluate(run, eval_env)
                if not finished:
                    run.between_steps()

    def _acting(self) -> LatentSource:
        """Who chooses the next latents."""
        config = self.config
        from_prior = config.warmup_policy == "prior" or config.stage1_checkpoint is None
        if self.counters.env_steps < config.warmup_steps and from_prior:
            return squashed_prior_source(self.agent.layout)
        return self.agent.source()

    def _store(self, collected: Collected) -> None:
        counters = self.counters
        self.buffer.add(collected, gamma=self.config.gamma)
        if counters.env_steps >= self.config.warmup_steps:
            counters.earning_transitions += len(collected)
        counters.env_steps += collected.env_steps
        counters.macro_steps += len(collected)
        counters.episodes += len(collected.finished)
        counters.lost_macro_steps += collected.lost
        counters.restarted_episodes += collected.lost
        self.recent.extend(success for success, _, _ in collected.finished)
        self.recently_intervened.extend([False] * len(collected) + [True] * collected.intervened)

    def _learn(self, run: TrainingRun, progress: ProgressReport) -> None:
        """Burn in the critics once, then take the gradient steps that the stored transitions have earned.

        A signal ends the run between any two of them; what is left of them follows from the counters.
        """
        config, counters = self.config, self.counters
        if self.gradient_step is None:
            self.gradient_step = self._compiled(run) if self._worth_compiling() else self.agent.update
            self._mark_rates()
        done = counters.env_steps / config.total_timesteps
        self.agent.scale_learning_rates(annealed(done, config.anneal_from))
        while counters.burnin_steps < config.critic_burnin_steps:
            run.end_if_stopped()
            self.gradient_step(self._sample(), update_actor=False)
            counters.burnin_steps += 1
        while counters.owed(config.utd_ratio) > 0:
            run.end_if_stopped()
            counters.gradient_steps += 1
            with_actor = counters.gradient_steps % config.actor_update_every == 0
            self.batch = self._sample()
            metrics = self.gradient_step(self.batch, update_actor=with_actor)
            if with_actor:
                self.actor_metrics = metrics
            if counters.gradient_steps % config.log_freq == 0:
                self._log({**self.actor_metrics, **metrics}, run.tracker, progress)

    def _sample(self) -> MacroBatch:
        """Draw a batch of what happened, and of demonstrations where there are any."""
        size = self.config.batch_size
        if self.offline is None:
            return self.buffer.sample(size)
        return self.offline.batch(self.buffer, size, self.counters.env_steps)

    def _evaluate(self, run: TrainingRun, env: MacroVectorEnv) -> None:
        """Evaluate the policy, and keep it where it is the best so far."""
        assert self.collector is not None
        if env is self.collector.env:  # an exclusive family
            self._store(self.collector.lend())
        config, axes = self.config, self.counters.axes
        policy = self.agent.source(config.eval_deterministic)
        self.last_evaluation = summary = evaluate(run, env, self.base, policy, config.eval_episodes, self.device)
        self._film(run, policy)
        self.health.observe(run.tracker.log("eval", summary.row(), axes))
        if self.best.improved_by(summary):
            extra = {"env_id": config.env_id, "counters": asdict(self.counters)}
            path = run.tracker.checkpoints / "best_eval_success_once.pt"
            save_steering(path, "stage2", self.agent.actor, self.base, config.actor_hidden_dims, extra)

    def _film(self, run: TrainingRun, policy: LatentSource) -> None:
        """Film the policy of the first evaluation and of every k-th after it. A run goes on without a video that
        failed; a signal ends it, and the evaluation is repeated when it resumes."""
        if self.videos is None:
            return
        evaluations = sum(row["group"] == "eval" for row in read_metrics(run.tracker.path))
        if evaluations % self.config.video_every:
            return
        axes = self.counters.axes
        sources = {BASE: run.listening(prior_source()), STEERED: run.listening(policy)}
        try:
            start = Start(f"env-steps-{axes['env_steps']:09d}", choosing_seeds(1)[0], axes)
            self.videos.write(run.tracker, sources, [start])
        except NonFiniteError:
            raise
        except InputError as error:
            print(f"note: no video at {axes['env_steps']} env steps: {error}", file=sys.stderr)

    def _log(self, metrics: dict[str, torch.Tensor], tracker: Run, progress: ProgressReport) -> None:
        counters = self.counters
        then, env_steps, gradient_steps = self._rate_mark
        elapsed = max(self._mark_rates() - then, 1e-9)
        rates = {
            "env_steps_per_s": (counters.env_steps - env_steps) / elapsed,
            "gradient_steps_per_s": (counters.gradient_steps - gradient_steps) / elapsed,
        }
        training = {
            "train_success": sum(self.recent) / max(len(self.recent), 1),
            "utd_effective": counters.utd_effective,
            "buffer_size": len(self.buffer),
            "lost_macro_steps": counters.lost_macro_steps,
            "latent_dim": self.agent.layout.dim,
        }
        if any(self.recently_intervened):
            training["intervened"] = sum(self.recently_intervened) / len(self.recently_intervened)
        if self.collector is not None:
            training |= self.collector.metrics()
        if self.offline is not None:
            training["offline_fraction"] = self.offline.share(counters.env_steps)
        row = tracker.log("train", {**metrics, **training, **rates}, counters.axes)
        self.health.observe(row)
        judged = {name: row.get(name, "-") for name in self.agent.judged_by[:2]}
        shown = {"success": row["train_success"], **judged}
        shown |= {"env/s": rates["env_steps_per_s"], "grad/s": rates["gradient_steps_per_s"]}
        detail = {"gradient_steps": counters.gradient_steps, **success_of(self.recent)}
        if self.last_evaluation is not None:
            detail |= self.last_evaluation.success_once.named("eval_success")
        progress.report(counters.env_steps, shown, detail)

    def _mark_rates(self) -> float:
        """Rates count from here on; returns the time."""
        now = time.monotonic()
        self._rate_mark = (now, self.counters.env_steps, self.counters.gradient_steps)
        return now

    def _worth_compiling(self) -> bool:
        long = planned_steps(self.config, self.base.info) >= COMPILE_FROM
        return self.config.compile == "on" or (self.config.compile == "auto" and long)

    def _compiled(self, run: TrainingRun) -> Update:
        """The learner's update, compiled; a machine without a compiler is told and goes on without."""
        start = time.monotonic()
        tell(
            "stage2: compiling the learner: seconds where torch has it from an earlier run, else a quarter of a "
            "minute, minutes on a busy machine; --compile off does without",
        )

        def tell_time(seconds: float) -> None:
            tell(f"stage2: compiling for {seconds:.0f} s; Ctrl-C saves the run and ends it")

        try:
            compiled = run.waiting_for(lambda: self.agent.compiled(self.config.batch_size), tell_time)
        except RuntimeError as error:
            print(f"note: the learner runs uncompiled, torch.compile failed: {str(error)[:200]}", file=sys.stderr)
            return self.agent.update
        if compiled is None:
            print(f"note: the learner runs uncompiled: {self.config.algo} has no compiled update", file=sys.stderr)
            return self.agent.update
        took = time.monotonic() - start
        tell(f"stage2: learner compiled in {took:.1f} s (torch keeps it for the next run)")
        return compiled

    @contextlib.contextmanager
    def _collecting(self, run: TrainingRun) -> Iterator[tuple[Collector | RayCollector, MacroVectorEnv | None]]:
        """Inside, there are the backend's collector, and environments to evaluate in, if the job evaluates."""
        config, layout = self.config, self.agent.layout
        if config.backend == "ray":
            training, counters = self.online_env.training, self.counters
            with (
                self.online_env.evaluating() as eval_env,
                ray_collector(
                    config, training, self.base, layout, lambda: counters.gradient_steps, run.end_if_stopped,
                    self.device,
                ) as actors,
            ):  # fmt: skip
                yield actors, eval_env
            return
        with self.online_env.opened() as (env, eval_env):
            noise = torch_generator(config.seed, "behaviour", self.device)
            starts = numpy_generator(config.seed, "training_starts")
            yield Collector(env, self.base, layout, noise=noise, starts=starts, device=self.device), eval_env

    def _summary(self, tracker: Run) -> dict[str, Any]:
        last = self.last_evaluation
        return {
            **asdict(self.counters),
            "utd_effective": self.counters.utd_effective,
            "offline": self.offline.report if self.offline is not None else None,
            "evaluation": asdict(last) if last is not None else None,
            "best_eval_success_once": self.best.success if last is not None else None,
            "minutes": round(tracker.minutes, 3),
        }


def settings(argv: Sequence[str]) -> Stage2LoopConfig:
    """Return the settings of the loop and of the algorithm that ``argv`` chooses."""
    algo = chosen_algorithm(argv)
    return parse_job(stage2_config(algo), shipped_yaml(algo), "dsrl stage2", argv)


def run(config: Stage2LoopConfig) -> Path:
    """Train, or go on with an interrupted run. Returns the run folder."""
    return Stage2(config_of_run(config, shipped_yaml(config.algo))).run()


main = parsed_command(settings, "dsrl stage2")(run)

if __name__ == "__main__":
    sys.exit(main())
