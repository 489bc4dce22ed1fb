"""Latent-noise reinforcement learning for frozen diffusion and flow policies."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dsrl_offpolicy.base_policies.loading import load_base_policy
    from dsrl_offpolicy.commands.api import evaluate, pretrain, stage1, stage2
    from dsrl_offpolicy.contracts import BasePolicy, Encoding
    from dsrl_offpolicy.rollouts.latent_env import make_latent_env
    from dsrl_offpolicy.train.steered_policy import load_steered_policy

__version__ = "0.1.0"
__all__ = [
    "__version__", "BasePolicy", "Encoding", "evaluate", "load_base_policy", "load_steered_policy",
    "make_latent_env", "pretrain", "stage1", "stage2",
]  # fmt: skip

_HOMES = {
    "load_base_policy": "base_policies.loading",
    "load_steered_policy": "train.steered_policy",
    "make_latent_env": "rollouts.latent_env",
    **dict.fromkeys(("evaluate", "pretrain", "stage1", "stage2"), "commands.api"),
    "BasePolicy": "contracts",
    "Encoding": "contracts",
}


def __getattr__(name: str) -> Any:
    # Imported on first use: environment worker processes import this package and must not pay for torch.
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
