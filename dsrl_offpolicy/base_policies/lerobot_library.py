"""LeRobot's own classes, imported when a policy of LeRobot is loaded and never before."""

from __future__ import annotations

import importlib
import sys
from types import SimpleNamespace
from typing import Any

import torch

from dsrl_offpolicy.base_policies.lerobot_folder import DiffusionSpec, Feature, Normalizer
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.registry import not_installed

_OPERATORS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_kept: list[torch.library.Library] = []


def lerobot_classes(flag: str) -> SimpleNamespace:
    """Import LeRobot, and return the classes that are used here, by name.

    Raises:
        InputError: LeRobot, or what it needs for its DiffusionPolicy, is not installed.
    """
    try:
        _import_torchvision()
        configuration = importlib.import_module("lerobot.policies.diffusion.configuration_diffusion")
        modeling = importlib.import_module("lerobot.policies.diffusion.modeling_diffusion")
        processor = importlib.import_module("lerobot.processor.normalize_processor")
        types = importlib.import_module("lerobot.configs.types")
    except ImportError as error:
        raise InputError(f"{flag}: lerobot cannot be imported: {not_installed(error)}") from error
    return SimpleNamespace(
        DiffusionConfig=configuration.DiffusionConfig,
        DiffusionPolicy=modeling.DiffusionPolicy,
        NormalizerProcessorStep=processor.NormalizerProcessorStep,
        UnnormalizerProcessorStep=processor.UnnormalizerProcessorStep,
        PolicyFeature=types.PolicyFeature,
        FeatureType=types.FeatureType,
        NormalizationMode=types.NormalizationMode,
        TransitionKey=processor.TransitionKey,
    )


def _import_torchvision() -> None:
    """Import torchvision, also a build of it whose operators do not load beside this torch.

    Its import then fails at two operators that it wants to describe. No policy of LeRobot calls them, so it is
    enough that they are declared.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
        for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for schema in _OPERATORS.values():
            library.define(schema)
        _kept.append(library)  # declared as long as it is held
        importlib.import_module("torchvision")


def diffusion_config(lerobot: SimpleNamespace, spec: DiffusionSpec) -> Any:
    """Return LeRobot's configuration of a DiffusionPolicy that samples by DDIM.

    Raises:
        ValueError: LeRobot finds that its entries do not fit together.
    """
    values = {name: getattr(spec, name) for name in spec.__dataclass_fields__}
    values |= {
        "input_features": _features(lerobot, spec.input_features),
        "output_features": _features(lerobot, spec.output_features),
        "noise_scheduler_type": "DDIM",
        "num_inference_steps": spec.steps,
        "pretrained_backbone_weights": None,  # would be downloaded; the folder holds what it was trained to
        "device": "cpu",
        "push_to_hub": False,
    }
    return lerobot.DiffusionConfig(**values)


def normalizing_step(lerobot: SimpleNamespace, of: Normalizer, *, inverse: bool) -> Any:
    """Return LeRobot's step of a processor that normalises, or with ``inverse`` the one that goes back."""
    step = lerobot.UnnormalizerProcessorStep if inverse else lerobot.NormalizerProcessorStep
    return step(
        features=_features(lerobot, of.features),
        norm_map={lerobot.FeatureType(k): lerobot.NormalizationMode(v) for k, v in of.norm_map.items()},
        stats=of.stats,
        eps=of.eps,
        normalize_observation_keys=None if of.keys is None else set(of.keys),
    )


def _features(lerobot: SimpleNamespace, features: dict[str, Feature]) -> dict[str, Any]:
    return {
        name: lerobot.PolicyFeature(type=lerobot.FeatureType(f.type), shape=tuple(f.shape))
        for name, f in features.items()
    }
