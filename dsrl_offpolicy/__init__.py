"""Latent-noise reinforcement learning for frozen diffusion and flow policies."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dsrl_offpolicy.base_policies.loading import load_base_policy

__version__ = "0.1.0"
__all__ = ["__version__", "load_base_policy"]


def __getattr__(name: str) -> Any:
    # Imported on first use: environment worker processes import this package and must not pay for torch.
    if name == "load_base_policy":
        from dsrl_offpolicy.base_policies.loading import load_base_policy

        return load_base_policy
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
