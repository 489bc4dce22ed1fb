"""What a folder of DPPO holds: which weights, the YAML that describes the model, the normalisation."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Float
from msgspec import Meta
from torch import Tensor, nn

from dsrl_offpolicy.base_policies.dppo_networks import Activation
from dsrl_offpolicy.base_policies.dppo_sampling import Clips
from dsrl_offpolicy.configs.loading import read_settings
from dsrl_offpolicy.configs.ranges import Positive
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.files.plain import READ_ERRORS, checked, shown

MODEL_FILES = ("dsrl_model.yaml", "model.yaml", "config.yaml")
"""Names of the YAML that describes the model; the first that is there is read."""

PRE_TRAINED, FINE_TUNED = ("ema", "model"), ("actor", "actor_ft")
PARTS = ("network", "actor", "actor_ft", "critic", "eta")
"""What the tensors of a fine-tuned file belong to, by the first part of their names."""

LARGEST_NORMALIZATION = 2**24
"""Bytes that the arrays of a normalisation may unfold to."""

BEYOND = 1e-3
"""How far beyond [-1, 1] recorded actions may reach."""

Dim = Annotated[int, Meta(ge=1, le=100_000)]
Repeats = Annotated[int, Meta(ge=1, le=1024)]
REFERENCE = re.compile(r"\$\{([\w.]+)\}")


@dataclass(frozen=True)
class DPPOSpec:
    """What no tensor says, under the names of DPPO's YAML.

    Attributes:
        obs_dim: S.
        action_dim: A.
        cond_steps: o.
        horizon_steps: T.
        act_steps: H; rows 0:H are executed, also with o > 1: row 0 belongs to the newest frame.
        denoising_steps: K, steps of training.
        ddim_steps: S, steps of sampling.
        ft_denoising_steps: of the last DDIM steps, those that ``actor_ft`` makes.
        denoised_clip_value, eps_clip_value, final_action_clip_value: see ``Clips``.
        activation: of the hidden layers.
        n_groups, groupnorm_eps: of a U-Net's GroupNorm.
    """

    obs_dim: Dim
    action_dim: Dim
    cond_steps: Repeats
    horizon_steps: Repeats
    act_steps: Repeats
    denoising_steps: Annotated[int, Meta(ge=1, le=10_000)]
    ddim_steps: Repeats
    ft_denoising_steps: Annotated[int, Meta(ge=0, le=1024)] = 0
    denoised_clip_value: Positive | None = 1.0
    eps_clip_value: Positive | None = None
    final_action_clip_value: Positive | None = None
    activation: Activation = "Mish"
    n_groups: Dim | None = None
    groupnorm_eps: Positive = 1e-5

    @property
    def feature_dim(self) -> int:
        """D = o * S."""
        return self.cond_steps * self.obs_dim

    @property
    def clips(self) -> Clips:
        """Bounds on what sampling computes."""
        return Clips(self.denoised_clip_value, self.eps_clip_value, self.final_action_clip_value)

    def with_options(self, options: Mapping[str, Any]) -> DPPOSpec:
        """Return the spec with fewer executed rows or other DDIM steps.

        Raises:
            InputError: an option is unknown, out of range, or contradicts the YAML.
        """
        for name, given in options.items():
            field = {"obs_horizon": "cond_steps", "pred_horizon": "horizon_steps"}.get(name)
            if field is not None and given != getattr(self, field):
                raise InputError(f"{name}: expected {getattr(self, field)}, the YAML's {field}, got {given}")
        spec = replace(
            self,
            act_steps=options.get("act_horizon", self.act_steps),
            ddim_steps=options.get("denoising_steps", self.ddim_steps),
        )
        for name, value, most in (
            ("act_horizon", spec.act_steps, spec.horizon_steps),
            ("denoising_steps", spec.ddim_steps, spec.denoising_steps),
        ):
            if not 1 <= value <= most:
                raise InputError(f"{name}: expected a whole number from 1 to {most}, got {shown(value)}")
        return spec


def weights_of(content: Any, weights: str | None, where: str) -> tuple[list[str], list[dict[str, Tensor]]]:
    """Return names and tensors of the networks that sampling needs; two for ``actor_ft``, the base's first.

    Args:
        content: of the checkpoint.
        weights: which to take; None for those that the official DSRL takes.
        where: the place to name in an error.

    Raises:
        InputError: no checkpoint of DPPO, weights that it does not hold, or tensors of no known part.
    """
    if not isinstance(content, Mapping) or not isinstance(content.get("model"), Mapping):
        raise InputError(f"{where}: expected an entry 'model' of tensors, as DPPO saves it, got none")
    fine_tuned = any(str(name).startswith("actor.") for name in content["model"])
    choices = FINE_TUNED if fine_tuned else PRE_TRAINED
    name = choices[0] if weights is None else weights
    if name not in choices:
        kind = "fine-tuned" if fine_tuned else "pre-trained"
        raise InputError(f"weights: expected {' or '.join(choices)}, for {where} is {kind}, got {name!r}")
    held = content["model"] if fine_tuned else content.get(name)
    if not isinstance(held, Mapping):
        raise InputError(f"{where}: expected an entry {name!r} of tensors, got {shown(held)}")
    known = PARTS if fine_tuned else ("network",)
    for key, value in held.items():
        if not isinstance(value, Tensor):
            raise InputError(f"{where}: tensor {shown(key)}: expected a tensor, got {shown(value)}")
        if not isinstance(key, str) or key.split(".")[0] not in known:
            raise InputError(f"{where}: tensor {shown(key)}: expected one of {', '.join(known)}, got another")
        if key.startswith("network.backbone."):
            raise InputError(
                f"{where}: expected a policy of states, got one of images (ViT), which is not supported"
            )
    if not fine_tuned:
        return [name], [_under("network", held)]
    names = [name] if name == "actor" else ["actor", name]
    return names, [_under(part, held) for part in names]


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    start = f"{prefix}."
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}


def read_spec(folder: Path, flag: str) -> DPPOSpec:
    """Read the YAML that describes the model.

    Raises:
        InputError: there is none; it lacks something, or holds what cannot be sampled here.
    """
    found = [folder / name for name in MODEL_FILES if (folder / name).is_file()]
    needed = [f.name for f in fields(DPPOSpec)][:7]
    if not found:
        raise InputError(
            f"{flag}: expected {MODEL_FILES[0]} in {folder}, which says what no weight does: {', '.join(needed)}, "
            "use_ddim, network.activation_type"
        )
    where, content = f"{flag}: {found[0]}", read_settings(found[0])
    model = content.get("model", content)
    network = model.get("network", {}) if isinstance(model, Mapping) else None
    if not isinstance(network, Mapping):
        raise InputError(f"{where}: expected model and model.network to be mappings")
    for part in (model, network):
        target = str(part.get("_target_", ""))
        if any(word in target for word in ("Vision", "Transformer", "Gaussian", "GMM")):
            raise InputError(
                f"{where}: expected a diffusion policy of states with an MLP or a U-Net, got {target}"
            )
    _check_sampler(model, content, where)
    values = {**content, **network, **model}
    if "activation_type" in network:
        values["activation"] = network["activation_type"]
    names = {field.name for field in fields(DPPOSpec)}
    wanted = {name: _resolved(value, content) for name, value in values.items() if name in names}
    spec: DPPOSpec = checked(wanted, DPPOSpec, where)
    for name, value, most in (
        ("act_steps", spec.act_steps, spec.horizon_steps),
        ("ddim_steps", spec.ddim_steps, spec.denoising_steps),
        ("ft_denoising_steps", spec.ft_denoising_steps, spec.ddim_steps),
    ):
        if value > most:
            raise InputError(f"{where}: {name}: expected at most {most}, got {value}")
    return spec


def _check_sampler(model: Mapping[str, Any], content: Mapping[str, Any], where: str) -> None:
    """Refuse what is not deterministic given the noise, or predicts something else."""
    for name, expected, default, why in (
        ("use_ddim", True, False, "DDPM draws noise in every step; add ddim_steps too"),
        ("predict_epsilon", True, True, "only networks that predict noise are sampled by DDIM"),
        ("ddim_discretize", "uniform", "uniform", "other spacings are unknown"),
    ):
        if _resolved(model.get(name, default), content) != expected:
            got = shown(model[name]) if name in model else "none"
            raise InputError(f"{where}: model.{name}: expected {shown(expected)}, got {got}: {why}")


def _resolved(value: Any, content: Mapping[str, Any]) -> Any:
    """What ``${name}`` or ``${group.name}`` stands for."""
    for _ in range(8):  # a reference to a reference; in a circle, what is left is refused as text
        match = REFERENCE.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            break
        value = content
        for name in match[1].split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
    return value


class Normalization(nn.Module):
    """DPPO's: the data's minimum and maximum become -1 and 1. Not clamped.

    Args:
        bounds: ``obs_min``, ``obs_max`` ``[S]``, ``action_min``, ``action_max`` ``[A]``; None leaves numbers as
            they are.
    """

    obs_min: Tensor
    obs_max: Tensor
    action_min: Tensor
    action_max: Tensor

    def __init__(self, bounds: Mapping[str, Tensor] | None) -> None:
        super().__init__()
        self.known = bounds is not None
        for name, value in (bounds or {}).items():
            self.register_buffer(name, value)

    def of_states(self, states: Float[Tensor, "*B S"]) -> Float[Tensor, "*B S"]:
        """Normalise, in doubles where the device has them, as DPPO does before it rounds to float32."""
        if not self.known:
            return states.float()
        low, high = self.obs_min, self.obs_max
        normal: Tensor = 2 * ((states.to(low.dtype) - low) / (high - low + 1e-6) - 0.5)
        return normal.float()

    def to_actions(self, chunk: Float[Tensor, "B T A"]) -> Float[Tensor, "B T A"]:
        """Scale normalised actions back to the environment's."""
        if not self.known:
            return chunk
        low, high = self.action_min.to(chunk.dtype), self.action_max.to(chunk.dtype)
        return (chunk + 1) / 2 * (high - low) + low

    def of_actions(self, actions: Float[Tensor, "B T A"]) -> Float[Tensor, "B T A"]:
        """Normalise the environment's actions; those that never vary become 0."""
        if not self.known:
            return actions
        low, high = self.action_min.to(actions.dtype), self.action_max.to(actions.dtype)
        varies = high - low > 1e-6
        normal = 2 * (actions - low) / torch.where(varies, high - low, torch.ones_like(low)) - 1
        return torch.where(varies, normal, torch.zeros_like(normal))


