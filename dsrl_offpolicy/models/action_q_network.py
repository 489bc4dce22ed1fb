"""Q^A(s, a_{0:H}): the critic of executed action chunks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dsrl_offpolicy.models.layers import mlp


class ActionQNetwork(nn.Module):
    """K critics ``Linear, LayerNorm, Mish`` x n then Linear; the input is [flattened actions, features].

    Two heads are the published twin critic, more are its ensemble (AWSC); the layers are the same.
    """

    def __init__(
        self, feature_dim: int, act_horizon: int, action_dim: int, hidden_dims: Sequence[int], heads: int
    ) -> None:
        super().__init__()
        in_dim = act_horizon * action_dim + feature_dim
        self.q_nets = nn.ModuleList(mlp(in_dim, hidden_dims, 1, nn.Mish, layer_norm=True) for _ in range(heads))

    def forward(self, features: Float[Tensor, "B D"], actions: Float[Tensor, "B H A"]) -> Float[Tensor, "K B"]:
        x = torch.cat((actions.flatten(1), features), dim=-1)
        return torch.stack([net(x).squeeze(-1) for net in self.q_nets])
