"""Folders of small SmolVLAs, saved by LeRobot's own classes, and of the language models that describe them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lerobot_folders import ACTION, CAMERAS, STATE, feature, statistics
from torch import Tensor

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


def write_vlm(folder: Path) -> Path:
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
    config = SmolVLMConfig(
        text_config=TEXT, vision_config=VISION, scale_factor=2, image_token_id=2, pad_token_id=1
    )
    config.save_pretrained(folder)
    return folder


def save_smolvla(folder: Path, **changes: Any) -> Any:
    """Make a policy by LeRobot's own classes and let it save itself and its processors. Returns the policy."""
    lerobot = smolvla_classes("base")
    from lerobot.policies.smolvla.processor_smolvla import make_smolvla_pre_post_processors

    values: dict[str, Any] = {
        "input_features": INPUTS, "output_features": OUTPUTS, "device": "cpu", "push_to_hub": False,
        "chunk_size": 6, "n_action_steps": 4, "max_state_dim": 8, "max_action_dim": 5,
        "resize_imgs_with_padding": (32, 32), "tokenizer_max_length": 8, "num_steps": 3, "num_vlm_layers": 2,
        "vlm_model_name": str(folder.parent / "vlm_of_the_hub"), **changes,
    }  # fmt: skip
    if not Path(values["vlm_model_name"]).exists():
        write_vlm(Path(values["vlm_model_name"]))
    stats: dict[str, dict[str, Tensor]] = {}
    for name, value in statistics({**values["input_features"], **values["output_features"]}).items():
        of, _, statistic = name.rpartition(".")
        stats.setdefault(of, {})[statistic] = value
    for group in ("input_features", "output_features"):
        values[group] = {
            name: lerobot.PolicyFeature(type=lerobot.FeatureType(f["type"]), shape=tuple(f["shape"]))
            for name, f in values[group].items()
        }
    torch.manual_seed(3)
    policy = lerobot.SmolVLAPolicy(lerobot.SmolVLAConfig(**values)).eval()
    for parameter in policy.parameters():  # what transformers starts from hardly depends on the observation
        torch.nn.init.normal_(parameter, std=0.3) if parameter.ndim > 1 else None
    policy.save_pretrained(folder)
    for processor in make_smolvla_pre_post_processors(policy.config, dataset_stats=stats):
        processor.save_pretrained(folder)
    return policy
