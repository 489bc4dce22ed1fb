"""``dsrl ppo``: improve the latent policy on-policy, with PPO of Stable-Baselines3 over macro-steps."""

from __future__ import annotations

import json
import math
import sys
import time
import warnings
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from dsrl_offpolicy.agents.optimization import adam_state, annealed
from dsrl_offpolicy.analysis.curves import plot_online_run
from dsrl_offpolicy.configs.jobs import PPOConfig
from dsrl_offpolicy.envs.family import MacroVectorEnv, family_of
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.evaluation.episodes import EvaluationSummary
from dsrl_offpolicy.files.checkpoint import check_weights
from dsrl_offpolicy.files.plain import check_fields, reading
from dsrl_offpolicy.models.latent_policy import LatentPolicy
from dsrl_offpolicy.models.latent_sources import policy_source
from dsrl_offpolicy.models.layers import mlp
from dsrl_offpolicy.registry import not_installed
from dsrl_offpolicy.rollouts.latent_env import LatentVectorEnv
from dsrl_offpolicy.seeding import numpy_generator, restore_random_states
from dsrl_offpolicy.tracking.progress import ProgressReport
from dsrl_offpolicy.tracking.run import Run
from dsrl_offpolicy.train.choosing import Best, evaluate, success_of
from dsrl_offpolicy.train.command import command, config_of_run
from dsrl_offpolicy.train.online_env import OnlineEnvironments
from dsrl_offpolicy.train.run import PPO, Resumable, TrainingRun, run_folder, training_run
from dsrl_offpolicy.train.start import build_layout, load_base, note_other_task, start_torch
from dsrl_offpolicy.train.steering_files import save_steering, start_actor, steering_content

if TYPE_CHECKING:
    import stable_baselines3

STATE = {
    "env_id": str, "base_fingerprint": str, "counters": dict[str, int], "collector": dict[str, Any] | None,
    "best": float, "best_return": float, "next_evaluation": int,
}  # fmt: skip
TOLD = {
    "train/policy_gradient_loss": "policy_loss", "train/value_loss": "value_loss", "train/approx_kl": "approx_kl",
    "train/clip_fraction": "clip_fraction", "train/explained_variance": "explained_variance",
}  # fmt: skip
"""What the library tells of an iteration, and how our rows of metrics call it."""


@dataclass
class Counters:
    """Where a run stands. ``lost_macro_steps`` were cut because their environment process died or hung."""

    env_steps: int = 0
    macro_steps: int = 0
    gradient_steps: int = 0
    episodes: int = 0
    lost_macro_steps: int = 0

    @property
    def axes(self) -> dict[str, int]:
        """What a row of metrics stands at."""
        return {name: getattr(self, name) for name in ("env_steps", "macro_steps", "gradient_steps")}


