"""What a folder of a vision-language-action policy of LeRobot holds besides, read as if a stranger wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta

from dsrl_offpolicy.base_policies.lerobot_folder import (
    ACTION,
    BEFORE,
    CONFIG,
    NO_PART_OF_SAMPLING,
    STATE,
    Pixels,
    PolicySpec,
    Rows,
    check_entries,
    check_features,
    read_json,
    read_steps,
)
from dsrl_offpolicy.configs.ranges import Positive
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.files.plain import checked, shown

EMPTY_CAMERA = "observation.images.empty_camera_"
"""How the names begin of cameras that the policy was trained without; LeRobot adds them itself."""

VLM = "vlm"
"""Subfolder with what describes the vision-language model, before a folder or a cache is asked."""

VLM_TYPE = "smolvlm"

LARGEST_VLM_JSON = 2**26
"""Bytes; a vocabulary has some millions."""

STEPS = ("smolvla_new_line_processor", "tokenizer_processor", "normalizer_processor")
"""What the preprocessor does, in this order."""

NO_PART_OF_A_VLA = NO_PART_OF_SAMPLING | {
    "freeze_vision_encoder", "train_expert_only", "train_state_proj", "optimizer_grad_clip_norm",
    "scheduler_decay_steps", "scheduler_decay_lr", "rtc_config",
}  # fmt: skip
"""As ``NO_PART_OF_SAMPLING``; real-time chunking needs a chunk that is still being executed, and there is none."""

Layers = Annotated[int, Meta(ge=-1, le=1024)]
Width = Annotated[int, Meta(ge=1, le=16384)]


@dataclass(frozen=True)
class SmolVLASpec(PolicySpec):
    """What sampling needs of the config.json of a SmolVLA, under LeRobot's names.

    ``input_features`` are without the empty cameras.
    """

    n_obs_steps: Rows
    chunk_size: Rows
    n_action_steps: Rows
    max_state_dim: Width
    max_action_dim: Width
    resize_imgs_with_padding: tuple[Pixels, Pixels] | None
    empty_cameras: Annotated[int, Meta(ge=0, le=16)]
    adapt_to_pi_aloha: bool
    use_delta_joint_actions_aloha: bool
    tokenizer_max_length: Rows
    num_steps: Annotated[int, Meta(ge=1, le=1000)]
    use_cache: bool
    vlm_model_name: Annotated[str, Meta(min_length=1, max_length=1000)]
    load_vlm_weights: bool
    add_image_special_tokens: bool
    attention_mode: Literal["cross_attn", "self_attn"]
    prefix_length: Annotated[int, Meta(ge=-1, le=100_000)]
    pad_language_to: Literal["longest", "max_length"]
    num_expert_layers: Layers
    num_vlm_layers: Layers
    self_attn_every_n_layers: Layers
    expert_width_multiplier: Annotated[float, Meta(gt=0, le=16)]
    min_period: Positive
    max_period: Positive

    @property
    def state_dim(self) -> int:
        """S."""
        return self.vectors[STATE]

    def with_options(self, options: Mapping[str, Any]) -> SmolVLASpec:
        """Return the spec with other executed rows or Euler steps.

        Raises:
            InputError: an option is unknown, out of range, or contradicts config.json.
        """
        self.check_repeated(options, {"obs_horizon": "n_obs_steps", "pred_horizon": "chunk_size"})
        spec = replace(
            self,
            n_action_steps=options.get("act_horizon", self.n_action_steps),
            num_steps=options.get("denoising_steps", self.num_steps),
        )
        for name, value, most in (
            ("act_horizon", spec.n_action_steps, spec.chunk_size),
            ("denoising_steps", spec.num_steps, 1000),
        ):
            if not 1 <= value <= most:
                raise InputError(f"{name}: expected a whole number from 1 to {most}, got {shown(value)}")
        return spec


def read_smolvla(content: Mapping[str, Any], where: str) -> SmolVLASpec:
    """Check the config.json of a SmolVLA.

    Args:
        content: of the file.
        where: the place to name in an error.

    Raises:
        InputError: an entry is missing, unknown, of another type or out of range; they do not fit together.
    """
    check_entries(content, SmolVLASpec, NO_PART_OF_A_VLA, where)
    spec: SmolVLASpec = checked(content, SmolVLASpec, where)
    read = {name: f for name, f in spec.input_features.items() if not name.startswith(EMPTY_CAMERA)}
    spec = replace(spec, input_features=read)
    check_features(spec, where)
    if other := sorted(set(read) - {STATE, *spec.cameras}):
        raise InputError(f"{where}: input_features: expected {STATE} and images, got {shown(other[0])}")
    if not spec.cameras:
        raise InputError(f"{where}: input_features: expected images, got none")
    for name, found, expected in (
        ("n_obs_steps", spec.n_obs_steps, 1),
        ("use_cache", spec.use_cache, True),
        ("adapt_to_pi_aloha", spec.adapt_to_pi_aloha, False),
        ("use_delta_joint_actions_aloha", spec.use_delta_joint_actions_aloha, False),
    ):
        if found != expected:
            raise InputError(f"{where}: {name}: expected {expected}, got {found}; others are not steered")
    for name, value, limit, most in (
        ("n_action_steps", spec.n_action_steps, "chunk_size", spec.chunk_size),
        (STATE, spec.state_dim, "max_state_dim", spec.max_state_dim),
        (ACTION, spec.action_dim, "max_action_dim", spec.max_action_dim),
    ):
        if value > most:
            raise InputError(f"{where}: {name}: expected at most {most}, {limit}, got {value}")
    return spec


@dataclass(frozen=True)
class Tokenizing:
    """The step of a processor that turns an instruction into tokens."""

    tokenizer_name: str
    max_length: Rows
    padding: Literal["longest", "max_length"]
    padding_side: Literal["left", "right"] = "right"
    truncation: bool = True
    task_key: str = "task"


def read_tokenizing(folder: Path, spec: SmolVLASpec, flag: str) -> Tokenizing:
    """Read how the preprocessor tokenises an instruction.

    Raises:
        InputError: the file is missing or damaged, has other steps, or another tokenizer than the policy's.
    """
    where = f"{flag}: {folder / BEFORE}"
    steps = read_steps(folder, BEFORE, flag)
    if tuple(step.registry_name for step in steps) != STEPS:
        names = ", ".join(shown(step.registry_name) for step in steps) or "none"
        raise InputError(f"{where}: expected the steps {', '.join(STEPS)}, in this order, got {names}")
    found: Tokenizing = checked(steps[1].config, Tokenizing, f"{where}: {STEPS[1]}")
    if found.tokenizer_name != spec.vlm_model_name:
        raise InputError(
            f"{where}: tokenizer_name: expected {shown(spec.vlm_model_name)}, vlm_model_name of {CONFIG}, "
            f"got {shown(found.tokenizer_name)}"
        )
    return found


def check_vlm(folder: Path, where: str) -> None:
    """Check that a folder describes a vision-language model of SmolVLA's kind, and brings no code.

    Raises:
        InputError: it does not.
    """
    if not (folder / CONFIG).is_file():
        raise InputError(f"{where}: expected {CONFIG} of a vision-language model in {folder}, got none")
    content = read_json(folder / CONFIG, where, LARGEST_VLM_JSON)
    if content.get("model_type") != VLM_TYPE:
        raise InputError(
            f"{where}: {folder / CONFIG}: model_type: expected {VLM_TYPE}, got {shown(content.get('model_type'))}"
        )
    for file in sorted(folder.glob("*.json")):
        if file.name.endswith("config.json") and "auto_map" in read_json(file, where, LARGEST_VLM_JSON):
            raise InputError(f"{where}: {file}: auto_map: expected none, got code to run")