def read_normalization(path: Path, spec: DPPOSpec, flag: str, device: torch.device) -> Normalization:
    """Read ``normalization.npz``; without the file, states and actions are what the networks take and make.

    Raises:
        InputError: damaged, an array that is missing or of another width, numbers that are not finite, or actions
            beyond [-1, 1], which would be cut off.
    """
    if not path.exists():
        return Normalization(None)
    where, bounds = f"{flag}: {path}", {}
    states, actions = spec.obs_dim, spec.action_dim
    widths = {"obs_min": states, "obs_max": states, "action_min": actions, "action_max": actions}
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(record.file_size for record in archive.infolist()) > LARGEST_NORMALIZATION:
                raise ValueError("its arrays are too large")
        with np.load(path, allow_pickle=False) as arrays:
            for name in widths:
                if name not in arrays.files:
                    raise InputError(f"{where}: expected an array {name!r}, got none")
                bounds[name] = np.asarray(arrays[name], dtype=np.float64)
    except InputError:
        raise
    except (*READ_ERRORS, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{where}: expected arrays of numbers, got: {' '.join(str(error).split())}") from error
    for name, width in widths.items():
        if bounds[name].shape != (width,) or not np.isfinite(bounds[name]).all():
            raise InputError(f"{where}: {name}: expected {width} finite numbers, got {list(bounds[name].shape)}")
    reach = max(float(np.abs(bounds[name]).max()) for name in ("action_min", "action_max"))
    if reach > 1 + BEYOND:
        raise InputError(
            f"{where}: action_min, action_max: expected actions within [-1, 1], the bounds of the environments "
            f"that are steered here, got {reach:g}"
        )
    exact = torch.float32 if device.type == "mps" else torch.float64
    return Normalization({name: torch.as_tensor(value, dtype=exact) for name, value in bounds.items()})
