"""What an environment is asked to be. Free of torch: worker processes import this room."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

RewardMode = Literal["sparse", "dense"]


@dataclass(frozen=True)
class EnvSpec:
    """Everything a worker needs to build one environment.

    Attributes:
        env_id: a MetaWorld task (``lever-pull-v3``) or any ``gym.make`` id with a Box action space.
        reward_mode: ``sparse`` is -1 per env step until success and 0 on the step that succeeds; ``dense`` is
            the simulator's own reward.
        reward_scale: factor on either.
        end_on_success: success terminates the episode.
        max_episode_steps: env steps until truncation; None keeps the simulator's own limit.
        obs_horizon: o, stacked frames.
        act_horizon: H, env steps per macro-step.
        gamma: discount per env step, inside a macro-step.
    """

    env_id: str
    reward_mode: RewardMode = "sparse"
    reward_scale: float = 1.0
    end_on_success: bool = True
    max_episode_steps: int | None = None
    obs_horizon: int = 1
    act_horizon: int = 8
    gamma: float = 0.99
