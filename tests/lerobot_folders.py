"""Folders as LeRobot saves them: written by hand, and where LeRobot is installed by its own classes."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from dsrl_offpolicy.base_policies.lerobot_library import lerobot_classes

needs_lerobot = pytest.mark.skipif(
    importlib.util.find_spec("lerobot") is None,
    reason="needs LeRobot (make test-lerobot makes an environment and runs these)",
)

STATE, ENV, ACTION = "observation.state", "observation.environment_state", "action"
CAMERAS = ("observation.images.top", "observation.images.wrist")
IMAGE = [3, 36, 40]

NORM_MAP = {"VISUAL": "MEAN_STD", "STATE": "MIN_MAX", "ACTION": "MIN_MAX", "ENV": "MIN_MAX"}


def feature(kind: str, *shape: int) -> dict[str, Any]:
    return {"type": kind, "shape": list(shape)}


STATES = {STATE: feature("STATE", 4), ENV: feature("ENV", 7)}
"""11 numbers, as many as Gymnasium's Hopper has."""
IMAGES = {STATE: feature("STATE", 4), **{name: feature("VISUAL", *IMAGE) for name in CAMERAS}}


def config(**changes: Any) -> dict[str, Any]:
    """The config.json of a small DiffusionPolicy of states, as version 0.4.4 writes it."""
    return {
        "type": "diffusion", "n_obs_steps": 2, "input_features": STATES,
        "output_features": {ACTION: feature("ACTION", 3)}, "device": "cpu", "use_amp": False, "use_peft": False,
        "push_to_hub": False, "repo_id": None, "private": None, "tags": None, "license": None,
        "pretrained_path": None, "horizon": 8, "n_action_steps": 4, "normalization_mapping": NORM_MAP,
        "drop_n_last_frames": 3, "vision_backbone": "resnet18", "resize_shape": None, "crop_ratio": 1.0,
        "crop_shape": None, "crop_is_random": True, "pretrained_backbone_weights": None, "use_group_norm": True,
        "spatial_softmax_num_keypoints": 5, "use_separate_rgb_encoder_per_camera": False, "down_dims": [16, 24],
        "kernel_size": 3, "n_groups": 4, "diffusion_step_embed_dim": 8, "use_film_scale_modulation": True,
        "noise_scheduler_type": "DDIM", "num_train_timesteps": 20, "beta_schedule": "squaredcos_cap_v2",
        "beta_start": 0.0001, "beta_end": 0.02, "prediction_type": "epsilon", "clip_sample": True,
        "clip_sample_range": 1.0, "num_inference_steps": 5, "compile_model": False,
        "compile_mode": "reduce-overhead", "do_mask_loss_for_padding": False, "optimizer_lr": 0.0001,
        "optimizer_betas": [0.95, 0.999], "optimizer_eps": 1e-8, "optimizer_weight_decay": 1e-6,
        "scheduler_name": "cosine", "scheduler_warmup_steps": 500, **changes,
    }  # fmt: skip


def statistics(features: dict[str, Any]) -> dict[str, Tensor]:
    """Those that a data set would have: bounds, means and deviations of every feature."""
    generator, found = torch.Generator().manual_seed(7), {}
    for name, held in features.items():
        shape = (held["shape"][0], 1, 1) if held["type"] == "VISUAL" else tuple(held["shape"])
        low = -0.9 + 0.5 * torch.rand(shape, generator=generator)
        found |= {f"{name}.min": low, f"{name}.max": low + 0.3 + torch.rand(shape, generator=generator)}
        found |= {f"{name}.mean": low + 0.2, f"{name}.std": 0.2 + torch.rand(shape, generator=generator)}
    return found


BEFORE_STATS = "policy_preprocessor_step_3_normalizer_processor.safetensors"
AFTER_STATS = "policy_postprocessor_step_0_unnormalizer_processor.safetensors"


def write_folder(
    folder: Path, settings: dict[str, Any] | None = None, words: Sequence[dict[str, Any]] = ()
) -> Path:
    """Write what LeRobot saves, but for the weights; ``words`` are the steps that read an instruction."""
    settings = settings or config()
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(settings))
    inputs, outputs = settings["input_features"], settings["output_features"]
    stats = statistics({**inputs, **outputs})
    norm = {"eps": 1e-8, "norm_map": settings["normalization_mapping"]}
    device = {"registry_name": "device_processor", "config": {"device": "cpu", "float_dtype": None}}
    before = [
        {"registry_name": "rename_observations_processor", "config": {"rename_map": {}}},
        {"registry_name": "to_batch_processor", "config": {}},
        *words,
        device,
        {
            "registry_name": "normalizer_processor",
            "config": {**norm, "features": {**inputs, **outputs}},
            "state_file": BEFORE_STATS.replace("3", str(3 + len(words))),
        },
    ]
    after = [
        {
            "registry_name": "unnormalizer_processor",
            "config": {**norm, "features": outputs},
            "state_file": AFTER_STATS,
        },
        device,
    ]
    for name, steps, file in (
        ("policy_preprocessor", before, BEFORE_STATS.replace("3", str(3 + len(words)))),
        ("policy_postprocessor", after, AFTER_STATS),
    ):
        (folder / f"{name}.json").write_text(json.dumps({"name": name, "steps": steps}))
        save_file(stats, folder / file)
    return folder


def lerobot_values(settings: dict[str, Any], lerobot: Any) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """Return what LeRobot's configuration takes for the ``settings`` of a config.json, and the statistics of every
    feature, as its processors take them."""
    values = {name: value for name, value in settings.items() if name != "type"}
    stats: dict[str, dict[str, Tensor]] = {}
    for name, value in statistics({**values["input_features"], **values["output_features"]}).items():
        of, _, statistic = name.rpartition(".")
        stats.setdefault(of, {})[statistic] = value
    for group in ("input_features", "output_features"):
        values[group] = {
            name: lerobot.PolicyFeature(type=lerobot.FeatureType(f["type"]), shape=tuple(f["shape"]))
            for name, f in values[group].items()
        }
    values["normalization_mapping"] = {
        kind: lerobot.NormalizationMode(mode) for kind, mode in values["normalization_mapping"].items()
    }
    return values, stats


def save_by_lerobot(folder: Path, **changes: Any) -> Any:
    """Make a policy by LeRobot's own classes and let it save itself and its processors. Returns the policy."""
    lerobot_classes("base")  # makes torchvision importable
    from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
    from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
    from lerobot.policies.diffusion.processor_diffusion import make_diffusion_pre_post_processors

    values, stats = lerobot_values(config(**changes), lerobot_classes("base"))
    torch.manual_seed(3)
    policy = DiffusionPolicy(DiffusionConfig(**values)).eval()
    for parameter in policy.parameters():  # what LeRobot starts from hardly depends on the observation
        torch.nn.init.normal_(parameter, std=0.15) if parameter.ndim > 1 else None
    policy.save_pretrained(folder)
    for processor in make_diffusion_pre_post_processors(policy.config, dataset_stats=stats):
        processor.save_pretrained(folder)
    return policy
