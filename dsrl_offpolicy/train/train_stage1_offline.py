"""``dsrl stage1``: make the latent policy that Stage 2 starts from: by AW-MLE, offline, or by choosing."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import closing, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsrl_offpolicy.agents.aw_mle import AWMLEAgent, CandidatePool
from dsrl_offpolicy.analysis.live import HealthMonitor
from dsrl_offpolicy.configs.jobs import Stage1Config
from dsrl_offpolicy.envs.family import MacroVectorEnv
from dsrl_offpolicy.envs.vector import make_vector_env
from dsrl_offpolicy.evaluation.intervals import mean_interval
from dsrl_offpolicy.files.plain import check_fields, reading
from dsrl_offpolicy.models.latent_policy import LatentPolicy
from dsrl_offpolicy.models.latent_sources import policy_source
from dsrl_offpolicy.rollouts.base_env import base_env_spec, check_fit
from dsrl_offpolicy.seeding import restore_random_states, torch_generator
from dsrl_offpolicy.tracking.progress import ProgressReport
from dsrl_offpolicy.train.choosing import Best, evaluate
from dsrl_offpolicy.train.command import command, config_of_run
from dsrl_offpolicy.train.demonstrations import demonstrations_digest, load_states
from dsrl_offpolicy.train.offline_data import StageOneDemonstrations
from dsrl_offpolicy.train.precision import start_precision
from dsrl_offpolicy.train.run import STAGE1, Resumable, TrainingRun, run_folder, training_run
from dsrl_offpolicy.train.stage1_learner import build_agent, critic_of, pool_size
from dsrl_offpolicy.train.stage1_starts import StartChoice, demonstrations_path
from dsrl_offpolicy.train.start import build_layout, load_base, note_other_task, rewards_of, start_torch
from dsrl_offpolicy.train.steering_files import save_steering


class Stage1(Resumable):
    """One Stage 1 run: what it is made of, its loop, and its state.

    Args:
        config: its settings; ``resume`` names the folder of an interrupted run of them, which goes on.
    """

    def __init__(self, config: Stage1Config) -> None:
        self.config = config
        self.device = device = start_torch(config)
        self.base = load_base(config, device)
        self.layout = build_layout(self.base.info, config)
        if config.method == "aw_mle":
            critic_of(self.base)
        self.demo_path = demonstrations_path(config)
        self.agent: AWMLEAgent | None = None
        if config.method == "aw_mle" or (config.method == "auto" and self.base.critic is not None):
            assert self.demo_path is not None
            self.states, self.held_out, self.held_out_episodes = load_states(
                config, self.demo_path, self.base, device
            )
            self.agent = build_agent(config, self.base, device)
        with torch.device("meta"):  # shapes alone, and no random numbers
            cloned = LatentPolicy(self.base.info.feature_dim, config.actor_hidden_dims, self.layout)
        learner = self.agent if self.agent is not None else cloned
        self.config = config = start_precision(config, learner, config.batch_size, device)
        self.choice = StartChoice(config, self.base, self.layout, device) if config.method != "aw_mle" else None
        self.sampler = torch_generator(config.seed, "stage1_batches", device)
        self.env_spec = base_env_spec(
            self.base.info, rewards_of(self.base), config, end_on_success=config.eval_end_on_success
        )
        if config.eval_freq or self.choice is not None:
            check_fit(self.base.info, self.env_spec)
        self.digest = ""
        self.step = 0
        self.evaluated = 0
        self.best = Best()
        self.evaluation: dict[str, Any] | None = None
        self.verification: dict[str, float] | None = None

    def run(self) -> Path:
        """Train, verify on held-out states, evaluate in the environment. Returns the run folder."""
        config = self.config
        folder = run_folder(config)
        note_other_task(self.base.info, config.env_id)
        critic = self.base.critic.fingerprint() if self.base.critic is not None else ""
        same = {"device": self.device.type, "base": self.base.fingerprint() + critic}
        if self.demo_path is not None:
            same["demonstrations"] = self.digest = demonstrations_digest(config)
        with training_run(STAGE1, self, config, folder, same) as run:
            summary: dict[str, Any] = {}
            if self.agent is not None:
                summary = self._train(run, self.agent)
            policy, method = self.agent.policy if self.agent is not None else None, config.method
            if self.choice is not None:
                policy, summary["choice"] = self.choice.choose(run, policy, self.step)
                method = summary["choice"]["chosen"]
            assert policy is not None
            self._save_policy(run.tracker.checkpoints / "last.pt", policy, method)
            run.tracker.write_summary({**summary, "minutes": round(run.tracker.minutes, 3)})
        return folder

    def _train(self, run: TrainingRun, agent: AWMLEAgent) -> dict[str, Any]:
        """Train by AW-MLE and verify on held-out states. Returns what the summary tells of it."""
        config = self.config
        pool = self._pool(agent)
        if run.resumed is not None:
            self.restore(run.resumed)
        env = make_vector_env(self.env_spec, config.num_envs) if config.eval_freq else None
        with closing(env) if env is not None else nullcontext():
            self._loop(run, agent, pool, env)
        if self.verification is None:  # a run that is stopped after it, while it chooses, keeps it
            self.verification = verify(agent, self.held_out, self.held_out_episodes, config)
            run.tracker.log("diag", self.verification, {"gradient_steps": self.step})
        return {
            "gradient_steps": self.step,
            "evaluation": self.evaluation,
            "best_eval_success_once": self.best.success if self.evaluation is not None else None,
            "verification": self.verification,
        }

    def _pool(self, agent: AWMLEAgent) -> CandidatePool | None:
        """Drawn before anything else is, so that a run that goes on draws the same one again: it may fill a GiB,
        too much to save."""
        size = pool_size(self.config, len(self.states), self.layout.dim + critic_of(self.base).heads)
        return CandidatePool(agent, self.states, size) if size else None

    def _loop(
        self, run: TrainingRun, agent: AWMLEAgent, pool: CandidatePool | None, env: MacroVectorEnv | None
    ) -> None:
        """Evaluate, save, update, until the gradient steps are done."""
        config, total, states = self.config, self.config.total_iters, self.states
        health = HealthMonitor(config, run.tracker.path)
        with ProgressReport("stage1", total, "gradient steps") as progress:
            while True:
                if env is not None and self._evaluation_due():
                    self._evaluate(run, agent.policy, env)
                run.between_steps()
                if self.step == total:
                    break
                index = torch.randint(
                    len(states), (config.batch_size,), generator=self.sampler, device=self.device
                )
                metrics = agent.update(states[index], pool.draw(index) if pool else None)
                self.step += 1
                if self.step % config.log_freq == 0 or self.step == total:
                    row = run.tracker.log("stage1", metrics, {"gradient_steps": self.step})
                    health.observe(row)
                    shown = ("nll_loss", "kl_loss", "eff_num", "corr_A_logprob")
                    progress.report(self.step, {name: row[name] for name in shown})

    def _evaluation_due(self) -> bool:
        at = self.step % self.config.eval_freq == 0 or self.step == self.config.total_iters
        return at and self.step > self.evaluated

    def _evaluate(self, run: TrainingRun, policy: LatentPolicy, env: MacroVectorEnv) -> None:
        """Evaluate the policy, and keep it where it is the best so far."""
        config = self.config
        source = policy_source(policy, deterministic=config.eval_deterministic)
        summary = evaluate(run, env, self.base, source, config.eval_episodes, self.device)
        run.tracker.log("eval", summary.row(), {"gradient_steps": self.step})
        self.evaluated, self.evaluation = self.step, asdict(summary)
        if self.best.improved_by(summary):
            self._save_policy(run.tracker.checkpoints / "best_eval_success_once.pt", policy, "aw_mle")

    def _save_policy(self, path: Path, policy: LatentPolicy, method: str) -> None:
        """The latent policy, and what it was distilled into, for other jobs."""
        config, agent = self.config, self.agent
        extra: dict[str, Any] = {"env_id": config.env_id, "gradient_steps": self.step, "method": method}
        extra["kl_to_prior"] = self._kl_to_prior(policy)
        if self.demo_path is not None:
            extra["demonstrations"] = StageOneDemonstrations.of(config, self.digest).plain()
        if agent is not None:
            extra["optimizer"] = agent.optimizer.state_dict()
            extra["generator"] = agent.generator.get_state()
        if agent is not None and agent.critic is not None:
            agent.critic.synchronise_target()
            extra["critic"] = agent.critic.state_dict()
            extra["critic_shape"] = {
                "hidden_dims": list(config.critic_hidden_dims),
                "num_critics": config.num_critics,
                "layer_norm": config.critic_layer_norm,
            }
        save_steering(path, "stage1", policy, self.base, config.actor_hidden_dims, extra)

    @torch.no_grad()
    def _kl_to_prior(self, policy: LatentPolicy) -> float:
        """Nats, on the demonstrations' states; without any, on no state in particular: a constant has the same KL
        everywhere."""
        if self.agent is not None:
            states = self.states
        elif self.choice is not None and self.choice.states is not None:
            states = self.choice.states
        else:
            states = torch.zeros(1, self.base.info.feature_dim, device=self.device)
        return float(policy.kl_to_prior(policy(states)).mean())

    def progress(self) -> tuple[int, int]:
        """Return gradient steps, done and planned."""
        return self.step, self.config.total_iters

    def state(self) -> dict[str, Any]:
        """Return everything that the rest of the run depends on, but the pool."""
        return {
            "gradient_steps": self.step,
            "training": self.agent.training_state() if self.agent is not None else {"networks": {}},
            "sampler": self.sampler.get_state(),
            "evaluated": self.evaluated,
            **self.best.state_dict(),
            "evaluation": self.evaluation,
            "verification": self.verification,
        }

    def check(self, state: Mapping[str, Any], where: str) -> None:
        """Check types; :meth:`restore` checks the rest."""
        check_fields(state, {"gradient_steps": int, "sampler": Tensor}, where)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned."""
        with reading("resume: state of the run", "that of a run of these settings"):
            self.step = state["gradient_steps"]
            if self.agent is not None:
                self.agent.load_training_state(state["training"])
            self.sampler.set_state(state["sampler"])
            self.evaluated, self.evaluation = state["evaluated"], state["evaluation"]
            self.verification = state.get("verification")
            self.best.load_state_dict(state)
        restore_random_states(state["random"])


