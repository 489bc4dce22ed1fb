"""Settings that several jobs have: each job's dataclass inherits the groups that it needs.

Units stand in each field's comment.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from dsrl_offpolicy.configs.ranges import Count, CountOrNone, Index, Positive, Steps, StepsOrNone, Threads, Widths

SteerMode = Literal["full", "act_horizon", "repeat"]
ObsMode = Literal["state", "rgb"]
Precision = Literal["auto", "fp32", "bf16", "tf32"]


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """What everything has that computes with torch."""

    title: ClassVar[str] = "Where it computes"
    seed: Index = 1
    """Seed of networks, sampling and environments."""
    device: str = "auto"
    """Torch device; auto takes CUDA where there is one."""
    torch_threads: Threads = 1
    """Threads of the learner; every environment process has its own."""


@dataclass(frozen=True, kw_only=True)
class JobConfig(ComputeConfig):
    """What every job has."""

    title: ClassVar[str] = "Run folder"
    out: Path | None = None
    """Run folder, which must not exist yet. Default: runs/<job>-<env_id>-seed<seed>."""


@dataclass(frozen=True, kw_only=True)
class TrackedConfig(JobConfig):
    """What training jobs have besides."""

    title: ClassVar[str] = "Logs"
    loggers: tuple[str, ...] = ("tensorboard",)
    """Loggers beside metrics.jsonl: tensorboard, wandb, trackio, or module:Class of your own."""
    track: bool = False
    """Also log to Weights & Biases (needs the extra `track`; offline without a login)."""
    wandb_project: str = "dsrl_offpolicy"
    """Project of Weights & Biases and of Trackio."""
    log_freq: Steps = 500
    """Gradient steps between rows of metrics."""


@dataclass(frozen=True, kw_only=True)
class ResumableConfig:
    """What jobs have that go on after an interruption."""

    title: ClassVar[str] = "Resume"
    resume: Path | None = None
    """Run folder of an interrupted run to resume, with its own settings; allows no other flag.
    Default: a new run."""


@dataclass(frozen=True, kw_only=True)
class PrecisionConfig:
    """What the learner of Stage 0, 1 or 2 computes in."""

    title: ClassVar[str] = "Precision"
    precision: Precision = "fp32"
    """Matrix products of the learner: fp32, bf16 (weights, optimisers and losses stay fp32), tf32 (only on CUDA),
    or auto, the fastest of them here by a short timing, which two runs of one seed need not take alike."""


@dataclass(frozen=True, kw_only=True)
class OfflineConfig(TrackedConfig, ResumableConfig, PrecisionConfig):
    """What training jobs on demonstrations have besides."""

    title: ClassVar[str] = "Saves"
    save_freq: StepsOrNone = 1000
    """Gradient steps between saves of the whole run; 0 saves only when it is stopped."""


@dataclass(frozen=True, kw_only=True)
class SimulatorConfig:
    """Which environment, and how it is simulated."""

    title: ClassVar[str] = "Environment"
    env_id: str = "pick-place-v3"
    """A MetaWorld, ManiSkill or robosuite task, or any Gymnasium id with a Box action space."""
    env_family: str = "auto"
    """Environment family: metaworld, maniskill, robosuite, gymnasium, module:Class of your own, or auto."""
    max_episode_steps: Steps | None = None
    """Env steps until truncation; default: the simulator's own limit."""
    num_envs: Count = 4
    """Environments: one process each, or one batch on the GPU."""
    control_mode: str | None = None
    """ManiSkill's controller; default: that of the demonstrations or the base policy, else pd_ee_delta_pose."""
    obs_mode: ObsMode | None = None
    """State vectors, or rgb with the cameras' images; default: that of the demonstrations or the base policy."""
    sim_backend: Literal["auto", "physx_cpu", "physx_cuda"] = "auto"
    """ManiSkill's physics; auto takes the GPU where there is one."""
    render_backend: Literal["auto", "cpu", "gpu", "none"] = "auto"
    """Renderer of ManiSkill's images; auto follows sim_backend, and renders nothing for obs_mode state."""
    image_size: tuple[Count, Count] | None = None
    """Pixels of ManiSkill's or robosuite's images, height and width; default: of demonstrations or base policy."""
    robot_uids: str | None = None
    """ManiSkill's robot; default: the task's own."""
    env_timeout: Positive = 300.0
    """Seconds an environment process may take for a macro-step or reset before it is replaced."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig(SimulatorConfig):
    """How a policy is evaluated."""

    title: ClassVar[str] = "Evaluation"
    eval_end_on_success: bool = False
    """End evaluation episodes at the first success (faster; success_at_end then equals success_once)."""


@dataclass(frozen=True, kw_only=True)
class DemonstrationsConfig:
    """Where demonstrations are."""

    title: ClassVar[str] = "Demonstrations"
    demo_path: Path | None = None
    """Demonstrations: HDF5 of ManiSkill (its JSON beside it) or robomimic, or the folder of a LeRobotDataset.
    Required to train offline; else the default is none, in Stage 2 those of Stage 1."""
    demo_format: str = "auto"
    """maniskill_hdf5, robomimic_hdf5, lerobot_v3, module:Class of your own, or auto to try the known ones."""
    num_demos: Count | None = None
    """Use only the first N trajectories; default: all."""


@dataclass(frozen=True, kw_only=True)
class InvertedDemonstrationsConfig(DemonstrationsConfig):
    """How demonstrations are turned into noise."""

    title: ClassVar[str] = "Demonstrations as noise"
    inversion_tolerance: Positive = 1e-3
    """Largest error of a demonstration's window that is used as noise: root mean square over a chunk, in units of
    actions."""


@dataclass(frozen=True, kw_only=True)
class SteeringConfig:
    """Shape of the latent policy."""

    title: ClassVar[str] = "Latent policy"
    steer_mode: SteerMode = "full"
    """Steer all rows of the noise, only the executed ones, or one row repeated."""
    action_magnitude: Positive = 2.0
    """Bound b of w = b tanh(u / b), in standard deviations of the prior; inf is the plain Gaussian."""
    actor_hidden_dims: Widths = (256, 256, 256)
    """Widths of the latent policy's layers."""


