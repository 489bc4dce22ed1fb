"""What an environment is asked to be. Free of torch: worker processes import this room."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dsrl_offpolicy.configs.shared import ObsMode
from dsrl_offpolicy.rewards import RewardMode

SimBackend = Literal["auto", "physx_cpu", "physx_cuda"]
RenderBackend = Literal["auto", "cpu", "gpu", "none"]


@dataclass(frozen=True)
class EnvSpec:
    """Everything a worker needs to build one environment.

    Attributes:
        env_id: a MetaWorld task (``lever-pull-v3``), a ManiSkill task (``LiftPegUpright-v1``), a robosuite task
            (``robosuite:Can``), or any ``gym.make`` id with a Box action space.
        reward_mode: ``sparse`` is -1 per env step until success, 0 on the step that succeeds, and on a failure
            that ends the episode what never succeeding costs (``rewards.sparse_reward``); ``dense`` is the
            simulator's own reward, ``normalized_dense`` ManiSkill's of at most 1 per env step.
        reward_scale: factor on either.
        end_on_success: success terminates the episode.
        max_episode_steps: env steps until truncation; None keeps the simulator's own limit.
        obs_horizon: o, stacked frames.
        act_horizon: H, env steps per macro-step.
        gamma: discount per env step, inside a macro-step.
        control_mode: ManiSkill's controller; None is ``pd_ee_delta_pose``.
        obs_mode: ``state`` vectors, or ``rgb``: ``{"state", "rgb"}`` with the images of all cameras.
        sim_backend: ManiSkill's physics: ``physx_cpu`` is a process per environment, ``physx_cuda`` one batch
            on the GPU; ``auto`` takes the GPU where there is one.
        render_backend: what draws ManiSkill's images; ``auto`` is the device of the physics for ``rgb`` and
            ``none`` for ``state``.
        image_size: (height, width) of the cameras of ManiSkill and robosuite, in pixels; None is the task's own.
        robot_uids: ManiSkill's robot (``panda_wristcam`` adds a camera); None is the task's own.
        timeout: seconds that a process may take for one macro-step or reset before it counts as hung.
        frames_every: env steps between the frames of a video; 0 draws none, and needs nothing that can draw.
        env_family: who makes it: a name of ``registry.ENV_FAMILIES``, ``module:Class``, or ``auto``, which asks
            the registered ones whose the id is.
    """

    env_id: str
    reward_mode: RewardMode = "sparse"
    reward_scale: float = 1.0
    end_on_success: bool = True
    max_episode_steps: int | None = None
    obs_horizon: int = 1
    act_horizon: int = 8
    gamma: float = 0.99
    control_mode: str | None = None
    obs_mode: ObsMode = "state"
    sim_backend: SimBackend = "auto"
    render_backend: RenderBackend = "auto"
    image_size: tuple[int, int] | None = None
    robot_uids: str | None = None
    timeout: float = 300.0
    frames_every: int = 0
    env_family: str = "auto"
