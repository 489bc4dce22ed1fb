"""Vision-language-action policies of LeRobot by LeRobot's own classes: SmolVLA."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from dsrl_offpolicy.base_policies.contract import check_contract
from dsrl_offpolicy.base_policies.lerobot_folder import (
    AFTER,
    BEFORE,
    CONFIG,
    STATE,
    WEIGHTS,
    Normalizer,
    check_action_bounds,
    read_normalizer,
    read_safetensors,
    statistics_digest,
    without_compilation,
)
from dsrl_offpolicy.base_policies.lerobot_library import (
    build_strictly,
    local_tokenizer,
    local_vlm,
    normalizing_step,
    smolvla_classes,
    smolvla_config,
    tokenizing_steps,
)
from dsrl_offpolicy.base_policies.lerobot_vla_folder import (
    STEPS,
    VLM,
    SmolVLASpec,
    Tokenizing,
    check_vlm,
    read_smolvla,
    read_tokenizing,
)
from dsrl_offpolicy.base_policies.observation_encoder import FEATURE_LIMIT, check_images
from dsrl_offpolicy.contracts import BasePolicy, Encoding, Observation, PolicyInfo, weights_digest
from dsrl_offpolicy.errors import InputError

INSTRUCTION = "instruction"
"""What observations and the setting call the task in words."""

TOKENS, TOKENS_MASK = "observation.language.tokens", "observation.language.attention_mask"


@dataclass(frozen=True)
class Prefix:
    """What actions are decoded from: images, instruction and state, as the language model left them.

    Attributes:
        valid: ``[B, P]``, positions that hold something.
        cache: keys and values of its layers, as LeRobot keeps them.
    """

    valid: Bool[Tensor, "B P"]
    cache: Any


class SmolVLA(BasePolicy, nn.Module):
    """A SmolVLA of LeRobot. Frozen, though gradients flow through it to latents.

    Encoding runs the vision-language model once; decoding integrates the flow from the latent by Euler steps of
    the action expert, which reads the model's keys and values. Features are the mean of the model's last hidden
    states over what its prefix holds, and the normalised state. Normalised states are held within +-10, since
    LeRobot divides what never varied in the demonstrations by 1e-8. Decoded actions are LeRobot's after its
    post-processor, held within [-1, 1].

    Latents are as wide as LeRobot pads actions, ``max_action_dim``: what is beyond the actions moves them too.

    Args:
        lerobot: LeRobot's classes.
        spec: what is in ``config.json``.
        model: the ``SmolVLAPolicy``.
        tokenizing: how instructions are tokenised.
        tokenizer: by what.
        before: normalises observations.
        after: scales actions back.
        instruction: the task in words; None where every observation brings its own.
    """

    model: Any
    """LeRobot's ``SmolVLAPolicy``, an ``nn.Module``."""

    def __init__(
        self,
        lerobot: SimpleNamespace,
        spec: SmolVLASpec,
        model: Any,
        tokenizing: Tokenizing,
        tokenizer: Any,
        before: Normalizer,
        after: Normalizer,
        instruction: str | None,
    ) -> None:
        nn.Module.__init__(self)
        self.spec, self.model, self.instruction = spec, model, instruction
        self._key, self._task, self._masks = lerobot.TransitionKey, tokenizing.task_key, lerobot.make_att_2d_masks
        self._before = [
            *tokenizing_steps(lerobot, tokenizing, tokenizer),
            normalizing_step(lerobot, before, inverse=False),
        ]
        self._after = normalizing_step(lerobot, after, inverse=True)
        self._read = (statistics_digest([before, after]), tokenizing, tokenizer.backend_tokenizer.to_str())
        hidden = model.model.vlm_with_expert.config.text_config.hidden_size
        self.info = PolicyInfo(
            obs_horizon=1,
            state_dim=spec.state_dim,
            feature_dim=hidden + spec.state_dim,
            latent_shape=(spec.chunk_size, spec.max_action_dim),
            action_shape=(spec.chunk_size, spec.action_dim),
            executed_rows=slice(0, spec.n_action_steps),
            image_channels=3 * len(spec.cameras),
            image_size=spec.input_features[spec.cameras[0]].shape[1:],  # type: ignore[arg-type]
        )
        self.requires_grad_(False)
        self.eval()

    def encode(self, obs: Observation) -> Encoding:
        batch = self._batch(obs)
        flow = self.model.model
        embedded, valid, order = flow.embed_prefix(
            *self.model.prepare_images(batch),
            batch[TOKENS],
            batch[TOKENS_MASK],
            state=self.model.prepare_state(batch),
        )
        (hidden, _), cache = flow.vlm_with_expert.forward(
            attention_mask=self._masks(valid, order),
            position_ids=torch.cumsum(valid, dim=1) - 1,
            past_key_values=None,
            inputs_embeds=[embedded, None],
            use_cache=True,
            fill_kv_cache=True,
        )
        held = valid[..., None]
        mean = torch.where(held, hidden.float(), 0.0).sum(1) / held.sum(1)
        return Encoding(torch.cat((mean, batch[STATE]), dim=1), Prefix(valid, cache))

    def decode(self, encoding: Encoding, latent: Float[Tensor, "B T W"]) -> Float[Tensor, "B T A"]:
        chunk = self.sample(encoding, latent)[..., : self.info.action_dim]
        actions: Tensor = self._after({self._key.ACTION: chunk})[self._key.ACTION]
        return actions.clamp(-1, 1)

    def sample(self, encoding: Encoding, latent: Float[Tensor, "B T W"]) -> Float[Tensor, "B T W"]:
        """Return the end of the flow, before the post-processor, as wide as the latent.

        Raises:
            InputError: latents of another shape, or features without the prefix.
        """
        if latent.shape[1:] != self.info.latent_shape:
            rows, width = self.info.latent_shape
            raise InputError(f"latent: expected [B, {rows}, {width}], got {list(latent.shape)}")
        prefix = encoding.context
        if not isinstance(prefix, Prefix):
            raise InputError("encoding: a SmolVLA decodes from its prefix, the context of encode, got none")
        x, step = latent, -1.0 / self.spec.num_steps
        for i in range(self.spec.num_steps):
            time = torch.full((len(x),), 1.0 + i * step, device=x.device)
            x = x + step * self.model.model.denoise_step(prefix.valid, prefix.cache, x, time)
        return x

    def example_observation(self, batch: int) -> Observation:
        example = super().example_observation(batch)
        assert isinstance(example, Mapping)
        return example if self.instruction is not None else {**example, INSTRUCTION: ["do the task"] * batch}

    def fingerprint(self) -> str:
        sampled = (self.spec, self._read)
        return hashlib.sha256(f"{weights_digest(self)} {sampled}".encode()).hexdigest()

    def _batch(self, obs: Observation) -> dict[str, Tensor]:
        """What LeRobot's preprocessor makes of observations."""
        info = self.info
        state, rgb = (obs, None) if isinstance(obs, Tensor) else (obs.get("state"), obs.get("rgb"))
        if not isinstance(state, Tensor) or state.ndim != 3 or state.shape[1:] != (1, info.state_dim):
            got = list(state.shape) if isinstance(state, Tensor) else "none"
            raise InputError(f"obs: expected states [B, 1, {info.state_dim}], got {got}")
        images = check_images(rgb, info.image_channels, (len(state), 1), info.image_size)[:, 0]
        cameras = images.movedim(-1, 1).float().div(255).split(3, dim=1)
        transition = {
            self._key.OBSERVATION: {
                STATE: state[:, 0].float(),
                **dict(zip(self.spec.cameras, cameras, strict=True)),
            },
            self._key.COMPLEMENTARY_DATA: {self._task: self._instructions(obs, len(state))},
        }
        for process in self._before:
            transition = process(transition)
        batch: dict[str, Tensor] = transition[self._key.OBSERVATION]
        batch[STATE] = batch[STATE].clamp(-FEATURE_LIMIT, FEATURE_LIMIT)
        return batch

    def _instructions(self, obs: Observation, rows: int) -> list[str]:
        if self.instruction is not None:
            return [self.instruction] * rows
        said = obs.get(INSTRUCTION) if isinstance(obs, Mapping) else None
        if not isinstance(said, list | tuple) or len(said) != rows or not all(isinstance(s, str) for s in said):
            raise InputError(
                f"{INSTRUCTION}: this policy reads the task in words, and the environment observes none; "
                f"say it by --{INSTRUCTION}"
            )
        return list(said)


