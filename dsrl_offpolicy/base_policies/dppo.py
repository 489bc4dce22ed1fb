"""Base policies of DPPO (Ren et al., 2024), which the official DSRL steers: noise is denoised by DDIM to a chunk.

A folder holds ``checkpoint.pt``, the YAML in which DPPO or DSRL describes the model, and ``normalization.npz``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dsrl_offpolicy.base_policies.dppo_folder import (
    DPPOSpec,
    Normalization,
    read_normalization,
    read_spec,
    weights_of,
)
from dsrl_offpolicy.base_policies.dppo_networks import DiffusionMLP, DiffusionUNet
from dsrl_offpolicy.base_policies.dppo_sampling import ddim_steps, invert_sampling, sample
from dsrl_offpolicy.base_policies.inversion import invert_by_gradient
from dsrl_offpolicy.contracts import BasePolicy, Encoding, Observation, PolicyInfo, weights_digest
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.files.checkpoint import check_weights, load_weights, read_tensors
from dsrl_offpolicy.files.plain import reading

CHECKPOINT = "checkpoint.pt"
NORMALIZATION = "normalization.npz"

FIXED_POINT_ITERATIONS, FIXED_POINT_SETTLED = 60, 1e-6
"""Of the first attempt at inversion, per step of DDIM."""


class DPPOPolicy(BasePolicy, nn.Module):
    """Frozen: its parameters take no gradient, though gradients flow through it to features and latents.

    Features are the normalised states, as the networks read them. Decoded actions are DPPO's after
    ``normalization.npz`` has scaled them back, so they are what DPPO gives to the environment, held within the
    bounds [-1, 1] of the environments it is trained on (robosuite, and Gymnasium's Hopper, HalfCheetah and
    Walker2d), which would hold them there themselves.

    Args:
        spec: what no weight says.
        networks: the noise network, and where there is a second one, that of the last ``spec.ft_denoising_steps``
            steps.
        normalization: of states and actions.
    """

    def __init__(self, spec: DPPOSpec, networks: list[nn.Module], normalization: Normalization) -> None:
        nn.Module.__init__(self)
        self.spec = spec
        self.networks = nn.ModuleList(networks)
        self.normalization = normalization
        self.steps = ddim_steps(spec.denoising_steps, spec.ddim_steps)
        fine_tuned = spec.ft_denoising_steps if len(networks) == 2 else 0
        self._of_step = [networks[0]] * (spec.ddim_steps - fine_tuned) + [networks[-1]] * fine_tuned
        chunk = (spec.horizon_steps, spec.action_dim)
        self.info = PolicyInfo(
            obs_horizon=spec.cond_steps,
            state_dim=spec.obs_dim,
            feature_dim=spec.feature_dim,
            latent_shape=chunk,
            action_shape=chunk,
            executed_rows=slice(0, spec.act_steps),
        )
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def load(cls, argument: str | None, device: torch.device, **options: Any) -> DPPOPolicy:
        """Load a folder.

        Args:
            argument: the folder.
            device: where it computes.
            options: ``weights``, of a pre-trained file ``ema`` (default) or ``model``, of a fine-tuned one
                ``actor`` (default: what was fine-tuned from) or ``actor_ft``; ``act_horizon`` H, default what the
                YAML says; ``denoising_steps`` S, DDIM steps, likewise; ``obs_horizon`` and ``pred_horizon`` may
                only repeat it; ``flag`` is the setting to name in an error.

        Raises:
            InputError: a file is missing or damaged; a weight is missing, extra or of another shape; a policy of
                images, or one that is not sampled by DDIM; an option does not fit.
        """
        flag = options.pop("flag", "base")
        folder = Path(argument or "").expanduser()
        if not folder.is_dir():
            raise InputError(f"{flag}: expected a folder with {CHECKPOINT} of DPPO, {folder} is none")
        weights = options.pop("weights", None)
        where = f"{flag}: {folder / CHECKPOINT}"
        content = read_tensors(folder / CHECKPOINT, "DPPO checkpoint", flag, device)
        names, tensors = weights_of(content, weights, where)
        spec = read_spec(folder, flag).with_options(options)
        if names[-1] == "actor_ft" and not spec.ft_denoising_steps:
            raise InputError(
                f"weights: expected ft_denoising_steps >= 1 in the YAML of {folder} for actor_ft: the last of "
                f"{spec.ddim_steps} DDIM steps that were fine-tuned"
            )
        made = [_network(spec, part, f"{where}: {name}") for name, part in zip(names, tensors, strict=True)]
        normalization = read_normalization(folder / NORMALIZATION, spec, flag, device)
        return cls(spec, made, normalization).to(device)

    def encode(self, obs: Observation) -> Encoding:
        info = self.info
        state = obs if isinstance(obs, Tensor) else obs.get("state")
        expected = f"[B, {info.obs_horizon}, {info.state_dim}]"
        if (
            not isinstance(state, Tensor)
            or state.ndim != 3
            or state.shape[1:] != (info.obs_horizon, info.state_dim)
        ):
            got = list(state.shape) if isinstance(state, Tensor) else "none"
            raise InputError(f"obs: expected states {expected}, got {got}")
        return Encoding(self.normalization.of_states(state).flatten(1))

    def encode_frames(self, state: Tensor, rgb: Tensor | None = None) -> Float[Tensor, "N F"]:
        if state.ndim != 2 or state.shape[1] != self.info.state_dim:
            raise InputError(f"state: expected [N, {self.info.state_dim}], got {list(state.shape)}")
        return self.normalization.of_states(state)

    def chain(self, encoding: Encoding, latent: Float[Tensor, "B T W"]) -> list[Float[Tensor, "B T A"]]:
        """Return what denoising goes through: the noise, and what each of S steps makes of it, in DPPO's units."""
        return sample(self._of_step, latent, encoding.features, self.steps, self.spec.clips)

    def decode(self, encoding: Encoding, latent: Float[Tensor, "B T W"]) -> Float[Tensor, "B T A"]:
        chunk, bound = self.chain(encoding, latent)[-1], self.spec.clips.final
        if bound is not None:
            chunk = chunk.clamp(-bound, bound)
        return self.normalization.to_actions(chunk).clamp(-1, 1)

    def invert(
        self, encoding: Encoding, actions: Float[Tensor, "B T A"]
    ) -> tuple[Float[Tensor, "B T W"], Float[Tensor, " B"]]:
        """Find latents: first each DDIM step backward by fixed-point iteration, as if nothing were clipped; what
        that leaves beyond ``GRADIENT_SETTLED``, by gradient."""
        features = encoding.features
        latent = invert_sampling(
            self._of_step,
            self.normalization.of_actions(actions),
            features,
            self.steps,
            FIXED_POINT_ITERATIONS,
            FIXED_POINT_SETTLED,
        )

        def decode(candidates: Tensor, rows: Tensor) -> Tensor:
            return self.decode(Encoding(features[rows]), candidates)

        return invert_by_gradient(decode, actions, latent)

    def fingerprint(self) -> str:
        sampling = (self.steps, self.spec.clips, self.spec.activation, self.spec.ft_denoising_steps)
        return hashlib.sha256(f"{weights_digest(self)} {sampling}".encode()).hexdigest()


def _network(spec: DPPOSpec, tensors: Mapping[str, Tensor], where: str) -> nn.Module:
    """Build the network that the tensors belong to, and load them.

    Raises:
        InputError: a tensor is missing, extra or of another shape.
    """

    def build() -> nn.Module:
        dims = (tensors, spec.feature_dim, spec.horizon_steps, spec.action_dim, spec.activation)
        if any(name.startswith("time_mlp.") for name in tensors):
            return DiffusionUNet(*dims, groups=spec.n_groups, epsilon=spec.groupnorm_eps)
        return DiffusionMLP(*dims)

    try:
        # First without memory: the YAML may say any size, until the tensors are seen to be of it.
        with torch.device("meta"), reading(where, "dimensions that make a network"):
            check_weights(build(), tensors, where)
    except InputError as error:
        raise InputError(str(error) if str(error).startswith(where) else f"{where}: {error}") from error
    network = build()
    load_weights(network, tensors, where)
    return network