class OnPolicy(Resumable):
    """One run of PPO: what it is made of, its loop and its state.

    Args:
        config: its settings; ``resume`` names the folder of an interrupted run of them, which goes on.
    """

    def __init__(self, config: PPOConfig) -> None:
        self.config = config
        self.sb3, self.parts = stable_baselines()
        self.device = device = start_torch(config)
        self.base = load_base(config, device)
        check_plan(config)
        self.online_env = OnlineEnvironments(config, self.base)
        training = self.online_env.training
        if family_of(training).capabilities(training).single:
            raise InputError(
                f"env_id: expected a simulator, of {training.env_id} there is one, with an operator whose "
                "takeovers have no place in a rollout; dsrl stage2 knows of them"
            )
        self.layout = build_layout(self.base.info, config)
        width, norm = self.base.info.feature_dim, config.critic_layer_norm
        self.actor = LatentPolicy(width, config.actor_hidden_dims, self.layout)
        self.value = mlp(width, config.critic_hidden_dims, 1, nn.ReLU, layer_norm=norm)
        self.networks = nn.ModuleDict({"actor": self.actor, "value": self.value}).to(device)
        if config.stage1_checkpoint is not None:
            start_actor(self.actor, config.stage1_checkpoint, self.base, device)
        self.learner: stable_baselines3.PPO | None = None
        self.environments: LatentVectorEnv | None = None
        self.counters = Counters()
        self.recent: deque[bool] = deque(maxlen=50)
        self.best = Best()
        self.next_evaluation = 0
        self.last_evaluation: EvaluationSummary | None = None
        self.finished = False

    def run(self) -> Path:
        """Train to ``total_timesteps``. Returns the run folder."""
        config = self.config
        folder = run_folder(config)
        same = {"device": self.device.type, "base_fingerprint": self.base.fingerprint()}
        with training_run(PPO, self, config, folder, same) as run:
            note_other_task(self.base.info, config.env_id)
            with self.online_env.opened() as (env, eval_env):
                self._loop(run, env, eval_env)
            run.tracker.write_summary(self._summary(run.tracker))
        plot_online_run(folder, {}, f"{config.env_id}, seed {config.seed}")
        return folder

    def _loop(self, run: TrainingRun, env: MacroVectorEnv, eval_env: MacroVectorEnv | None) -> None:
        """Evaluate, save, roll out, learn, log, until the env steps are spent."""
        config, counters = self.config, self.counters
        callback = self._build_learner(run, env)
        if run.resumed is not None:
            self.restore(run.resumed)
        learner = self.learner
        assert learner is not None
        learner._setup_learn(config.total_timesteps, callback)
        logged, mark = counters.gradient_steps, (time.monotonic(), counters.env_steps)
        with ProgressReport("ppo", config.total_timesteps, "env steps") as progress:
            while True:
                last = counters.env_steps >= config.total_timesteps
                if eval_env is not None and (last or counters.env_steps >= self.next_evaluation):
                    self._evaluate(run, eval_env)
                    self.next_evaluation = counters.env_steps + config.eval_freq
                    if eval_env is env:  # an exclusive family: its episodes begin anew
                        learner._setup_learn(config.total_timesteps, callback)
                if last:
                    break
                run.between_steps()
                learner.collect_rollouts(learner.env, callback, learner.rollout_buffer, config.rollout_steps)
                learner._current_progress_remaining = 1 - counters.env_steps / config.total_timesteps
                learner.train()
                counters.gradient_steps = int(next(iter(learner.policy.optimizer.state.values()))["step"])
                if counters.gradient_steps - logged >= config.log_freq:
                    now = time.monotonic()
                    rate = (counters.env_steps - mark[1]) / max(now - mark[0], 1e-9)
                    self._log(run.tracker, progress, rate)
                    logged, mark = counters.gradient_steps, (now, counters.env_steps)
        self.finished = True

    def _build_learner(self, run: TrainingRun, env: MacroVectorEnv) -> Any:
        """Make the library's PPO of our networks. Returns what accompanies its rollouts."""
        from dsrl_offpolicy.rollouts.sb3_env import SB3VecEnv

        config, parts = self.config, self.parts
        self.environments = LatentVectorEnv(env, self.base, self.layout, gamma=config.gamma, device=self.device)
        self.environments.np_random = numpy_generator(config.seed, "training_starts")
        self.learner = self.sb3.PPO(
            parts.LatentActorCritic,
            SB3VecEnv(self.environments, before_squash=True),
            learning_rate=lambda remaining: config.lr * annealed(1.0 - remaining, config.anneal_from),
            n_steps=config.rollout_steps,
            batch_size=config.batch_size,
            n_epochs=config.epochs,
            gamma=self.environments.discount,
            gae_lambda=config.gae_lambda,
            clip_range=config.clip_range,
            ent_coef=config.ent_coef,
            vf_coef=config.vf_coef,
            max_grad_norm=config.max_grad_norm,
            target_kl=config.target_kl,
            policy_kwargs={"actor": self.actor, "value": self.value, "regularizer": config.regularizer},
            device=self.device,
        )
        self.learner.set_logger(self.sb3.common.logger.Logger(None, []))

        def heard(infos: Sequence[Mapping[str, Any]], ended: np.ndarray) -> None:
            self._count(infos, ended)
            run.end_if_stopped()

        return parts.MacroSteps(heard)

    def _count(self, infos: Sequence[Mapping[str, Any]], ended: np.ndarray) -> None:
        counters = self.counters
        for info, over in zip(infos, ended, strict=True):
            counters.env_steps += info["n_steps"]
            counters.macro_steps += not info["lost"]
            counters.lost_macro_steps += info["lost"]
            if over and not info["lost"]:
                counters.episodes += 1
                self.recent.append(info["success_once"])

    def _evaluate(self, run: TrainingRun, env: MacroVectorEnv) -> None:
        """Evaluate the policy, and keep it where it is the best so far."""
        config = self.config
        policy = policy_source(self.actor, deterministic=config.eval_deterministic)
        self.last_evaluation = summary = evaluate(run, env, self.base, policy, config.eval_episodes, self.device)
        run.tracker.log("eval", summary.row(), self.counters.axes)
        if self.best.improved_by(summary):
            extra = {"env_id": config.env_id, "counters": asdict(self.counters)}
            path = run.tracker.checkpoints / "best_eval_success_once.pt"
            save_steering(path, "stage2", self.actor, self.base, config.actor_hidden_dims, extra)

    def _log(self, tracker: Run, progress: ProgressReport, rate: float) -> None:
        learner = self.learner
        assert learner is not None
        told = {ours: float(learner.logger.name_to_value[theirs]) for theirs, ours in TOLD.items()}
        if not math.isfinite(told["explained_variance"]):  # all returns are the same
            del told["explained_variance"]
        observations = learner.rollout_buffer.observations
        with torch.no_grad():
            dist = self.actor(torch.as_tensor(observations, device=self.device).flatten(0, -2))
        training = {
            "kl": self.actor.kl_to_prior(dist).mean(),
            "entropy_u": self.parts.entropy_of_u(dist).mean(),
            "train_success": sum(self.recent) / max(len(self.recent), 1),
            "v_mean": float(learner.rollout_buffer.values.mean()),
            "lost_macro_steps": self.counters.lost_macro_steps,
            "latent_dim": self.layout.dim,
            "env_steps_per_s": rate,
        }
        row = tracker.log("train", {**told, **training}, self.counters.axes)
        shown = {"success": row["train_success"], "v_mean": row["v_mean"], "kl": row["kl"], "env/s": rate}
        progress.report(self.counters.env_steps, shown, success_of(self.recent))

    def _summary(self, tracker: Run) -> dict[str, Any]:
        last = self.last_evaluation
        return {
            **asdict(self.counters),
            "evaluation": asdict(last) if last is not None else None,
            "best_eval_success_once": self.best.success if last is not None else None,
            "minutes": round(tracker.minutes, 3),
        }

    def progress(self) -> tuple[int, int]:
        """Return env steps, done and planned."""
        return self.counters.env_steps, self.config.total_timesteps

    def state(self) -> dict[str, Any]:
        """Return the state between two iterations: the rollout in flight is not in it, its env steps are counted.

        That of a finished run has no collector.
        """
        assert self.learner is not None and self.environments is not None
        starts = json.dumps(self.environments.np_random.bit_generator.state)
        state = {
            "env_id": self.config.env_id,
            "counters": asdict(self.counters),
            "training": {
                "networks": self.networks.state_dict(),
                "optimizer": self.learner.policy.optimizer.state_dict(),
            },
            "collector": None if self.finished else {"starts": starts},
            **self.best.state_dict(),
            "next_evaluation": self.next_evaluation,
        }
        return steering_content(self.actor, self.base, self.config.actor_hidden_dims, state)

    def check(self, state: Mapping[str, Any], where: str) -> None:
        """Check types, shapes and counters."""
        check_fields(state, STATE, where)
        check_fields(state["counters"], {field.name: int for field in fields(Counters)}, f"{where}: counters")
        check_fields(state["training"], {"networks": dict[str, Tensor], "optimizer": dict[str, Any]}, where)
        if min(state["counters"].values()) < 0:
            raise InputError(f"{where}: counters: expected numbers >= 0")
        check_weights(self.networks, state["training"]["networks"], f"{where}: networks")
        if state["collector"] is not None:
            with reading(f"{where}: collector", "the state of a generator"):
                np.random.default_rng().bit_generator.state = json.loads(state["collector"]["starts"])

    def restore(self, state: Mapping[str, Any]) -> None:
        """Bring networks, optimiser, counters and generators to where the run was saved; episodes begin anew."""
        assert self.learner is not None and self.environments is not None
        optimizer = self.learner.policy.optimizer
        training = state["training"]
        optimizer.load_state_dict(adam_state(optimizer, training["optimizer"], "resume: optimizer"))
        self.networks.load_state_dict(training["networks"])
        for name, value in state["counters"].items():
            setattr(self.counters, name, value)
        self.best.load_state_dict(state)
        self.next_evaluation = state["next_evaluation"]
        self.environments.np_random.bit_generator.state = json.loads(state["collector"]["starts"])
        restore_random_states(state["random"])
        print("note: new episodes and a new rollout begin", file=sys.stderr)


def check_plan(config: PPOConfig) -> None:
    """Refuse a batch that does not divide a rollout.

    Raises:
        InputError: naming it.
    """
    rows = config.rollout_steps * config.num_envs
    if rows % config.batch_size:
        raise InputError(
            f"batch_size: expected a divisor of rollout_steps x num_envs = {rows}, got {config.batch_size}"
        )


def stable_baselines() -> tuple[ModuleType, ModuleType]:
    """Import Stable-Baselines3 and what we give to it.

    Raises:
        InputError: it is not installed; names the extra that installs it.
    """
    try:
        with warnings.catch_warnings():  # of the library, about a Gym that we do not use
            warnings.simplefilter("ignore")
            import stable_baselines3

            from dsrl_offpolicy.agents import ppo
    except ImportError as error:
        raise InputError(f"PPO is that of Stable-Baselines3: {not_installed(error)}") from error
    return stable_baselines3, ppo


def run(config: PPOConfig) -> Path:
    """Train, or go on with an interrupted run. Returns the run folder."""
    return OnPolicy(config_of_run(config, "ppo.yaml")).run()


main = command(PPOConfig, "ppo.yaml", "dsrl ppo")(run)

if __name__ == "__main__":
    sys.exit(main())