def load_smolvla(
    folder: Path, content: Mapping[str, Any], device: torch.device, flag: str, options: dict[str, Any]
) -> SmolVLA:
    """Load a folder that LeRobot's ``save_pretrained`` wrote of a SmolVLA.

    Args:
        folder: the folder.
        content: of its ``config.json``.
        device: where it computes.
        flag: the setting to name in an error.
        options: ``instruction``, the task in words, in place of the environment's; ``act_horizon`` H, default
            ``n_action_steps``; ``denoising_steps``, steps of Euler, default ``num_steps``; ``obs_horizon`` and
            ``pred_horizon`` may only repeat ``config.json``.

    Raises:
        InputError: LeRobot or its extra is not installed; a file is missing or damaged; what describes the
            language model is not on this machine; weights, statistics or options that do not fit.
    """
    instruction = options.pop(INSTRUCTION, None)
    where = f"{flag}: {folder / CONFIG}"
    spec = read_smolvla(content, where).with_options(options)
    tokenizing = read_tokenizing(folder, spec, flag)
    before = read_normalizer(folder, BEFORE, STEPS[2], spec, flag, STEPS[:2])
    after = read_normalizer(folder, AFTER, "unnormalizer_processor", spec, flag)
    check_action_bounds(after, f"{flag}: {folder / AFTER}")
    tensors = without_compilation(read_safetensors(folder / WEIGHTS, flag))
    lerobot = smolvla_classes(flag)
    vlm = local_vlm(folder / VLM, spec.vlm_model_name, where)
    check_vlm(vlm, where)
    tokenizer = local_tokenizer(vlm, where)

    model = build_strictly(
        lambda: lerobot.SmolVLAPolicy(smolvla_config(lerobot, spec, vlm)),
        tensors,
        f"{flag}: {folder / WEIGHTS}",
        as_saved=spec.load_vlm_weights,  # in bf16 then, but for a few layers
    )
    policy = SmolVLA(lerobot, spec, model, tokenizing, tokenizer, before, after, instruction).to(device)
    check_contract(policy, f"{flag}: {folder}", device)
    return policy
