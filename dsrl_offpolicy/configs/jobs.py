"""One frozen dataclass per job. Defaults here and in the YAML files beside this module are the same (a test
holds them together); YAML < flags.

Every field is a flag of the same name. Units stand in each field's comment.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from dsrl_offpolicy.configs.ranges import (
    Capacity,
    Count,
    CountOrNone,
    Decay,
    EmbedWidth,
    Finite,
    Index,
    InnerShare,
    NotNegative,
    Positive,
    PowerOfTwo,
    Rate,
    Several,
    Share,
    Steps,
    StepsOrNone,
    Threads,
    Widths,
)  # fmt: skip
from dsrl_offpolicy.configs.shared import (
    BackendConfig,
    BasePolicyConfig,
    ComputeConfig,
    DemonstrationsConfig,
    EvaluationConfig,
    InvertedDemonstrationsConfig,
    JobConfig,
    LatentCriticConfig,
    OfflineConfig,
    PrecisionConfig,
    ResumableConfig,
    SimulatorConfig,
    SteeringConfig,
    TrackedConfig,
)
from dsrl_offpolicy.files.run_kind import RunKind
from dsrl_offpolicy.rewards import RewardMode


@dataclass(frozen=True, kw_only=True)
class DemosConfig:
    """dsrl demos: record imperfect scripted experts (MetaWorld, robosuite) or ManiSkill's motion planner."""

    usual: ClassVar[tuple[str, ...]] = (
        "env_id",
        "out",
        "seed",
        "episodes",
        "demonstrator",
        "action_noise",
        "wrong_goal_prob",
        "obs_mode",
    )
    env_id: str = "pick-place-v3"
    """A MetaWorld task, robosuite:Lift or robosuite:Can, or a ManiSkill task with a motion planner."""
    out: Path | None = None
    """HDF5 file, which must not exist yet. Default: demos/<env_id>-seed<seed>.h5."""
    seed: Index = 1
    """Seed of starts and errors."""
    episodes: Count = 60
    """Demonstrations to record; a scripted expert's failures are kept, a planner's are not."""
    control_mode: str | None = None
    """ManiSkill's controller. Default: pd_ee_delta_pose; the others have none to choose."""
    demonstrator: Literal["auto", "scripted", "planner"] = "auto"
    """Who demonstrates: ManiSkill's tasks have a motion planner, MetaWorld's, robosuite's and LiftPegUpright-v1
    scripted experts."""
    obs_mode: Literal["state", "rgb"] = "state"
    """ManiSkill: record flat states, or images beside them."""
    reward_mode: Literal["normalized_dense", "dense", "sparse"] = "normalized_dense"
    """ManiSkill: which reward to record."""
    max_episode_steps: Steps = 1000
    """ManiSkill: env steps until the recording's time limit; longer plans are dropped."""
    robot_uids: str | None = None
    """LiftPegUpright-v1's scripted expert: ManiSkill's robot (panda_wristcam has a camera at its wrist);
    default: the task's own."""
    demo_steps: Steps = 150
    """Scripted expert: env steps after which it gives up."""
    action_noise: NotNegative = 0.1
    """Scripted expert: standard deviation of the noise on its actions, in units of actions."""
    noise_correlation: Decay = 0.5
    """Correlation of that noise from one env step to the next, in [0, 1)."""
    wrong_goal_prob: Share = 0.4
    """Probability that an episode chases a wrong sub-goal."""
    wrong_goal_offset: tuple[Finite, Finite, Finite] = (0.06, 0.0, 0.0)
    """Metres by which the expert misplaces the object in such an episode."""
    wrong_goal_mirror: bool = False
    """Draw the sign of that offset at random in each such episode."""