@dataclass(frozen=True, kw_only=True)
class LatentCriticConfig:
    """Shape of Q^W."""

    title: ClassVar[str] = "Critic Q^W"
    critic_hidden_dims: Widths = (256, 256, 256)
    """Widths of Q^W's layers."""
    num_critics: Count = 2
    """Heads of Q^W."""
    critic_layer_norm: bool = True
    """LayerNorm in Q^W."""


@dataclass(frozen=True, kw_only=True)
class BasePolicyConfig:
    """The frozen base policy, and what a published checkpoint does not hold."""

    title: ClassVar[str] = "Base policy"
    base: str | None = None
    """Base policy, required: a file of Stage 0 or a published AWSC checkpoint, kind:path, remote:HOST:PORT,
    or module:Class[:argument] of your own."""
    awsc_checkpoint: Path | None = None
    """Older name of --base, for files; default: --base."""
    weights: str = "ema_agent.velocity_net"
    """Weights of a published checkpoint to use: {agent,ema_agent}.{velocity_net,velocity_net_ema};
    of DPPO's ema, model, actor or actor_ft."""
    obs_horizon: Count | None = None
    """Stacked frames. Only for published checkpoints, which do not store it; default 2."""
    pred_horizon: Count | None = None
    """Rows of a chunk. Only for published checkpoints, which do not store it; default 16."""
    act_horizon: Count | None = None
    """Rows that are executed. Only for published checkpoints (default: what Q^A takes, 8 in most) and DPPO's."""
    instruction: str | None = None
    """The task in words, for a base policy that reads one; default: what the environment observes."""


@dataclass(frozen=True, kw_only=True)
class BackendConfig:
    """Where an online job's environments and acting policy run."""

    title: ClassVar[str] = "Backend"
    backend: Literal["local", "ray"] = "local"
    """local: environments beside the learner, which acts itself; ray: actors on this machine or a cluster, which
    need the extra `ray`."""
    ray_address: str | None = None
    """HOST:PORT of a Ray cluster; default: Ray on this machine, for this run alone."""
    num_runners: Count = 1
    """Ray: runners, among which the environments are divided."""
    max_lag: CountOrNone = 0
    """Ray: macro-steps that a runner may do ahead of the learner, beyond the one on its way; 0: lockstep."""
    runner_timeout: Positive = 900.0
    """Ray: seconds that a runner may take for a macro-step before it counts as hung and is replaced."""
