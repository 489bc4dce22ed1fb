"""``dsrl pretrain`` (Stage 0): the AWSC base policy and its action critic Q^A, from demonstrations."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dsrl_offpolicy.agents.awsc import EncoderTraining
from dsrl_offpolicy.base_policies.observation_encoder import ObservationEncoder
from dsrl_offpolicy.base_policies.shortcut_flow import ShortcutFlowPolicy
from dsrl_offpolicy.configs.jobs import Stage0Config
from dsrl_offpolicy.demos.windows import cut_windows, stack_images, stack_poses, stack_states
from dsrl_offpolicy.envs.vector import make_vector_env
from dsrl_offpolicy.evaluation.episodes import evaluation_seeds, run_episodes, summarise
from dsrl_offpolicy.files.checkpoint import save_checkpoint
from dsrl_offpolicy.files.plain import reading
from dsrl_offpolicy.models.latent_sources import prior_source
from dsrl_offpolicy.seeding import restore_random_states, torch_generator
from dsrl_offpolicy.tracking.progress import ProgressReport
from dsrl_offpolicy.tracking.run import create_run_folder
from dsrl_offpolicy.train.demonstrations import (
    demonstrations_digest,
    encode_demonstrations,
    load_demonstrations,
)
from dsrl_offpolicy.train.interruption import EvaluationStopped
from dsrl_offpolicy.train.offline_run import OfflineRun, offline_run
from dsrl_offpolicy.train.stage0_parts import base_spec, build_agent, to_batch, window_spec
from dsrl_offpolicy.train.wiring import (
    base_env_spec,
    check_fit,
    command,
    config_of_run,
    require_file,
    start_torch,
)


class Stage0:
    """One Stage 0 run: what it is made of, and its parts: the image encoder, then everything else.

    Args:
        config: its settings.
        resume: a run folder that an interrupted run of these settings left; it goes on there.
    """

    def __init__(self, config: Stage0Config, resume: Path | None = None) -> None:
        self.config = config
        self.resume = resume
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
        self.encoder_training: EncoderTraining | None = None
        self.step = 0
        self.sampler = torch.Generator()
        if config.eval_episodes:
            check_fit(spec.info, base_env_spec(spec.info, spec.rewards, config, end_on_success=True))

    def run(self) -> Path:
        """Train and save ``checkpoints/last.pt``. Returns the run folder."""
        config = self.config
        default = f"dsrl_offpolicy_stage0-{config.env_id}-seed{config.seed}"
        folder = self.resume or create_run_folder(config.out, default)
        same = {"device": self.device.type, "demonstrations": demonstrations_digest(config)}
        with offline_run(folder, config, "dsrl pretrain", same, resume=self.resume is not None) as run:
            if self.spec.image_channels and (run.state is None or run.state["encoder_training"] is not None):
                self._train_encoder(run)
            self._train(run)
            content = self._content()
            save_checkpoint(run.tracker.checkpoints / "last.pt", "base_policy", content)
            summary: dict[str, Any] = {
                "demonstrations": len(self.demos.trajectories),
                "demonstration_success": float(np.mean([t.success.any() for t in self.demos.trajectories])),
                "windows": len(self.windows),
                "gradient_steps": config.total_iters,
                "minutes": round(run.tracker.minutes, 3),
            }
            if config.eval_episodes:
                policy = ShortcutFlowPolicy.from_checkpoint(content, "stage0").to(self.device)
                summary["base"] = self._evaluate(policy, run)
            run.tracker.write_summary(summary)
        return folder

    def _train_encoder(self, run: OfflineRun) -> None:
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
        if run.state is not None:
            self._restore(run.state)
        with ProgressReport("encoder", config.encoder_iters, "gradient steps") as progress:
            while True:
                run.between_steps(self.step, config.encoder_iters, self._state)
                if self.step == config.encoder_iters:
                    break
                index = torch.randint(len(rows), (config.encoder_batch_size,), generator=self.sampler)
                batch = rows[index]
                metrics = training.update(
                    states[batch.to(device)],
                    images[batch].to(device),
                    chunks[index].to(device),
                    poses[batch[:, -1].to(device)] if poses is not None else None,
                )
                self.step += 1
                if self.step % config.log_freq == 0 or self.step == config.encoder_iters:
                    row = run.tracker.log(metrics, {"gradient_steps": self.step}, "encoder")
                    progress.report(self.step, {k: row[k] for k in metrics})
        self.encoder_training, self.step = None, 0

    def _train(self, run: OfflineRun) -> None:
        """Train everything else on the table of encoded frames; the encoder is frozen."""
        config, total = self.config, self.config.total_iters
        self.encoder.requires_grad_(False)
        self.sampler = torch_generator(config.seed, "stage0_batches", self.device)
        if run.state is not None and run.state["encoder_training"] is None:
            self._restore(run.state)
        data = to_batch(self.windows, encode_demonstrations(self.demos, self.encoder.encode_frames, self.device))
        with ProgressReport("stage0", total, "gradient steps") as progress:
            while True:
                run.between_steps(self.step, total, self._state)
                if self.step == total:
                    break
                index = torch.randint(len(data), (config.batch_size,), generator=self.sampler, device=self.device)
                metrics = self.agent.update(data.gather(index))
                self.step += 1
                if self.step % config.log_freq == 0 or self.step == total:
                    row = run.tracker.log(metrics, {"gradient_steps": self.step})
                    progress.report(self.step, {k: row[k] for k in ("flow_loss", "critic_loss", "q_mean")})

    def _state(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on; once the encoder is trained nothing of its training."""
        training = self.encoder_training
        return {
            "gradient_steps": self.step,
            "training": self.agent.training_state(),
            "encoder": self.encoder.state_dict(),
            "encoder_training": training.training_state() if training is not None else None,
            "sampler": self.sampler.get_state(),
        }

    def _restore(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`_state`."""
        with reading("resume: state of the run", "that of a run of these settings"):
            self.step = state["gradient_steps"]
            self.agent.load_training_state(state["training"])
            self.encoder.load_state_dict(state["encoder"])
            if self.encoder_training is not None:
                self.encoder_training.load_training_state(state["encoder_training"])
            self.sampler.set_state(state["sampler"])
        restore_random_states(state["random"])

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

    def _evaluate(self, policy: ShortcutFlowPolicy, run: OfflineRun) -> dict[str, Any]:
        """A signal ends it and the run, which is saved at its last gradient step."""
        config = self.config
        env_spec = base_env_spec(
            policy.info, policy.spec.rewards, config, end_on_success=config.eval_end_on_success
        )
        env = make_vector_env(env_spec, config.num_envs)
        seeds = evaluation_seeds(config.eval_episodes)
        try:
            outcomes = run_episodes(env, policy, run.stop.listening(prior_source()), seeds, self.device)
        except EvaluationStopped:
            run.between_steps(self.step, config.total_iters, self._state)  # a signal came: raises Interrupted
            raise
        finally:
            env.close()
        return asdict(summarise(outcomes))


def run(config: Stage0Config) -> Path:
    """Train, or go on with an interrupted run. Returns the run folder."""
    if config.resume is not None:
        settings = config_of_run(config, "stage0_pretrain.yaml")
        return Stage0(settings, resume=config.resume.expanduser()).run()
    return Stage0(config).run()


main = command(Stage0Config, "stage0_pretrain.yaml", "dsrl pretrain")(run)

if __name__ == "__main__":
    sys.exit(main())
