"""Steer any function ``sample(observation, noise) -> actions``: copy this file, put your own network in its place.

cd examples
dsrl probe --base steer_your_own_policy:MyPolicy --env_id reach-v3
dsrl stage2 --base steer_your_own_policy:MyPolicy --env_id reach-v3 --total_timesteps 20000 --warmup_steps 1000

Images, instructions, an action critic, and what is refused: docs/extending/base_policy.md.
"""

import torch

from dsrl_offpolicy import BasePolicy, Encoding
from dsrl_offpolicy.contracts import PolicyInfo

FRAMES, STATE, ROWS, ACTIONS = 1, 39, 4, 4  # frames observed, width of one, rows of a chunk, width of an action


def sample(observation: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Your policy: observations [B, o, S] and the noise it starts from [B, T, A] to actions [B, T, A] in [-1, 1],
    the same for the same noise. This one sends the hand to the goal, and astray by half of the noise."""
    hand, goal = observation[:, -1, :3], observation[:, -1, 36:39]
    way = torch.nn.functional.pad(goal - hand, (0, 1))[:, None]
    return (5 * way + 0.5 * noise).clamp(-1, 1)


class MyPolicy(BasePolicy):
    """The function as a base policy: its features are the observation, and its noise is what is steered."""

    info = PolicyInfo(
        obs_horizon=FRAMES,
        state_dim=STATE,
        feature_dim=FRAMES * STATE,
        latent_shape=(ROWS, ACTIONS),
        action_shape=(ROWS, ACTIONS),
        executed_rows=slice(0, ROWS),  # from the row of the newest frame on
    )

    def encode(self, obs):
        return Encoding(obs.flatten(1))

    def decode(self, encoding, latent):
        return sample(encoding.features.unflatten(1, (FRAMES, STATE)), latent)
