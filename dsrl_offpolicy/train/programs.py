"""A steered policy as programs of ``torch.export``, which need torch and nothing else."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dsrl_offpolicy.contracts import BasePolicy, networks_of
from dsrl_offpolicy.errors import InputError, one_line
from dsrl_offpolicy.models.latent_policy import LatentPolicy
from dsrl_offpolicy.models.latent_sources import policy_source

STEERED_PROGRAM, BASE_PROGRAM = "steered_policy.pt2", "base_policy.pt2"
"""Files of a folder that ``dsrl export --format torch_export`` writes."""

TOLERANCE = 1e-5
"""Largest difference of what a program and the policy compute."""

BATCHES = (1, 3)
"""Sizes at which the two are compared."""

SMALLEST_SIDE = 32
"""Of images, in pixels, where the policy takes any size."""


def export_programs(base: BasePolicy, latent_policy: LatentPolicy) -> dict[str, bytes]:
    """Return the contents of the program files, each read back and held against the policy.

    ``base_policy.pt2`` maps ``(state [B, o, S], noise [B, T, W])`` to the chunk ``[B, T, A]``, in a tuple; of a
    policy of images, ``(state, rgb, noise)``. ``steered_policy.pt2`` maps the same to the rows to execute
    ``[B, H, A]`` and to the noise that the latent policy's mean puts in place of the given one. B is free. Inputs
    of other shapes are refused; numbers that are not finite are not.

    Raises:
        InputError: a policy that reads more than states and images, that torch cannot export, or whose program
            computes something else.
    """
    torch_modules = {BASE_PROGRAM: _Base(base), STEERED_PROGRAM: _Steered(base, latent_policy)}
    return {name: _exported(module.eval(), base) for name, module in torch_modules.items()}


class _Base(nn.Module):
    def __init__(self, base: BasePolicy) -> None:
        super().__init__()
        self.base = base
        self.networks = nn.ModuleList(networks_of(base))  # of a policy that is no module itself

    def forward(self, state: Tensor, *rgb_and_noise: Tensor) -> tuple[Tensor, ...]:
        *rgb, noise = rgb_and_noise
        return (self.base.decode(self.base.encode(_observation(state, rgb)), noise),)


class _Steered(_Base):
    def __init__(self, base: BasePolicy, latent_policy: LatentPolicy) -> None:
        super().__init__(base)
        self.latent_policy = latent_policy

    def forward(self, state: Tensor, *rgb_and_noise: Tensor) -> tuple[Tensor, ...]:
        *rgb, noise = rgb_and_noise
        encoding = self.base.encode(_observation(state, rgb))
        latent = policy_source(self.latent_policy, deterministic=True)(encoding.features, noise)
        return self.base.decode(encoding, latent)[:, self.base.info.executed_rows], latent


def _observation(state: Tensor, rgb: list[Tensor]) -> Tensor | dict[str, Tensor]:
    return {"state": state, "rgb": rgb[0]} if rgb else state


@torch.no_grad()
def _exported(module: _Base, base: BasePolicy) -> bytes:
    inputs = _inputs(base, max(BATCHES))
    batch = torch.export.Dim("batch")
    sizes: list[dict[int, torch.export.Dim]] = [{0: batch} for _ in inputs]
    if base.info.image_channels and base.info.image_size is None:
        sides = [torch.export.Dim(name, min=SMALLEST_SIDE) for name in ("height", "width")]
        sizes[1] |= {2: sides[0], 3: sides[1]}
    file = io.BytesIO()
    try:
        with warnings.catch_warnings():  # that weights with the channels last are no plain tensors
            warnings.simplefilter("ignore")
            program = torch.export.export(module, inputs, dynamic_shapes=(sizes[0], tuple(sizes[1:])))
            torch.export.save(program, file)
    except Exception as error:  # whatever torch or a stranger's code raises
        raise InputError(
            f"--format torch_export: torch cannot export {type(base).__name__}: {one_line(error)}"
        ) from error
    content = file.getvalue()
    read_back = torch.export.load(io.BytesIO(content)).module()
    for count in BATCHES:
        given = _inputs(base, count)
        for found, expected in zip(read_back(*given), module(*given), strict=True):
            apart = float((found - expected).abs().max())
            if not apart <= TOLERANCE:
                raise InputError(
                    f"--format torch_export: expected a program that computes what {type(base).__name__} does, "
                    f"got numbers {apart:.2g} apart"
                )
    return content


def _inputs(base: BasePolicy, batch: int) -> tuple[Tensor, ...]:
    """Arguments of a program: random numbers in the shapes of the policy's example."""
    generator = torch.Generator().manual_seed(batch)
    obs = base.example_observation(batch)
    parts = dict(obs) if isinstance(obs, Mapping) else {"state": obs}
    if further := sorted(set(parts) - {"state", "rgb"}):
        raise InputError(
            f"--format torch_export: expected a base policy of states and images alone, "
            f"{type(base).__name__} also reads {', '.join(further)}"
        )
    drawn = [torch.randn(parts["state"].shape, generator=generator)]
    if "rgb" in parts:
        drawn.append(torch.randint(256, parts["rgb"].shape, generator=generator, dtype=torch.uint8))
    return (*drawn, torch.randn((batch, *base.info.latent_shape), generator=generator))