@dataclass(frozen=True, kw_only=True)
class Stage0Config(DemonstrationsConfig, OfflineConfig, SimulatorConfig):
    """dsrl pretrain: train the AWSC base policy and its action critic from demonstrations."""

    usual: ClassVar[tuple[str, ...]] = (
        "env_id",
        "demo_path",
        "out",
        "seed",
        "total_iters",
        "batch_size",
        "device",
        "resume",
    )
    kind: ClassVar[RunKind] = "stage0"
    obs_horizon: Count = 1
    """Stacked frames."""
    pred_horizon: Count = 8
    """Rows of an action chunk."""
    act_horizon: Count = 8
    """Rows of a chunk that are executed."""
    velocity_net: Literal["mlp", "unet"] = "mlp"
    """MLP for small state tasks, or the published 1-D U-Net."""
    velocity_widths: Widths = (256, 256, 256)
    """Widths of the MLP, or channels of the U-Net's levels (multiples of 8)."""
    embed_dim: EmbedWidth = 32
    """Width of the embeddings of flow time and step size."""
    denoising_steps: PowerOfTwo = 8
    """Euler steps from noise to chunk; a power of two."""
    critic_hidden_dims: Widths = (256, 256, 256)
    """Widths of the layers of Q^A and V."""
    num_critics: Count = 2
    """Heads of Q^A: 2 is the twin, more an ensemble."""
    gamma: Rate = 0.99
    """Discount per env step."""
    reward_mode: RewardMode = "sparse"
    """-1 per env step until success, or the rewards of the file."""
    reward_scale: Positive = 1.0
    """Factor on rewards, stored with Q^A."""
    end_on_success: bool = True
    """Cut demonstrations at their first success, which counts as a termination."""
    successes_only: bool = False
    """Learn from the demonstrations that succeed alone: behaviour cloning of successes, a baseline."""
    total_iters: Steps = 5000
    """Gradient steps."""
    batch_size: Several = 256
    """Windows per gradient step."""
    lr: Positive = 1e-3
    """AdamW's learning rate, decayed to 0 by a cosine."""
    ema_decay: Decay = 0.999
    """Decay of the velocity network's moving average."""
    consistency_fraction: Decay = 0.25
    """Share of a batch that trains self-consistency."""
    visual_dim: Count = 64
    """Features per frame of images, where demonstrations have them."""
    visual_pool: Literal["flatten", "max"] = "flatten"
    """Last layer of the image encoder: all of its last feature map, or (as published) each channel's maximum."""
    encoder_iters: Steps = 3000
    """Gradient steps that train the image encoder with the flow, before it is frozen and total_iters begin."""
    encoder_batch_size: Count = 32
    """Windows per gradient step of the encoder."""
    encoder_lr: Positive = 5e-4
    """AdamW's learning rate of the encoder, decayed to 0 by a cosine."""
    image_shift: CountOrNone = 0
    """Random shift of images while the encoder trains, in pixels; one can be a centimetre."""
    advantage_temperature: Positive = 10.0
    """beta of the weights exp(A / beta), in units of return; inf weighs all demonstrations equally."""
    max_weight: Positive = 20.0
    """Upper bound of those weights before normalisation."""
    expectile: InnerShare = 0.7
    """Expectile of the value function (IQL), a share."""
    critic_tau: Rate = 0.005
    """Polyak rate of Q^A's target networks."""
    eval_episodes: CountOrNone = 0
    """Episodes in which the finished base policy is evaluated with prior noise; 0 for none."""
    eval_end_on_success: bool = False
    """End those episodes at the first success."""


