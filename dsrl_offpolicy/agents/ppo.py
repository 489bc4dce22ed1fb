"""What Stable-Baselines3's PPO (Schulman et al., arXiv:1707.06347) needs to learn our latent policy.
Imports it: the extra ``sb3``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy as SB3Policy
from torch import Tensor, nn

from dsrl_offpolicy.models.latent_policy import Gaussian, LatentPolicy

Heard = Callable[[Sequence[Mapping[str, Any]], np.ndarray], None]


class LatentActorCritic(SB3Policy):
    """Our latent policy as the actor of Stable-Baselines3, beside V(s).

    Its action is the pre-squash latent u ~ N(mu(s), sigma(s)^2), which PPO stores, and the environment applies
    ``w = b tanh(u / b)`` (``SB3VecEnv(..., before_squash=True)``). So the policy starts as the prior or as Stage 1
    left it, sigma depends on the state as in SAC, and a saved actor is an ordinary latent policy. The squash is a
    bijection: its Jacobian cancels in PPO's ratio, so PPO on u is PPO on w, without the infinities of inverting
    tanh. What the library calls entropy, and multiplies by ``ent_coef``, is the entropy of u, or with ``kl`` minus
    the KL to the prior, both in nats and in closed form.

    Args:
        observation_space, action_space, lr_schedule, use_sde: as the library gives them; the last is not used.
        actor: the latent policy.
        value: ``[B, D] -> [B, 1]``.
        regularizer: what ``ent_coef`` multiplies.
    """

    def __init__(
        self,
        observation_space: Any,
        action_space: Any,
        lr_schedule: Callable[[float], float],
        use_sde: bool = False,
        *,
        actor: LatentPolicy,
        value: nn.Module,
        regularizer: Literal["entropy", "kl"],
    ) -> None:
        super().__init__(observation_space, action_space)
        self.actor, self.value, self.regularizer = actor, value, regularizer
        self.optimizer = torch.optim.Adam(self.parameters(), lr=lr_schedule(1), eps=1e-5)

    def forward(self, obs: Tensor, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Return u, V and log pi of states."""
        dist = self.actor(obs)
        u = _choose(dist, deterministic)
        return u, self.value(obs), self.actor.log_prob(dist, u)

    def evaluate_actions(self, obs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return V, log pi of stored u, and what ``ent_coef`` multiplies."""
        dist = self.actor(obs)
        bonus = -self.actor.kl_to_prior(dist) if self.regularizer == "kl" else entropy_of_u(dist)
        return self.value(obs), self.actor.log_prob(dist, actions), bonus

    def predict_values(self, obs: Tensor) -> Tensor:
        """Return V."""
        values: Tensor = self.value(obs)
        return values

    def _predict(self, observation: Tensor, deterministic: bool = False) -> Tensor:
        return _choose(self.actor(observation), deterministic)


def entropy_of_u(dist: Gaussian) -> Tensor:
    """Return the entropy of the pre-squash latent, ``[B]``, in nats over all L dimensions."""
    return (dist.log_sigma + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)


def _choose(dist: Gaussian, deterministic: bool) -> Tensor:
    return dist.mean if deterministic else dist.mean + torch.exp(dist.log_sigma) * torch.randn_like(dist.mean)


class MacroSteps(BaseCallback):
    """Makes GAE exact on macro-steps, and hears of every one.

    PPO is given ``gamma^H``, which is right for whole chunks, and at a termination, which has no next value. A
    time limit may cut a chunk to n < H env steps: here its reward gets ``gamma^n V(last observation)``, and the
    library is told that the episode ended, so that it does not add ``gamma^H V``. A lost macro-step has n = 0 and
    its own first state as the last: its advantage is 0.

    Args:
        heard: called with the infos and ends of every vector step. What it raises ends the rollout.
    """

    def __init__(self, heard: Heard) -> None:
        super().__init__()
        self.heard = heard

    def _on_step(self) -> bool:
        rewards, infos = self.locals["rewards"], self.locals["infos"]
        for i, info in enumerate(infos):
            if info.pop("TimeLimit.truncated", False):
                last = torch.as_tensor(info["terminal_observation"], device=self.model.device)[None]
                with torch.no_grad():
                    rewards[i] += info["discount"] * float(self.model.policy.predict_values(last))
        self.heard(infos, self.locals["dones"])
        return True
