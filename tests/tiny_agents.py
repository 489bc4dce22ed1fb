"""Agents, networks and a toy task small enough for numbers worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from dsrl_offpolicy.agents.dsrl_sac_agent import DSRLSACAgent, SACConfig
from dsrl_offpolicy.base_policies.observation_encoder import ObservationEncoder
from dsrl_offpolicy.base_policies.shortcut_flow import ShortcutFlowSpec
from dsrl_offpolicy.contracts import ActionCritic, BasePolicy, Encoding, MacroBatch, PolicyInfo
from dsrl_offpolicy.models.latent_layout import LatentLayout
from dsrl_offpolicy.models.latent_policy import LatentPolicy
from dsrl_offpolicy.models.latent_q_network import LatentQNetwork

REGULARIZERS = ("entropy", "kl")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def layout(t: int = 1, a: int = 1, mode: str = "full", magnitude: float = math.inf, h: int = 1) -> LatentLayout:
    return LatentLayout(mode, t, a, slice(0, h), magnitude)  # type: ignore[arg-type]


def sac(steered: LatentLayout, feature_dim: int = 1, seed: int = 0, **changes: object) -> DSRLSACAgent:
    """An agent of linear networks and a fixed temperature of 0.2, unless told otherwise."""
    torch.manual_seed(seed)
    settings = {
        "actor_hidden_dims": (), "critic_hidden_dims": (), "num_critics": 2, "critic_layer_norm": False,
        "actor_lr": 1e-2, "critic_lr": 1e-2, "temp_lr": 1e-2, "init_temperature": 0.2, "learn_temperature": False,
        "target_kl": 0.5,
    }  # fmt: skip
    config = SACConfig(**(settings | changes))  # type: ignore[arg-type]
    return DSRLSACAgent(config, feature_dim, steered, generator=seeded(seed))


def set_linear_policy(policy: LatentPolicy, mean: list[float], raw_log_sigma: list[float]) -> None:
    """The same Gaussian in every state."""
    with torch.no_grad():
        policy.net[-1].weight.zero_()
        policy.net[-1].bias.copy_(torch.tensor([*mean, *raw_log_sigma]))


def set_linear_critic(critic: LatentQNetwork, weights: list[list[float]], biases: list[float]) -> None:
    """Head j is ``weights[j] . [features, latent] + biases[j]``."""
    with torch.no_grad():
        critic.net[0].weight.copy_(torch.tensor(weights)[..., None])
        critic.net[0].bias.copy_(torch.tensor(biases).view(-1, 1, 1))


def random_batch(size: int = 16, feature_dim: int = 1, latent_dim: int = 1, seed: int = 0) -> MacroBatch:
    generator = seeded(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return MacroBatch(
        normal(size, feature_dim),
        normal(size, latent_dim),
        normal(size),
        torch.rand(size, generator=generator),
        normal(size, feature_dim),
    )


def parameters_of(module: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def steep_sac(regularizer: str, seed: int = 0, **changes: object) -> DSRLSACAgent:
    """Two latent dimensions, bounded by 1.5; every network depends on everything."""
    agent = sac(layout(1, 2, magnitude=1.5), 2, seed, regularizer=regularizer, **changes)
    with torch.no_grad():
        for module in (agent.actor, agent.critic):
            for parameter in module.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=seeded(parameter.numel())) * 0.7)
    return agent


class ToyBase(BasePolicy):
    """Decodes by ``tanh`` and remembers what it was asked to decode; Q^A as given."""

    def __init__(
        self, q: Callable[[Tensor, Tensor], Tensor], latent_shape: tuple[int, int] = (1, 1), horizon: int = 1
    ) -> None:
        self.info = PolicyInfo(1, 1, 1, latent_shape, latent_shape, slice(0, horizon))
        self.critic = _ToyCritic(q, slice(0, horizon))
        self.decoded: list[Tensor] = []

    def encode(self, obs: Tensor) -> Encoding:  # type: ignore[override]
        return Encoding(obs.flatten(1))

    def decode(self, encoding: Encoding, latent: Tensor) -> Tensor:
        self.decoded.append(latent.clone())
        return torch.tanh(latent)


class _ToyCritic(ActionCritic):
    heads = 2

    def __init__(self, q: Callable[[Tensor, Tensor], Tensor], rows: slice) -> None:
        self.q, self.rows = q, rows

    def q_values(self, features: Tensor, actions: Tensor) -> Tensor:
        return self.q(features, actions)


BEST_LATENT = torch.tensor([1.0, -1.0])  # times the state, which is -1 or 1
TOY = layout(2, 2, "act_horizon", 3.0)  # two rows, the first is executed: L = 2


def toy_reward(features: Tensor, actions: Tensor) -> Tensor:
    """Highest, 0, where the executed row is the decoded best latent of the state."""
    return -(actions[:, 0] - torch.tanh(features * BEST_LATENT)).square().sum(-1)


def toy_base() -> ToyBase:
    return ToyBase(lambda features, actions: toy_reward(features, actions).expand(2, -1), (2, 2))


def toy_states(count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(2, (count, 1), generator=generator).float() * 2 - 1


def unit_encoder() -> ObservationEncoder:
    return ObservationEncoder(torch.zeros(1), torch.ones(1))


def flow_spec(**changes: object) -> ShortcutFlowSpec:
    values = {
        "env_id": "toy", "control_mode": "delta", "state_dim": 1, "action_dim": 1, "obs_horizon": 1,
        "pred_horizon": 1, "act_horizon": 1, "velocity_net": "mlp", "velocity_widths": (64, 64), "embed_dim": 16,
        "denoising_steps": 8, "critic_hidden_dims": (32,), "critic_heads": 2, "gamma": 0.9,
        "reward_mode": "sparse", "reward_scale": 1.0, "end_on_success": True,
    }  # fmt: skip
    return ShortcutFlowSpec(**(values | changes))  # type: ignore[arg-type]


class RecordingVelocity(nn.Module):
    """A velocity of a constant, which remembers what it was asked."""

    def __init__(self, velocity: float) -> None:
        super().__init__()
        self.velocity = velocity
        self.calls: list[tuple[Tensor, Tensor, Tensor]] = []

    def forward(self, x: Tensor, t: Tensor, d: Tensor, features: Tensor) -> Tensor:
        self.calls.append((x.clone(), t.clone(), d.clone()))
        return torch.full_like(x, self.velocity)
