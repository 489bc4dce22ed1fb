"""``dsrl pretrain`` (Stage 0): the AWSC base policy and its action critic Q^A, from demonstrations."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dsrl_offpolicy.agents.awsc import EncoderTraining
from dsrl_offpolicy.base_policies.observation_encoder import ObservationEncoder
from dsrl_offpolicy.base_policies.shortcut_flow import ShortcutFlowPolicy
from dsrl_offpolicy.configs.jobs import Stage0Config
from dsrl_offpolicy.demos.windows import cut_windows, stack_images, stack_poses, stack_states
from dsrl_offpolicy.envs.vector import make_vector_env
from dsrl_offpolicy.evaluation.episodes import evaluation_seeds, run_episodes, summarise
from dsrl_offpolicy.files.checkpoint import save_checkpoint
from dsrl_offpolicy.files.plain import check_fields, reading
from dsrl_offpolicy.models.latent_sources import prior_source
from dsrl_offpolicy.rollouts.base_env import base_env_spec, check_fit
from dsrl_offpolicy.seeding import restore_random_states, torch_generator
from dsrl_offpolicy.tracking.progress import ProgressReport
from dsrl_offpolicy.train.command import command, config_of_run
from dsrl_offpolicy.train.demonstrations import (
    demonstrations_digest,
    encode_demonstrations,
    load_demonstrations,
    successes_of,
    to_batch,
    window_spec,
)
from dsrl_offpolicy.train.precision import start_precision
from dsrl_offpolicy.train.run import STAGE0, Resumable, TrainingRun, run_folder, training_run
from dsrl_offpolicy.train.stage0_learner import base_spec, build_agent
from dsrl_offpolicy.train.start import require_file, start_torch


class Stage0(Resumable):
    """One Stage 0 run: what it is made of, its parts (the image encoder, then everything else), and its state.

    Args:
        config: its settings; ``resume`` names the folder of an interrupted run of them, which goes on.
    """

    def __init__(self, config: Stage0Config) -> None:
        self.config = config
        self.device = device = start_torch(config)
        what = "a file of demonstrations (dsrl demos writes one)"
        self.demos = load_demonstrations(
            config,
            require_file(config.demo_path, "demo_path", what),
            obs_mode=config.obs_mode,
            control_mode=config.control_mode,
            reward_mode=config.reward_mode,
            poses=True,
        )
        if config.successes_only:
            self.demos = successes_of(self.demos)
        self.spec = spec = base_spec(config, self.demos)
        self.windows = cut_windows(
            self.demos.trajectories,
            self.demos.control_mode,
            window_spec(spec.info, spec.rewards),
            has_gripper=self.demos.has_gripper,
        )
        states = torch.from_numpy(stack_states(self.demos.trajectories))
        self.encoder = ObservationEncoder.fit(states, spec.build_visual()).to(device)
        self.agent = build_agent(config, spec, device)
        self.config = config = start_precision(config, self.agent, config.batch_size, device)
        self.encoder_training: EncoderTraining | None = None
        self.step = 0
        self.sampler = torch.Generator()
        if config.eval_episodes:
            check_fit(spec.info, base_env_spec(spec.info, spec.rewards, config, end_on_success=True))

    def run(self) -> Path:
        """Train and save ``checkpoints/last.pt``. Returns the run folder."""
        config = self.config
        folder = run_folder(config)
        same = {"device": self.device.type, "demonstrations": demonstrations_digest(config)}
        with training_run(STAGE0, self, config, folder, same) as run:
            if self.spec.image_channels and (run.resumed is None or run.resumed["encoder_training"] is not None):
                self._train_encoder(run)
            self._train(run)
            content = self._content()
            save_checkpoint(run.tracker.checkpoints / "last.pt", "base_policy", content)
            summary: dict[str, Any] = {
                "demonstrations": len(self.demos.trajectories),
                "demonstration_success": float(np.mean([t.succeeds for t in self.demos.trajectories])),
                "windows": len(self.windows),
                "gradient_steps": config.total_iters,
                "minutes": round(run.tracker.minutes, 3),
            }
            if config.eval_episodes:
                policy = ShortcutFlowPolicy.from_checkpoint(content, "stage0").to(self.device)
                summary["base"] = self._evaluate(policy, run)
            run.tracker.write_summary(summary)
        return folder

    def _train_encoder(self, run: TrainingRun) -> None:
        """Train the image encoder. All images are held in memory, as bytes."""
        config, trajectories, device = self.config, self.demos.trajectories, self.device
        found = stack_poses(trajectories)
        poses = torch.from_numpy(found).to(device) if found is not None else None
        self.encoder_training = training = EncoderTraining(
            self.agent,
            self.encoder,
            pose_dim=poses.shape[1] if poses is not None else 0,
            lr=config.encoder_lr,
            total_iters=config.encoder_iters,
            shift=config.image_shift,
        )
        states = torch.from_numpy(stack_states(trajectories)).to(device)
        images = torch.from_numpy(stack_images(trajectories))
        assert self.encoder.visual is not None
        self.encoder.visual.fit(images)
        chunks, rows = torch.from_numpy(self.windows.chunks), torch.from_numpy(self.windows.rows)
        self.sampler = torch_generator(config.seed, "stage0_encoder_batches")
        if run.resumed is not None:
            self.restore(run.resumed)

        def update() -> dict[str, Tensor]:
            index = torch.randint(len(rows), (config.encoder_batch_size,), generator=self.sampler)
            batch = rows[index]
            return training.update(
                states[batch.to(device)],
                images[batch].to(device),
                chunks[index].to(device),
                poses[batch[:, -1].to(device)] if poses is not None else None,
            )

        self._loop(run, update, "encoder")
        self.encoder_training, self.step = None, 0

    def _train(self, run: TrainingRun) -> None:
        """Train everything else on the table of encoded frames; the encoder is frozen."""
        config, device = self.config, self.device
        self.encoder.requires_grad_(False)
        self.sampler = torch_generator(config.seed, "stage0_batches", device)
        if run.resumed is not None and run.resumed["encoder_training"] is None:
            self.restore(run.resumed)
        data = to_batch(self.windows, encode_demonstrations(self.demos, self.encoder.encode_frames, device))

        def update() -> dict[str, Tensor]:
            index = torch.randint(len(data), (config.batch_size,), generator=self.sampler, device=device)
            return self.agent.update(data.gather(index))

        self._loop(run, update)

    def _loop(
        self,
        run: TrainingRun,
        update: Callable[[], dict[str, Tensor]],
        part: Literal["stage0", "encoder"] = "stage0",
    ) -> None:
        """Save, update, log, until the gradient steps of this part are done."""
        _, total = self.progress()
        with ProgressReport(part, total, "gradient steps") as progress:
            while True:
                run.between_steps()
                if self.step == total:
                    break
                metrics = update()
                self.step += 1
                if self.step % self.config.log_freq == 0 or self.step == total:
                    row = run.tracker.log(part, metrics, {"gradient_steps": self.step})
                    shown = metrics if part == "encoder" else ("flow_loss", "critic_loss", "q_mean")
                    progress.report(self.step, {name: row[name] for name in shown})

    def _evaluate(self, policy: ShortcutFlowPolicy, run: TrainingRun) -> dict[str, Any]:
        """Evaluate the finished base policy; a run that resumes makes up for it."""
        config = self.config
        env_spec = base_env_spec(
            policy.info, policy.spec.rewards, config, end_on_success=config.eval_end_on_success
        )
        seeds = evaluation_seeds(config.eval_episodes)
        with closing(make_vector_env(env_spec, config.num_envs)) as env:
            outcomes = run_episodes(env, policy, run.listening(prior_source()), seeds, self.device)
        return asdict(summarise(outcomes))

    def _content(self) -> dict[str, Any]:
        """The checkpoint for other jobs: all that rebuilds the base policy, and what training it left."""
        agent = self.agent
        return {
            "spec": agent.spec.to_plain(),
            "encoder": self.encoder.state_dict(),
            "velocity_net": agent.velocity_net.state_dict(),
            "velocity_net_ema": agent.velocity_net_ema.state_dict(),
            "critic": agent.critic.state_dict(),
            "critic_target": agent.critic_target.state_dict(),
            "value": agent.value.state_dict(),
            "optimizer": agent.optimizer.state_dict(),
            "gradient_steps": self.step,
        }

    def progress(self) -> tuple[int, int]:
        """Return gradient steps of the part in training, done and planned."""
        encoder = self.encoder_training is not None
        return self.step, self.config.encoder_iters if encoder else self.config.total_iters

    def state(self) -> dict[str, Any]:
        """Return all that the rest of the run depends on; of the encoder's training only while it lasts."""
        training = self.encoder_training
        return {
            "gradient_steps": self.step,
            "training": self.agent.training_state(),
            "encoder": self.encoder.state_dict(),
            "encoder_training": training.training_state() if training is not None else None,
            "sampler": self.sampler.get_state(),
        }

    def check(self, state: Mapping[str, Any], where: str) -> None:
        """Check types; :meth:`restore` checks the rest."""
        check_fields(state, {"gradient_steps": int, "sampler": Tensor}, where)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned."""
        with reading("resume: state of the run", "that of a run of these settings"):
            self.step = state["gradient_steps"]
            self.agent.load_training_state(state["training"])
            self.encoder.load_state_dict(state["encoder"])
            if self.encoder_training is not None:
                self.encoder_training.load_training_state(state["encoder_training"])
            self.sampler.set_state(state["sampler"])
        restore_random_states(state["random"])


def run(config: Stage0Config) -> Path:
    """Train, or go on with an interrupted run. Returns the run folder."""
    return Stage0(config_of_run(config, "stage0_pretrain.yaml")).run()


main = command(Stage0Config, "stage0_pretrain.yaml", "dsrl pretrain")(run)

if __name__ == "__main__":
    sys.exit(main())