@dataclass(frozen=True, kw_only=True)
class Stage1Config(
    InvertedDemonstrationsConfig, OfflineConfig, EvaluationConfig, SteeringConfig, LatentCriticConfig,
    BasePolicyConfig,
):  # fmt: skip
    """dsrl stage1: make the latent policy that Stage 2 starts from, out of demonstrations or few episodes."""

    usual: ClassVar[tuple[str, ...]] = (
        "env_id",
        "base",
        "demo_path",
        "method",
        "out",
        "seed",
        "total_iters",
        "batch_size",
        "device",
        "resume",
    )
    kind: ClassVar[RunKind] = "stage1"
    method: Literal["aw_mle", "noise_cloning", "golden_ticket", "auto"] = "aw_mle"
    """aw_mle: advantage-weighted likelihood under Q^A. noise_cloning: likelihood of the demonstrations' noise.
    golden_ticket: constant latents. auto: all of them. All but aw_mle evaluate candidates and keep the best,
    or the prior where none is better."""
    cloning_iters: Steps = 800
    """Most gradient steps of noise cloning; policies after 1/8, 1/4, 1/2 and all of them are candidates."""
    cloning_lr: Positive = 1e-3
    """Adam's learning rate of noise cloning."""
    constants: Count = 8
    """Constant latents among the candidates."""
    screening_episodes: Count = 5
    """Episodes per candidate before the worse half is dropped; the rest goes on to twice as many, and so on."""
    choosing_episodes: Count = 40
    """Most episodes per candidate."""
    keep_aw_mle: bool = False
    """auto leaves noise cloning out, and hands over another start than AW-MLE's only where that is clearly better
    (exact sign test at 1 %)."""
    total_iters: Steps = 100000
    """Gradient steps."""
    batch_size: Count = 256
    """States per gradient step."""
    lr: Positive = 3e-4
    """Learning rate of the latent policy."""
    num_candidates: Several = 32
    """M, latents per state."""
    candidate_pool: CountOrNone | Literal["auto"] = "auto"
    """Candidates per state to decode once and draw from; 0 decodes fresh ones at every gradient step.
    auto takes up to 4 M where that saves at least half of the decoding and fits into 1 GiB, else 0."""
    kappa: NotNegative = 1.0
    """Pessimism: mean - kappa * std over Q^A's heads."""
    tau: Positive = 5.0
    """Temperature of the soft baseline, in units of return."""
    beta_latent: Positive = 1.0
    """Temperature of the advantage weights, in units of return."""
    advantage_clip: Positive = 20.0
    """Advantages are clipped to +- this, in units of return."""
    kl_coef: NotNegative = 1e-3
    """Coefficient of KL(pi || prior), per nat."""
    max_decode: Count = 16384
    """Most latents decoded in one call (bounds memory)."""
    distill_q: bool = False
    """Also distil Q^W from Q^A, head by head."""
    critic_lr: Positive = 3e-4
    """Learning rate of the distilled Q^W."""
    distill_chunks: Count = 4
    """Critic steps per policy step, on disjoint parts of its candidates."""
    held_out_fraction: InnerShare = 0.1
    """Share of the episodes held out for verification."""
    verify_states: Count = 256
    """Held-out states on which E[Q] of policy and prior is compared."""
    verify_samples: Count = 32
    """Latents per such state."""
    eval_freq: StepsOrNone = 20000
    """Gradient steps between evaluations in the environment; 0 for none."""
    eval_episodes: Count = 20
    """Episodes per evaluation."""
    eval_deterministic: bool = True
    """Evaluate the latent policy's mean rather than samples."""


@dataclass(frozen=True, kw_only=True)
class Stage2LoopConfig(
    InvertedDemonstrationsConfig, TrackedConfig, ResumableConfig, PrecisionConfig, EvaluationConfig,
    SteeringConfig, BackendConfig, BasePolicyConfig,
):  # fmt: skip
    """What Stage 2 has whichever algorithm learns; the algorithm's own ``Config`` comes beside it."""

    has_presets: ClassVar[bool] = True
    usual: ClassVar[tuple[str, ...]] = (
        "env_id",
        "base",
        "stage1_checkpoint",
        "demo_path",
        "total_timesteps",
        "utd_ratio",
        "num_envs",
        "seed",
        "out",
        "resume",
    )
    kind: ClassVar[RunKind] = "stage2"
    algo: str = "sac"
    """Algorithm: sac, na, lps, or module:Class of your own."""
    save_freq: StepsOrNone = 10000
    """Env steps between saves of the whole run; 0 saves only when it ends or is stopped."""
    stage1_checkpoint: Path | None = None
    """Latent policy of Stage 1 to start from; default: the prior."""
    init_critic: bool = False
    """Start Q^W from the one that Stage 1 distilled (--distill_q)."""
    total_timesteps: Steps = 500000
    """Env steps."""
    warmup_steps: StepsOrNone = 5000
    """Env steps before updates start."""
    warmup_policy: Literal["auto", "prior", "stage1"] = "auto"
    """Who acts during the warm-up: the prior, or the policy of Stage 1; auto: Stage 1's where there is one."""
    offline_fraction: Share = 0.5
    """Share of every batch from demonstrations, inverted to noise by the base policy: those of --demo_path, or
    else those of Stage 1 if they are still where it found them. 0 for none."""
    offline_anneal_steps: Steps | None = None
    """Env steps over which that share falls linearly to 0; default: it stays."""
    utd_ratio: Positive = 20.0
    """Gradient steps per macro-transition stored."""
    critic_burnin_steps: StepsOrNone = 0
    """Critic-only gradient steps on the warm-up's transitions (and demonstrations), before utd_ratio counts."""
    actor_update_every: Steps = 1
    """Gradient steps per actor and temperature step."""
    batch_size: Count = 256
    """Macro-transitions per gradient step."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the learner (torch.compile); auto does so in runs long enough to recover the compile time."""
    replay_buffer_size: Capacity = 100000
    """Capacity in macro-transitions."""
    anneal_from: Share = 1.0
    """Fraction of total_timesteps from which actor_lr and critic_lr fall linearly to 0; 1 keeps them constant."""
    gamma: Rate = 0.99
    """Discount per env step."""
    reward_mode: RewardMode = "sparse"
    """-1 per env step until success, or the simulator's dense reward."""
    reward_scale: Positive = 0.1
    """Factor on rewards."""
    end_on_success: bool = True
    """Success terminates training episodes."""
    train_episode_steps: Steps | None = None
    """Env steps after which a training episode is truncated (and bootstraps); evaluations keep their own limit.
    Default: max_episode_steps."""
    eval_freq: StepsOrNone = 10000
    """Env steps between evaluations."""
    eval_episodes: Count = 20
    """Episodes per evaluation."""
    eval_deterministic: bool = True
    """Evaluate the latent policy's mean rather than samples."""
    video_every: CountOrNone = 0
    """Write a video at every k-th evaluation into videos/ of the run folder: base policy and latent policy side by
    side, always from the same start. 0 for none; needs the extra `video`."""


