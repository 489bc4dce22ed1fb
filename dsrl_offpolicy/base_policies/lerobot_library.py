"""LeRobot's own classes, imported when a policy of LeRobot is loaded and never before."""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from dsrl_offpolicy.base_policies.lerobot_folder import CONFIG, WEIGHTS, DiffusionSpec, Feature, Normalizer
from dsrl_offpolicy.base_policies.lerobot_vla_folder import SmolVLASpec, Tokenizing
from dsrl_offpolicy.errors import InputError, one_line
from dsrl_offpolicy.files.checkpoint import check_weights, load_weights
from dsrl_offpolicy.files.plain import READ_ERRORS, reading
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


def smolvla_classes(flag: str) -> SimpleNamespace:
    """Import what SmolVLA needs besides, and return the classes of :func:`lerobot_classes` and its own.

    Raises:
        InputError: LeRobot or a library of its extra ``smolvla`` is not installed.
    """
    lerobot = lerobot_classes(flag)
    try:
        for name in ("transformers", "num2words"):
            importlib.import_module(name)
        configuration = importlib.import_module("lerobot.policies.smolvla.configuration_smolvla")
        modeling = importlib.import_module("lerobot.policies.smolvla.modeling_smolvla")
        importlib.import_module("lerobot.policies.smolvla.processor_smolvla")
        processor = importlib.import_module("lerobot.processor")
    except ImportError as error:
        raise InputError(f"{flag}: SmolVLA of lerobot cannot be imported: {not_installed(error)}") from error
    return SimpleNamespace(
        **vars(lerobot),
        SmolVLAConfig=configuration.SmolVLAConfig,
        SmolVLAPolicy=modeling.SmolVLAPolicy,
        make_att_2d_masks=modeling.make_att_2d_masks,
        ProcessorStepRegistry=processor.ProcessorStepRegistry,
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


def smolvla_config(lerobot: SimpleNamespace, spec: SmolVLASpec, vlm: Path) -> Any:
    """Return LeRobot's configuration of a SmolVLA, whose weights are not those of its language model's folder.

    Raises:
        ValueError: LeRobot finds that its entries do not fit together.
    """
    values = {name: getattr(spec, name) for name in spec.__dataclass_fields__}
    values |= {
        "input_features": _features(lerobot, spec.input_features),
        "output_features": _features(lerobot, spec.output_features),
        "vlm_model_name": str(vlm),
        "load_vlm_weights": False,
        "device": "cpu",
        "push_to_hub": False,
    }
    return lerobot.SmolVLAConfig(**values)


def local_vlm(folder: Path, name: str, where: str) -> Path:
    """Return the folder that describes a vision-language model: the first of these that is there.

    Args:
        folder: beside the policy's weights.
        name: a folder, or a model in the cache of Hugging Face's hub.
        where: the place to name in an error.

    Raises:
        InputError: none is there; nothing is downloaded.
    """
    for found in (folder, Path(name).expanduser()):
        if found.is_dir():
            return found
    hub = importlib.import_module("huggingface_hub")
    try:
        return Path(hub.snapshot_download(name, local_files_only=True))
    except (*READ_ERRORS, hub.errors.HFValidationError) as error:
        raise InputError(
            f"{where}: vlm_model_name: {name} is neither a folder nor in the cache of the hub, and nothing is "
            f"downloaded here; once: hf download {name} --include '*.json' '*.txt' --local-dir {folder}"
        ) from error


def local_tokenizer(folder: Path, where: str) -> Any:
    """Return a tokenizer from its files, of which none is code.

    Raises:
        InputError: the files are missing or damaged.
    """
    transformers = importlib.import_module("transformers")
    try:
        return transformers.AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # tokenizers raises no other class
        raise InputError(f"{where}: {folder}: expected a tokenizer, got: {one_line(error)}") from error


def tokenizing_steps(lerobot: SimpleNamespace, of: Tokenizing, tokenizer: Any) -> list[Any]:
    """Return LeRobot's steps that end an instruction with a new line and turn it into tokens."""
    step = lerobot.ProcessorStepRegistry.get
    return [
        step("smolvla_new_line_processor")(),
        step("tokenizer_processor")(
            tokenizer=tokenizer,
            max_length=of.max_length,
            task_key=of.task_key,
            padding_side=of.padding_side,
            padding=of.padding,
            truncation=of.truncation,
        ),
    ]


def build_strictly(
    build: Callable[[], nn.Module], tensors: dict[str, Tensor], where: str, *, as_saved: bool = False
) -> nn.Module:
    """Build a policy of LeRobot, and load its weights strictly.

    Args:
        build: makes it.
        tensors: its weights.
        where: the file to name in an error.
        as_saved: compute in the types of the weights, whatever LeRobot builds in.

    Raises:
        InputError: a tensor is missing, extra or of another shape; sizes of which LeRobot makes no network.
    """
    with torch.random.fork_rng(), contextlib.redirect_stdout(io.StringIO()):
        # First without memory: config.json may say any size, until the tensors are seen to be of it.
        with torch.device("meta"), reading(where.replace(WEIGHTS, CONFIG), "entries that make a network"):
            shapes = build()
            tensors = {**_shared(shapes, tensors), **tensors}
            check_weights(shapes, tensors, where)
        model = build()
    for name, value in model.named_parameters() if as_saved else ():
        value.data = value.data.to(tensors[name].dtype)
    load_weights(model, tensors, where)
    return model


def _shared(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that are saved under one of the names that they have."""
    names: dict[int, list[str]] = {}
    for name, value in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(value), []).append(name)
    saved = {name: of for group in names.values() for of in group if of in tensors for name in group}
    return {name: tensors[of] for name, of in saved.items() if name not in tensors}


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
