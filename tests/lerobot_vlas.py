"""Folders of small SmolVLAs, saved by LeRobot's own classes, and of the language models that describe them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lerobot_folders import ACTION, CAMERAS, STATE, feature, lerobot_values, write_folder

from dsrl_offpolicy.base_policies.lerobot_library import smolvla_classes

IMAGE = [3, 20, 24]
INPUTS = {STATE: feature("STATE", 4), **{name: feature("VISUAL", *IMAGE) for name in CAMERAS}}
OUTPUTS = {ACTION: feature("ACTION", 3)}
SPECIAL = {
    "image_token": "<image>",
    "fake_image_token": "<fake_token_around_image>",
    "global_image_token": "<global-img>",
    "end_of_utterance_token": "<end_of_utterance>",
}
WORDS = ["[UNK]", "<pad>", *SPECIAL.values(), "push", "pull", "the", "cube", "now", "\n"]
TEXT = {
    "model_type": "llama", "vocab_size": len(WORDS), "hidden_size": 24, "intermediate_size": 32,
    "num_hidden_layers": 3, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 8,
    "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "pad_token_id": 1, "tie_word_embeddings": False,
}  # fmt: skip
VISION = {
    "model_type": "smolvlm_vision", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
    "num_attention_heads": 2, "image_size": 32, "patch_size": 8,
}  # fmt: skip


NORM_MAP = {"VISUAL": "IDENTITY", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"}
SMALL = {
    "chunk_size": 6, "n_action_steps": 4, "max_state_dim": 8, "max_action_dim": 5,
    "resize_imgs_with_padding": [32, 32], "tokenizer_max_length": 8, "num_steps": 3, "num_vlm_layers": 2,
}  # fmt: skip


def config(vlm: str, **changes: Any) -> dict[str, Any]:
    """The config.json of a small SmolVLA, as version 0.4.4 writes it."""
    return {
        "type": "smolvla", "n_obs_steps": 1, "input_features": INPUTS, "output_features": OUTPUTS, "device": "cpu",
        "use_amp": False, "use_peft": False, "push_to_hub": False, "repo_id": None, "private": None, "tags": None,
        "license": None, "pretrained_path": None, "normalization_mapping": NORM_MAP, "empty_cameras": 0,
        "adapt_to_pi_aloha": False, "use_delta_joint_actions_aloha": False, "use_cache": True,
        "freeze_vision_encoder": True, "train_expert_only": True, "train_state_proj": True, "optimizer_lr": 1e-4,
        "optimizer_betas": [0.9, 0.95], "optimizer_eps": 1e-8, "optimizer_weight_decay": 1e-10,
        "optimizer_grad_clip_norm": 10, "scheduler_warmup_steps": 1000, "scheduler_decay_steps": 30_000,
        "scheduler_decay_lr": 2.5e-6, "vlm_model_name": vlm, "load_vlm_weights": False,
        "add_image_special_tokens": False, "attention_mode": "cross_attn", "prefix_length": -1,
        "pad_language_to": "longest", "num_expert_layers": -1, "self_attn_every_n_layers": 2,
        "expert_width_multiplier": 0.75, "min_period": 0.004, "max_period": 4.0, "rtc_config": None,
        "compile_model": False, "compile_mode": "max-autotune", **SMALL, **changes,
    }  # fmt: skip


def write_vla_folder(folder: Path, vlm: str = "owner/model", **changes: Any) -> Path:
    """Write what LeRobot saves, but for the weights."""
    tokenizing = {"max_length": 8, "task_key": "task", "padding_side": "right", "padding": "longest",
                  "truncation": True, "tokenizer_name": vlm}  # fmt: skip
    words = [
        {"registry_name": "smolvla_new_line_processor", "config": {}},
        {"registry_name": "tokenizer_processor", "config": tokenizing},
    ]
    return write_folder(folder, config(vlm, **changes), words)


def write_vlm(folder: Path, **changes: Any) -> Path:
    """Write what describes a small SmolVLM, without weights, as the hub has it of a large one."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        PreTrainedTokenizerFast,
        SmolVLMConfig,
        SmolVLMImageProcessor,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.Split("\n", "isolated")]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="[UNK]", pad_token="<pad>", extra_special_tokens=SPECIAL
    )
    processor = SmolVLMProcessor(SmolVLMImageProcessor(), tokenizer, SmolVLMVideoProcessor(), image_seq_len=4)
    processor.save_pretrained(folder)
    text = {**TEXT, **{name: value for name, value in changes.items() if name in TEXT}}
    config = SmolVLMConfig(
        text_config=text, vision_config=VISION, scale_factor=2, image_token_id=2, pad_token_id=1, **changes
    )
    config.save_pretrained(folder)
    return folder


def save_smolvla(folder: Path, **changes: Any) -> Any:
    """Make a policy by LeRobot's own classes and let it save itself and its processors. Returns the policy."""
    lerobot = smolvla_classes("base")
    from lerobot.policies.smolvla.processor_smolvla import make_smolvla_pre_post_processors

    values, stats = lerobot_values(config(str(folder.parent / "vlm_of_the_hub"), **changes), lerobot)
    if not Path(values["vlm_model_name"]).exists():
        write_vlm(Path(values["vlm_model_name"]))
    torch.manual_seed(3)
    policy = lerobot.SmolVLAPolicy(lerobot.SmolVLAConfig(**values)).eval()
    for parameter in policy.parameters():  # what transformers starts from hardly depends on the observation
        torch.nn.init.normal_(parameter, std=0.3) if parameter.ndim > 1 else None
    policy.save_pretrained(folder)
    for processor in make_smolvla_pre_post_processors(policy.config, dataset_stats=stats):
        processor.save_pretrained(folder)
    return policy
