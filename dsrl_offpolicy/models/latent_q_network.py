"""Q^W(s, w): the critics of the latent MDP and their target networks."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dsrl_offpolicy.models.layers import EnsembleLayerNorm, EnsembleLinear, Layers


class LatentQNetwork(nn.Module):
    """K independent critics evaluated together. ``([B, D], [B, L]) -> [K, B]``."""

    def __init__(
        self, feature_dim: int, latent_dim: int, hidden_dims: Sequence[int], heads: int, *, layer_norm: bool
    ) -> None:
        super().__init__()
        self.heads = heads
        layers: list[nn.Module] = []
        width = feature_dim + latent_dim
        for hidden in hidden_dims:
            layers.append(EnsembleLinear(heads, width, hidden))
            if layer_norm:
                layers.append(EnsembleLayerNorm(heads, hidden))
            layers.append(nn.ReLU())
            width = hidden
        layers.append(EnsembleLinear(heads, width, 1))
        self.net = Layers(*layers)

    def forward(self, features: Float[Tensor, "B D"], latent: Float[Tensor, "B L"]) -> Float[Tensor, "K B"]:
        x = torch.cat((features, latent), dim=-1)
        q: Tensor = self.net(x.expand(self.heads, *x.shape)).squeeze(-1)
        return q


class LatentCritic(nn.Module):
    """Online critics with Polyak-averaged targets.

    ``online`` is trained; ``target`` only follows. The targets enter nothing but the TD target.
    """

    def __init__(
        self,
        feature_dim: int,
        latent_dim: int,
        hidden_dims: Sequence[int],
        heads: int = 2,
        *,
        layer_norm: bool = True,
    ) -> None:
        super().__init__()
        self.online = LatentQNetwork(feature_dim, latent_dim, hidden_dims, heads, layer_norm=layer_norm)
        self.target = copy.deepcopy(self.online).requires_grad_(False)

    @torch.no_grad()
    def polyak_update(self, polyak_tau: float) -> None:
        """Set ``target <- (1 - tau) target + tau online``."""
        torch._foreach_lerp_(list(self.target.parameters()), list(self.online.parameters()), polyak_tau)

    @torch.no_grad()
    def set_output_offset(self, offset: Float[Tensor, " K"]) -> None:
        """Set the last layer's bias of every online head."""
        last = self.online.net[-1]
        assert isinstance(last, EnsembleLinear)
        last.bias.copy_(offset.view(-1, 1, 1))

    @torch.no_grad()
    def scale_output(self, factor: float) -> None:
        """Multiply what every head says by ``factor``, online and target."""
        for network in (self.online, self.target):
            last = network.net[-1]
            assert isinstance(last, EnsembleLinear)
            last.weight.mul_(factor)
            last.bias.mul_(factor)

    def synchronise_target(self) -> None:
        """Copy the online critics into the targets (after the online ones were set from elsewhere)."""
        self.target.load_state_dict(self.online.state_dict())