@dataclass(frozen=True, kw_only=True)
class PPOConfig(TrackedConfig, ResumableConfig, EvaluationConfig, SteeringConfig, BasePolicyConfig):
    """dsrl ppo: on-policy PPO of Stable-Baselines3 in the latent space of the frozen base policy (extra sb3).
    A resumed run begins new episodes and a new rollout, so it does not repeat the numbers of a run in one go."""

    usual: ClassVar[tuple[str, ...]] = (
        "env_id",
        "base",
        "stage1_checkpoint",
        "total_timesteps",
        "rollout_steps",
        "lr",
        "num_envs",
        "seed",
        "out",
        "resume",
    )
    kind: ClassVar[RunKind] = "ppo"
    log_freq: Steps = 1
    """Gradient steps between rows of metrics, which are written after whole iterations."""
    save_freq: StepsOrNone = 50000
    """Env steps between saves of the whole run; 0 saves only when it ends or is stopped."""
    stage1_checkpoint: Path | None = None
    """Latent policy of Stage 1 to start from; default: the prior."""
    total_timesteps: Steps = 500000
    """Env steps."""
    rollout_steps: Steps = 128
    """Macro-steps per environment and iteration."""
    batch_size: Several = 128
    """Macro-steps per gradient step; must divide rollout_steps x num_envs."""
    epochs: Count = 10
    """Passes over a rollout."""
    lr: Positive = 3e-4
    """Learning rate of the latent policy and of V."""
    anneal_from: Share = 1.0
    """Fraction of total_timesteps from which lr falls linearly to 0; 1 keeps it constant."""
    clip_range: Positive = 0.2
    """PPO's clip of the ratio, 1 +- this."""
    target_kl: Positive | None = None
    """Nats per update at which an iteration's passes end early; default: never."""
    gae_lambda: Share = 0.95
    """Lambda of GAE, per macro-step."""
    regularizer: Literal["entropy", "kl"] = "entropy"
    """What ent_coef multiplies: the entropy of the latent before the squash, or minus the KL to the prior."""
    ent_coef: NotNegative = 0.0
    """Coefficient of the regulariser, per nat."""
    vf_coef: Positive = 0.5
    """Coefficient of V's loss."""
    max_grad_norm: Positive = 0.5
    """Bound on the gradient's norm, of policy and V together."""
    critic_hidden_dims: Widths = (256, 256, 256)
    """Widths of V's layers."""
    critic_layer_norm: bool = True
    """LayerNorm in V."""
    gamma: Rate = 0.99
    """Discount per env step."""
    reward_mode: RewardMode = "sparse"
    """-1 per env step until success, or the simulator's dense reward."""
    reward_scale: Positive = 0.1
    """Factor on rewards. V starts at 0 and learns returns of up to -1 / (1 - gamma) times this."""
    end_on_success: bool = True
    """Success terminates training episodes."""
    train_episode_steps: Steps | None = None
    """Env steps after which a training episode is truncated (and bootstraps); evaluations keep their own limit.
    Default: max_episode_steps."""
    eval_freq: StepsOrNone = 10000
    """Env steps between evaluations, which are made between iterations."""
    eval_episodes: Count = 20
    """Episodes per evaluation."""
    eval_deterministic: bool = True
    """Evaluate the latent policy's mean rather than samples."""


