"""A base policy with the latent policy that steers it: what a robot runs, and what ``dsrl export`` shares."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dsrl_offpolicy.base_policies.loading import load_base_policy
from dsrl_offpolicy.contracts import BasePolicy
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.files.metrics import json_object
from dsrl_offpolicy.files.plain import from_plain
from dsrl_offpolicy.models.latent_policy import LatentPolicy
from dsrl_offpolicy.models.latent_sources import policy_source
from dsrl_offpolicy.rollouts.acting import encode, executed_chunk
from dsrl_offpolicy.train.steering_files import load_steering

MANIFEST, LATENT_POLICY = "export.json", "latent_policy.safetensors"
"""Files of an exported folder."""


@dataclass(frozen=True)
class Exported:
    """``export.json``: what an exported folder holds.

    Attributes:
        version: of this layout; 1.
        env_id: the task.
        base: the base policy, as ``--base`` took it; a file name where the folder holds it.
        base_in_folder: whether it does.
        base_options: further settings of the base policy that were not the default.
        env_steps: of Stage 2, until these weights.
        kind: of the latent policy's file.
    """

    version: int
    env_id: str
    base: str
    base_in_folder: bool
    base_options: dict[str, str | int]
    env_steps: int
    kind: str = "stage2"

    def plain(self) -> dict[str, Any]:
        """Return what the file holds."""
        return asdict(self)


class SteeredPolicy:
    """Maps observations to the actions to execute: features, latent, chunk.

    Args:
        base: the frozen policy.
        latent_policy: chooses its noise.
        device: where both compute.
        deterministic: take the mean of the latent policy rather than a sample.
        seed: of the samples, and of rows of the noise that are not steered.
    """

    def __init__(
        self,
        base: BasePolicy,
        latent_policy: LatentPolicy,
        device: torch.device,
        *,
        deterministic: bool = True,
        seed: int = 0,
    ) -> None:
        self.base, self.latent_policy, self.device = base, latent_policy, device
        self._source = policy_source(latent_policy, deterministic=deterministic)
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, obs: Any) -> Float[Tensor, "B H A"]:
        """Return the rows of the chunk to execute.

        Args:
            obs: states ``[B, o, S]``, or a mapping with ``state`` and whatever else the base policy reads.

        Raises:
            NonFiniteError: observations or actions that are not finite.
        """
        encoding = encode(self.base, obs, self.device)
        shape = (len(encoding.features), *self.base.info.latent_shape)
        noise = torch.randn(shape, generator=self._generator).to(self.device)
        return executed_chunk(self.base, encoding, self._source(encoding.features, noise))


def load_steered_policy(
    folder: str | Path, base: str | Path | None = None, device: str = "cpu", **options: Any
) -> SteeredPolicy:
    """Load what ``dsrl export`` wrote.

    Args:
        folder: of the export.
        base: the base policy, where it is not in the folder or has another name here.
        device: where it computes.
        **options: ``deterministic`` and ``seed`` of :class:`SteeredPolicy`.

    Raises:
        InputError: no export, a damaged file, or another base policy than the latent policy was trained over.
    """
    folder, where = Path(folder).expanduser(), torch.device(device)
    manifest = read_manifest(folder)
    spec: str | Path = folder / manifest.base if manifest.base_in_folder else manifest.base
    given: dict[str, Any] = dict(manifest.base_options)
    steered = load_base_policy(base if base is not None else spec, where, **given)
    latent_policy, _ = load_steering(folder / LATENT_POLICY, manifest.kind, "folder", steered, where)
    return SteeredPolicy(steered, latent_policy, where, **options)


def read_manifest(folder: Path) -> Exported:
    """Read ``export.json``.

    Raises:
        InputError: there is none, or it is of a later version or damaged.
    """
    path = folder / MANIFEST
    try:
        content = json_object(path.read_text(), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"folder: expected what dsrl export wrote, cannot read {path}: {error}") from error
    if content.get("version") != 1:
        raise InputError(f"folder: {path}: expected version 1, got {content.get('version')!r}")
    found = from_plain(Exported, content, str(path))
    if found.base_in_folder and Path(found.base).name != found.base:
        raise InputError(f"folder: {path}: base: expected the name of a file in the folder, got {found.base!r}")
    return found
