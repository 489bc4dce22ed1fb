"""Policies of LeRobot by LeRobot's own classes: its DiffusionPolicy, of states and of images, sampled by DDIM."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dsrl_offpolicy.base_policies.contract import check_contract
from dsrl_offpolicy.base_policies.dppo_sampling import Step, invert_sampling
from dsrl_offpolicy.base_policies.inversion import invert_by_gradient
from dsrl_offpolicy.base_policies.lerobot_folder import (
    AFTER,
    BEFORE,
    CONFIG,
    VLAS,
    WEIGHTS,
    DiffusionSpec,
    Normalizer,
    check_action_bounds,
    read_diffusion,
    read_normalizer,
    read_safetensors,
    read_type,
    statistics_digest,
    without_compilation,
)
from dsrl_offpolicy.base_policies.lerobot_library import (
    build_strictly,
    diffusion_config,
    lerobot_classes,
    normalizing_step,
)
from dsrl_offpolicy.base_policies.lerobot_vla import load_smolvla
from dsrl_offpolicy.base_policies.observation_encoder import FEATURE_LIMIT, check_images
from dsrl_offpolicy.contracts import BasePolicy, Encoding, Observation, PolicyInfo, weights_digest
from dsrl_offpolicy.errors import InputError

IMAGES = "observation.images"
"""LeRobot's name of all cameras' images, stacked."""

FIXED_POINT_ITERATIONS, FIXED_POINT_SETTLED = 60, 1e-6
"""Of the first attempt at inversion, per step of DDIM."""


class LeRobotPolicy(BasePolicy, nn.Module):
    """A DiffusionPolicy of LeRobot. Frozen, though gradients flow through it to features and latents.

    Features are its global conditioning: normalised states and image features of all frames, the oldest first.
    Normalised states are held within +-10, since LeRobot divides what never varied in the demonstrations by 1e-8.
    Decoded actions are LeRobot's after its post-processor, held within [-1, 1].

    A frame's state is ``observation.state`` followed by ``observation.environment_state``, where the policy reads
    it; a frame's images are the cameras of ``config.json`` in its order.

    Args:
        lerobot: LeRobot's classes.
        spec: what is in ``config.json``.
        model: the ``DiffusionPolicy``.
        before: normalises observations.
        after: scales actions back.
    """

    model: Any
    """LeRobot's ``DiffusionPolicy``, an ``nn.Module``."""

    def __init__(
        self,
        lerobot: SimpleNamespace,
        spec: DiffusionSpec,
        model: Any,
        before: Normalizer,
        after: Normalizer,
    ) -> None:
        nn.Module.__init__(self)
        self.spec = spec
        self.model: Any = model  # the attributes of its parts are not typed
        self._key = lerobot.TransitionKey
        self._before = normalizing_step(lerobot, before, inverse=False)
        self._after = normalizing_step(lerobot, after, inverse=True)
        self._of_actions = normalizing_step(lerobot, after, inverse=False)
        self._statistics = statistics_digest([before, after])
        chunk = (spec.horizon, spec.action_dim)
        size = spec.input_features[spec.cameras[0]].shape[1:] if spec.cameras else None
        self.info = PolicyInfo(
            obs_horizon=spec.n_obs_steps,
            state_dim=sum(spec.vectors.values()),
            feature_dim=spec.n_obs_steps * (sum(spec.vectors.values()) + self._image_features()),
            latent_shape=chunk,
            action_shape=chunk,
            executed_rows=slice(spec.n_obs_steps - 1, spec.n_obs_steps - 1 + spec.n_action_steps),
            image_channels=3 * len(spec.cameras),
            image_size=(size[0], size[1]) if size else None,
        )
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def load(cls, argument: str | None, device: torch.device, **options: Any) -> BasePolicy:
        """Load a folder that LeRobot's ``save_pretrained`` wrote, of whichever policy of LeRobot that is steered.

        Args:
            argument: the folder.
            device: where it computes.
            options: ``act_horizon`` H, default ``n_action_steps``; ``denoising_steps``, steps of DDIM, default
                ``num_inference_steps``, and 10 where that is none; ``obs_horizon`` and ``pred_horizon`` may only
                repeat ``config.json``; ``flag`` is the setting to name in an error. For those of a SmolVLA see
                :func:`~dsrl_offpolicy.base_policies.lerobot_vla.load_smolvla`.

        Raises:
            InputError: LeRobot is not installed; a file is missing or damaged; a policy that cannot be steered;
                weights, statistics or options that do not fit.
        """
        flag = options.pop("flag", "base")
        folder = Path(argument or "").expanduser()
        if not folder.is_dir():
            raise InputError(f"{flag}: expected a folder with {CONFIG} of LeRobot, {folder} is none")
        kind, content = read_type(folder, flag)
        if kind in VLAS:
            return load_smolvla(folder, content, device, flag, options)
        trained = read_diffusion(content, f"{flag}: {folder / CONFIG}")
        spec = trained.with_options(options)
        before = read_normalizer(folder, BEFORE, "normalizer_processor", spec, flag)
        after = read_normalizer(folder, AFTER, "unnormalizer_processor", spec, flag)
        check_action_bounds(after, f"{flag}: {folder / AFTER}")
        tensors = without_compilation(read_safetensors(folder / WEIGHTS, flag))
        lerobot = lerobot_classes(flag)
        model = build_strictly(
            lambda: lerobot.DiffusionPolicy(diffusion_config(lerobot, spec)),
            tensors,
            f"{flag}: {folder / WEIGHTS}",
        )
        policy = cls(lerobot, spec, model, before, after).to(device)
        check_contract(policy, f"{flag}: {folder}", device)
        if spec.noise_scheduler_type != "DDIM":
            print(
                f"note: the base policy was sampled by {spec.noise_scheduler_type}, which draws noise in every "
                f"step; here it is sampled by DDIM in {spec.steps} steps, which may change how often it succeeds",
                file=sys.stderr,
            )
        return policy

    def encode(self, obs: Observation) -> Encoding:
        info = self.info
        state, rgb = (obs, None) if isinstance(obs, Tensor) else (obs.get("state"), obs.get("rgb"))
        expected = (info.obs_horizon, info.state_dim)
        if not isinstance(state, Tensor) or state.ndim != 3 or state.shape[1:] != expected:
            got = list(state.shape) if isinstance(state, Tensor) else "none"
            parts = ", ".join(f"{width} of {name}" for name, width in self.spec.vectors.items())
            raise InputError(f"obs: expected states [B, {expected[0]}, {expected[1]}] ({parts}), got {got}")
        if self.spec.cameras:
            leading = (len(state), info.obs_horizon)
            rgb = check_images(rgb, info.image_channels, leading, info.image_size).flatten(0, 1)
        frames = self.encode_frames(state.flatten(0, 1), rgb)
        return Encoding(frames.unflatten(0, (len(state), info.obs_horizon)).flatten(1))

    def encode_frames(self, state: Tensor, rgb: Tensor | None = None) -> Float[Tensor, "N F"]:
        if state.ndim != 2 or state.shape[1] != self.info.state_dim:
            raise InputError(f"state: expected [N, {self.info.state_dim}], got {list(state.shape)}")
        parts = state.float().split(list(self.spec.vectors.values()), dim=1)
        frame = {name: part[:, None] for name, part in zip(self.spec.vectors, parts, strict=True)}
        if self.spec.cameras:
            images = check_images(rgb, self.info.image_channels, (len(state),), self.info.image_size)
            cameras = images.movedim(-1, 1).float().div(255).split(3, dim=1)
            frame |= {name: image[:, None] for name, image in zip(self.spec.cameras, cameras, strict=True)}
        frame = self._before({self._key.OBSERVATION: frame})[self._key.OBSERVATION]
        for name in self.spec.vectors:
            frame[name] = frame[name].clamp(-FEATURE_LIMIT, FEATURE_LIMIT)
        if self.spec.cameras:
            frame[IMAGES] = torch.stack([frame[name] for name in self.spec.cameras], dim=2)
        features: Tensor = self.model.diffusion._prepare_global_conditioning(frame)
        return features

    def decode(self, encoding: Encoding, latent: Float[Tensor, "B T W"]) -> Float[Tensor, "B T A"]:
        return self._unnormalized(self.sample(encoding, latent)).clamp(-1, 1)

    def sample(self, encoding: Encoding, latent: Float[Tensor, "B T W"]) -> Float[Tensor, "B T A"]:
        """Return the chunk as it comes out of DDIM, before the post-processor.

        Raises:
            InputError: latents of another shape, which LeRobot would denoise to chunks of that shape.
        """
        if latent.shape[1:] != self.info.latent_shape:
            rows, width = self.info.latent_shape
            raise InputError(f"latent: expected [B, {rows}, {width}], got {list(latent.shape)}")
        chunk: Tensor = self.model.diffusion.conditional_sample(
            len(latent), global_cond=encoding.features, noise=latent
        )
        return chunk

    def invert(
        self, encoding: Encoding, actions: Float[Tensor, "B T A"]
    ) -> tuple[Float[Tensor, "B T W"], Float[Tensor, " B"]]:
        """Find latents: first each DDIM step backward by fixed-point iteration, as if nothing were clipped; what
        that leaves beyond ``GRADIENT_SETTLED``, by gradient."""
        features = encoding.features
        chunk = self._of_actions({self._key.ACTION: actions})[self._key.ACTION]
        # An action that never varied was divided by 1e-8; whatever it is, it comes out the same.
        bound = self.spec.clip_sample_range if self.spec.clip_sample else FEATURE_LIMIT
        steps = self._steps()
        networks = [self._noise_network(step) for step in steps]
        latent = invert_sampling(
            networks, chunk.clamp(-bound, bound), features, steps, FIXED_POINT_ITERATIONS, FIXED_POINT_SETTLED
        )

        def decode(candidates: Tensor, rows: Tensor) -> Tensor:
            return self.decode(Encoding(features[rows]), candidates)

        return invert_by_gradient(decode, actions, latent)

    def fingerprint(self) -> str:
        sampled = (self.spec, self._statistics)
        return hashlib.sha256(f"{weights_digest(self)} {sampled}".encode()).hexdigest()

    def _image_features(self) -> int:
        """Features of one frame's images."""
        return 2 * self.spec.spatial_softmax_num_keypoints * len(self.spec.cameras)

    def _unnormalized(self, chunk: Tensor) -> Tensor:
        actions: Tensor = self._after({self._key.ACTION: chunk})[self._key.ACTION]
        return actions

    def _steps(self) -> tuple[Step, ...]:
        """The steps of LeRobot's DDIM scheduler, from the noisiest on."""
        scheduler = self.model.diffusion.noise_scheduler
        scheduler.set_timesteps(self.spec.steps)
        times = scheduler.timesteps.tolist()
        shares = [float(scheduler.alphas_cumprod[t]) for t in times]
        following = [*shares[1:], float(scheduler.final_alpha_cumprod)]
        return tuple(
            Step(t, a**0.5, (1 - a) ** 0.5, b**0.5, (1 - b) ** 0.5)
            for t, a, b in zip(times, shares, following, strict=True)
        )

    def _noise_network(self, step: Step) -> Any:
        """The network as one that predicts noise."""

        def noise(x: Tensor, time: Tensor, features: Tensor) -> Tensor:
            predicted: Tensor = self.model.diffusion.unet(x, time.long(), global_cond=features)
            if self.spec.prediction_type == "epsilon":
                return predicted
            return (x - step.signal * predicted) / step.noise

        return noise