@dataclass(frozen=True, kw_only=True)
class EvalConfig(JobConfig, EvaluationConfig, BasePolicyConfig):
    """dsrl eval: evaluate base policy, controls and latent policies on the same starts, in one table."""

    usual: ClassVar[tuple[str, ...]] = (
        "env_id",
        "base",
        "stage1_checkpoint",
        "stage2_checkpoint",
        "episodes",
        "constants",
        "video",
        "num_envs",
        "seed",
        "out",
    )
    kind: ClassVar[RunKind] = "eval"
    stage1_checkpoint: Path | None = None
    """Latent policy of Stage 1 to evaluate; default: none."""
    stage2_checkpoint: Path | None = None
    """Latent policy of Stage 2 to evaluate; default: none."""
    reward_mode: RewardMode | None = None
    """Rewards that returns add up; default: those of Q^A, or sparse. Without success in an environment: dense."""
    episodes: Count = 100
    """Episodes per row."""
    constants: CountOrNone = 16
    """Constant noise vectors to screen for the control "best constant"; 0 omits it."""
    screening_episodes: Count = 10
    """Most episodes per screened vector, on starts that no row reports; one that cannot be the best any more
    ends."""
    end_decided_rows: bool = False
    """End a row once it is shown to be below the last latent policy given (Stage 2's, else Stage 1's); the base,
    w = 0 and that policy itself run all episodes."""
    best_of: CountOrNone = 32
    """Draws of the prior of which Q^A takes the best in each state: the control "best of N by Q^A". 0 omits it;
    a base policy without Q^A has no such row."""
    video: CountOrNone = 0
    """Videos to write into videos/ of the run folder, a start each: the base policy and the last latent policy
    given (Stage 2's, else Stage 1's) side by side. 0 for none; needs the extra `video`."""


@dataclass(frozen=True, kw_only=True)
class QuickstartConfig(ResumableConfig, PrecisionConfig):
    """dsrl quickstart: run demonstrations, Stages 0, 1 and 2 and the final table on one task."""

    usual: ClassVar[tuple[str, ...]] = (
        "task",
        "seed",
        "out",
        "budget",
        "device",
        "num_envs",
        "track",
        "resume",
    )
    kind: ClassVar[RunKind] = "quickstart"
    task: str = "pick-place-v3"
    """MetaWorld task."""
    seed: Index = 1
    """Seed of everything."""
    out: Path | None = None
    """Run folder, which must not exist yet. Default: runs/quickstart-<task>-seed<seed>."""
    budget: Rate = 1.0
    """Fraction of the gradient steps, env steps and episodes to spend, in (0, 1]; 0.02 is a smoke run."""
    device: str = "auto"
    """Torch device; auto takes CUDA where there is one."""
    torch_threads: Threads = 1
    """Threads of the learner; every environment process has its own."""
    num_envs: Count = 4
    """Environments, one process each."""
    track: bool = False
    """Also log to Weights & Biases."""


@dataclass(frozen=True, kw_only=True)
class DoctorEnvConfig:
    """dsrl doctor env: check that an environment works on this machine; show its spaces and its speed."""

    env_id: str = "pick-place-v3"
    """A MetaWorld, ManiSkill or robosuite task, or any Gymnasium id with a Box action space."""
    env_family: str = "auto"
    """Environment family: metaworld, maniskill, robosuite, gymnasium, module:Class of your own, or auto."""
    control_mode: str | None = None
    """ManiSkill's controller; default: pd_ee_delta_pose."""
    sim_backend: Literal["auto", "physx_cpu", "physx_cuda"] = "auto"
    """ManiSkill's physics; auto takes the GPU where there is one."""
    render_backend: Literal["auto", "cpu", "gpu", "none"] = "auto"
    """Renderer of ManiSkill's images; auto follows sim_backend."""
    seconds: Positive = 3.0
    """Seconds to step for each measurement."""
    json: bool = False
    """Print JSON."""


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(ComputeConfig, SimulatorConfig, InvertedDemonstrationsConfig, BasePolicyConfig):
    """dsrl probe: does a base policy depend on its noise, and how much is there to gain from steering it?"""

    usual: ClassVar[tuple[str, ...]] = ("env_id", "base", "demo_path", "episodes", "constants", "num_envs", "seed")
    episodes: Count = 40
    """Most episodes per row. Those of constants end early where the comparison with the prior is decided."""
    constants: CountOrNone = 8
    """Constant noise vectors to compare with the prior, besides w = 0."""
    states: Count = 32
    """Observations of the prior's episodes on which actions are measured."""
    noises: Several = 16
    """Noises per such observation."""
    action_magnitude: Positive = 2.0
    """b of Stage 2, in standard deviations of the prior: how much noise of --demo_path lies beyond it is told."""
    json: bool = False
    """Print JSON."""