def run(config: Stage1Config) -> Path:
    """Train, or go on with an interrupted run. Returns the run folder."""
    return Stage1(config_of_run(config, "stage1_offline.yaml")).run()


def verify(agent: AWMLEAgent, states: Tensor, episodes: Tensor, config: Stage1Config) -> dict[str, float]:
    """Compare E[Q(s, w)] under policy and prior on held-out states.

    States of one episode resemble each other, so each episode counts as one value: the mean over its states. The
    95 % interval of the paired difference (Student's t) is over episodes; of one episode there is none.

    Args:
        agent: whose policy is held against the prior.
        states: held-out features ``[M, D]``.
        episodes: ``[M]``, the episode of each.
        config: how many states and latents to take.
    """
    generator = torch_generator(config.seed, "stage1_verification", states.device)
    count = min(config.verify_states, len(states))
    chosen = torch.randperm(len(states), generator=generator, device=states.device)[:count]
    _, index = episodes[chosen].unique(return_inverse=True)
    sizes = index.bincount()
    q = agent.paired_q(states[chosen], config.verify_samples)
    prior, policy = (index.bincount(values) / sizes for values in q)
    found = {
        "q_prior": float(prior.mean()),
        "q_policy": float(policy.mean()),
        "states": float(count),
        "episodes": float(len(sizes)),
    }
    interval = mean_interval((policy - prior).cpu().numpy())
    return found | {name: value for name, value in interval.named("difference").items() if value is not None}


main = command(Stage1Config, "stage1_offline.yaml", "dsrl stage1")(run)

if __name__ == "__main__":
    sys.exit(main())
