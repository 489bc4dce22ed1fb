"""What a folder of LeRobot's ``save_pretrained`` holds, read as if a stranger wrote it, without LeRobot."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec
import torch
from msgspec import Meta
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dsrl_offpolicy.configs.ranges import Positive, Widths
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.files.plain import READ_ERRORS, checked, shown

CONFIG, WEIGHTS = "config.json", "model.safetensors"
BEFORE, AFTER = "policy_preprocessor.json", "policy_postprocessor.json"
STATE, ENV_STATE, ACTION = "observation.state", "observation.environment_state", "action"

LARGEST_JSON = 2**20
"""Bytes of a JSON file; real ones have a few thousand."""

DEFAULT_STEPS = 10
"""Of DDIM, where the policy was sampled by DDPM or names no number."""

BEYOND = 1e-3
"""How far beyond [-1, 1] recorded actions may reach."""

DRAWS = "it draws its noise itself, and takes none from outside"
IGNORES = "it accepts noise and ignores it"
LATER = "it can be steered, but this version cannot do it yet"
VLAS = ("smolvla",)
"""Vision-language-action policies that can be."""
REFUSED = {
    "act": "its actions do not depend on noise: its latent is zero when it acts",
    "vqbet": "it draws discrete codes, and has no noise",
    "tdmpc": "it plans among actions that it draws, and has no noise",
    "sac": "it is no diffusion or flow policy",
    "gaussian_actor": "it is no diffusion or flow policy",
    "pi0_fast": "it writes actions as text, and has no noise",
    "sarm": "it is a model of rewards",
    "xvla": IGNORES,
    "vla_jepa": IGNORES,
    "pi0": LATER,
    "pi05": LATER,
    **dict.fromkeys(
        ("groot", "wall_x", "multi_task_dit", "eo1", "evo1", "fastwam", "lingbot_va", "molmoact2"), DRAWS
    ),
}
"""LeRobot's policies of other types, and why they are not loaded."""

Size = Annotated[int, Meta(ge=1, le=100_000)]
Pixels = Annotated[int, Meta(ge=1, le=8192)]
Rows = Annotated[int, Meta(ge=1, le=1024)]
Shape = Annotated[tuple[Size, ...], Meta(min_length=1, max_length=3)]
FeatureType = Literal["STATE", "VISUAL", "ENV", "ACTION", "REWARD", "LANGUAGE"]
Norm = Literal["MIN_MAX", "MEAN_STD", "IDENTITY", "QUANTILES", "QUANTILE10"]
NEEDED = {"MIN_MAX": ("min", "max"), "MEAN_STD": ("mean", "std"), "IDENTITY": (), "QUANTILES": ("q01", "q99"),
          "QUANTILE10": ("q10", "q90")}  # fmt: skip
"""The statistics that a normalisation reads."""

NO_PART_OF_SAMPLING = {
    "type", "device", "use_amp", "use_peft", "push_to_hub", "repo_id", "private", "tags", "license",
    "pretrained_path", "pretrained_revision", "gradient_checkpointing", "drop_n_last_frames", "crop_is_random",
    "pretrained_backbone_weights", "compile_model", "compile_mode", "do_mask_loss_for_padding",
    "optimizer_lr", "optimizer_betas", "optimizer_eps", "optimizer_weight_decay", "scheduler_name",
    "scheduler_warmup_steps", "normalization_mapping",
}  # fmt: skip
"""Entries of config.json that training or sharing needs, or that the processors say anew."""


@dataclass(frozen=True)
class Feature:
    """One input or output of a policy.

    Attributes:
        type: what it is.
        shape: of one frame; an image's is (3, height, width).
    """

    type: FeatureType
    shape: Shape


@dataclass(frozen=True)
class PolicySpec:
    """What every config.json says of what a policy reads and returns."""

    input_features: dict[str, Feature]
    output_features: dict[str, Feature]

    @property
    def cameras(self) -> list[str]:
        """Names of the images, in the order in which the policy reads them."""
        return [name for name, feature in self.input_features.items() if feature.type == "VISUAL"]

    @property
    def vectors(self) -> dict[str, int]:
        """Widths of what a state is made of, in its order: the robot's, then the environment's."""
        names = [name for name in (STATE, ENV_STATE) if name in self.input_features]
        return {name: self.input_features[name].shape[0] for name in names}

    @property
    def action_dim(self) -> int:
        """A."""
        return self.output_features[ACTION].shape[0]

    def check_repeated(self, options: Mapping[str, Any], entries: Mapping[str, str]) -> None:
        """Refuse options that contradict config.json, or mean nothing for a policy of LeRobot.

        Args:
            options: by name.
            entries: the entries of config.json that options may only repeat, by option.

        Raises:
            InputError: naming the option.
        """
        for name, entry in entries.items():
            if options.get(name, getattr(self, entry)) != getattr(self, entry):
                raise InputError(
                    f"{name}: expected {getattr(self, entry)}, {entry} of {CONFIG}, got {options[name]}"
                )
        if "weights" in options:
            raise InputError("weights: expected none for a policy of LeRobot, which has one set of them")


@dataclass(frozen=True)
class DiffusionSpec(PolicySpec):
    """What sampling needs of the config.json of a DiffusionPolicy, under LeRobot's names.

    Defaults stand where earlier versions of LeRobot do not write an entry, and mean what these did. LeRobot's own
    defaults differ between its versions, so every entry is handed to it.
    """

    n_obs_steps: Rows
    horizon: Rows
    n_action_steps: Rows
    down_dims: Widths
    kernel_size: Annotated[int, Meta(ge=1, le=99)]
    n_groups: Annotated[int, Meta(ge=1, le=16384)]
    diffusion_step_embed_dim: Annotated[int, Meta(ge=4, le=16384)]
    use_film_scale_modulation: bool
    noise_scheduler_type: Literal["DDPM", "DDIM"]
    num_train_timesteps: Annotated[int, Meta(ge=1, le=10_000)]
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
    beta_start: Annotated[float, Meta(gt=0, lt=1)]
    beta_end: Annotated[float, Meta(gt=0, lt=1)]
    prediction_type: Literal["epsilon", "sample"]
    clip_sample: bool
    clip_sample_range: Positive
    num_inference_steps: Annotated[int, Meta(ge=1, le=10_000)] | None
    vision_backbone: Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
    use_group_norm: bool
    spatial_softmax_num_keypoints: Annotated[int, Meta(ge=1, le=4096)]
    crop_shape: tuple[Pixels, Pixels] | None
    resize_shape: tuple[Pixels, Pixels] | None = None
    crop_ratio: Annotated[float, Meta(gt=0, le=1)] = 1.0
    use_separate_rgb_encoder_per_camera: bool = False

    @property
    def steps(self) -> int:
        """S, steps of DDIM; see ``DEFAULT_STEPS``."""
        return self.num_inference_steps or min(DEFAULT_STEPS, self.num_train_timesteps)

    def with_options(self, options: Mapping[str, Any]) -> DiffusionSpec:
        """Return the spec with other executed rows or steps of DDIM.

        Raises:
            InputError: an option is unknown, out of range, or contradicts config.json.
        """
        self.check_repeated(options, {"obs_horizon": "n_obs_steps", "pred_horizon": "horizon"})
        if "instruction" in options:
            raise InputError("instruction: expected none for a DiffusionPolicy of LeRobot, which reads no words")
        spec = replace(
            self,
            n_action_steps=options.get("act_horizon", self.n_action_steps),
            num_inference_steps=options.get("denoising_steps", self.num_inference_steps),
        )
        for name, value, most in (
            ("act_horizon", spec.n_action_steps, spec.horizon - spec.n_obs_steps + 1),
            ("denoising_steps", spec.steps, spec.num_train_timesteps),
        ):
            if not 1 <= value <= most:
                raise InputError(f"{name}: expected a whole number from 1 to {most}, got {shown(value)}")
        return spec


@dataclass(frozen=True)
class Normalizer:
    """A normalising step of a processor.

    Attributes:
        features: what it knows.
        norm_map: the normalisation of each type of feature; none for a type that is not there.
        eps: added to standard deviations.
        keys: the only observations that it normalises; None for all.
        stats: of each feature, by name.
    """

    features: dict[str, Feature]
    norm_map: dict[str, Norm]
    eps: float
    keys: list[str] | None
    stats: dict[str, dict[str, Tensor]]


def read_type(folder: Path, flag: str) -> tuple[str, dict[str, Any]]:
    """Return the type of the policy, and its config.json.

    Raises:
        InputError: no such file or no JSON, an unknown type, or one that cannot be steered.
    """
    path = folder / CONFIG
    content, where = read_json(path, flag), f"{flag}: {path}"
    kind = content.get("type")
    if isinstance(kind, str) and kind in REFUSED:
        raise InputError(f"{flag}: a {kind} policy of LeRobot is not steered: {REFUSED[kind]}")
    if kind not in ("diffusion", *VLAS):
        raise InputError(f"{where}: type: expected {', '.join(('diffusion', *VLAS))}, got {shown(kind)}")
    if content.get("use_peft"):
        raise InputError(f"{where}: use_peft: expected false, got an adapter; merge it into the weights first")
    return kind, content


def read_diffusion(content: Mapping[str, Any], where: str) -> DiffusionSpec:
    """Check the config.json of a DiffusionPolicy.

    Args:
        content: of the file.
        where: the place to name in an error.

    Raises:
        InputError: an entry is missing, unknown, of another type or out of range; they do not fit together.
    """
    spec: DiffusionSpec = checked(content, DiffusionSpec, where)
    check_entries(content, DiffusionSpec, NO_PART_OF_SAMPLING, where)
    check_features(spec, where)
    for name, value, most in (
        ("n_action_steps", spec.n_action_steps, spec.horizon - spec.n_obs_steps + 1),
        ("num_inference_steps", spec.steps, spec.num_train_timesteps),
    ):
        if value > most:
            raise InputError(f"{where}: {name}: expected at most {most}, got {value}")
    return spec


def check_entries(content: Mapping[str, Any], spec: type, others: set[str], where: str) -> None:
    """Refuse entries of config.json that are neither fields of ``spec`` nor among ``others``.

    Raises:
        InputError: naming the first.
    """
    if unknown := sorted(set(content) - {f.name for f in fields(spec)} - others):
        raise InputError(f"{where}: entry {shown(unknown[0])} is unknown; it may change what the policy computes")


def check_features(spec: PolicySpec, where: str) -> None:
    """Check what a policy reads and returns.

    Raises:
        InputError: no action or no state, something that is neither state nor image, images of several shapes.
    """
    action = spec.output_features.get(ACTION)
    if action is None or action.type != "ACTION" or len(action.shape) != 1:
        raise InputError(f"{where}: output_features: expected {ACTION!r} of one dimension, got another")
    sizes = set()
    for name, feature in spec.input_features.items():
        what = f"{where}: input_features: {shown(name)}"
        if feature.type == "VISUAL":
            if len(feature.shape) != 3 or feature.shape[0] != 3 or max(feature.shape[1:]) > 8192:
                raise InputError(f"{what}: expected the shape (3, height, width), got {feature.shape}")
            sizes.add(feature.shape)
        elif {STATE: "STATE", ENV_STATE: "ENV"}.get(name) != feature.type:
            raise InputError(f"{what}: expected {STATE}, {ENV_STATE} or images, got {feature.type}")
        elif len(feature.shape) != 1:
            raise InputError(f"{what}: expected one dimension, got {feature.shape}")
    if STATE not in spec.input_features:
        raise InputError(f"{where}: input_features: expected {STATE!r}, got none")
    if len(sizes) > 1:
        raise InputError(f"{where}: input_features: expected images of one shape, got {len(sizes)}")


@dataclass(frozen=True)
class Step:
    """One step of a processor, as its JSON says it."""

    registry_name: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    state_file: str | None = None


@dataclass(frozen=True)
class _Pipeline:
    steps: list[Step]


@dataclass(frozen=True)
class _Normalizing:
    features: dict[str, Feature]
    norm_map: dict[str, Norm]
    eps: Annotated[float, Meta(ge=0, le=1)] = 1e-8
    normalize_observation_keys: list[str] | None = None


PLAIN = {"rename_observations_processor", "to_batch_processor", "device_processor"}
"""Steps that bring observations into LeRobot's form."""


def read_steps(folder: Path, file: str, flag: str) -> list[Step]:
    """Read a processor, but for the steps that bring observations into LeRobot's form: here they come in it.

    Raises:
        InputError: the file is missing or damaged.
    """
    path = folder / file
    if not path.is_file():
        raise InputError(
            f"{flag}: expected {file} in {folder}, without which states and actions have no scale; folders of "
            "LeRobot before 0.4 get one by python -m lerobot.processor.migrate_policy_normalization"
        )
    pipeline: _Pipeline = checked(read_json(path, flag), _Pipeline, f"{flag}: {path}")
    return [step for step in pipeline.steps if step.registry_name not in PLAIN]


def read_normalizer(
    folder: Path, file: str, step: str, spec: PolicySpec, flag: str, others: Collection[str] = ()
) -> Normalizer:
    """Read the normalising step of a processor, and its statistics.

    Args:
        folder: of the policy.
        file: the processor's JSON.
        step: the name of its normalising step.
        spec: of the policy.
        flag: the setting to name in an error.
        others: names of steps that somebody else reads.

    Raises:
        InputError: the file is missing or damaged, has other steps, or does not fit the policy.
    """
    found, where = None, f"{flag}: {folder / file}"
    for entry in read_steps(folder, file, flag):
        if entry.registry_name == step and found is None:
            found = entry
        elif entry.registry_name not in others:
            raise InputError(f"{where}: step {shown(entry.registry_name)} is unknown, or stands there twice")
    if found is None or found.state_file is None:
        raise InputError(f"{where}: expected a step {step} with statistics, got none")
    settings: _Normalizing = checked(found.config, _Normalizing, f"{where}: {step}")
    if unknown := sorted(set(settings.norm_map) - set(get_args(FeatureType))):
        raise InputError(f"{where}: norm_map: type {shown(unknown[0])} of features is unknown")
    if Path(found.state_file).name != found.state_file:
        raise InputError(f"{where}: state_file: expected the name of a file beside it, got another path")
    tensors = read_safetensors(folder / found.state_file, flag)
    stats: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        feature, _, statistic = name.rpartition(".")
        is_image = feature in settings.features and settings.features[feature].type == "VISUAL"
        flat = is_image and value.ndim == 1  # as some versions save them
        stats.setdefault(feature, {})[statistic] = (value[:, None, None] if flat else value).float()
    normalizer = Normalizer(
        settings.features, dict(settings.norm_map), settings.eps, settings.normalize_observation_keys, stats
    )
    expected = spec.output_features if step.startswith("un") else spec.input_features
    _check_statistics(normalizer, expected, where, f"{flag}: {folder / found.state_file}")
    return normalizer


def _check_statistics(normalizer: Normalizer, expected: dict[str, Feature], where: str, stats_where: str) -> None:
    for name, feature in expected.items():
        if normalizer.features.get(name) != feature:
            raise InputError(f"{where}: features: expected {name} as in {CONFIG}, got none or another")
    for name, feature in normalizer.features.items():
        norm = normalizer.norm_map.get(feature.type, "IDENTITY")
        left_out = normalizer.keys is not None and name not in normalizer.keys and feature.type != "ACTION"
        if left_out or name not in expected:
            continue
        shape = (feature.shape[0], 1, 1) if feature.type == "VISUAL" else feature.shape
        for statistic in NEEDED[norm]:
            value = normalizer.stats.get(name, {}).get(statistic)
            if value is None or value.shape != shape or not bool(value.isfinite().all()):
                got = "none" if value is None else list(value.shape)
                raise InputError(
                    f"{stats_where}: {name}.{statistic}: expected finite numbers of shape {list(shape)}, got {got}"
                )


def check_action_bounds(after: Normalizer, where: str) -> None:
    """Check that a policy's actions are for bounds of [-1, 1].

    Raises:
        InputError: demonstrations had actions beyond them.
    """
    held = after.stats.get(ACTION, {})
    bounds = [held[name] for name in ("min", "max") if name in held]
    reach = max((float(bound.abs().max()) for bound in bounds), default=0.0)
    if not reach <= 1 + BEYOND:
        raise InputError(
            f"{where}: action.min, action.max: expected actions within [-1, 1], the bounds of the environments "
            f"that are steered here, got {reach:g}"
        )


def read_safetensors(path: Path, flag: str) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file.

    Raises:
        InputError: no such file, or damaged.
    """
    if not path.is_file():
        raise InputError(f"{flag}: expected {path.name} of LeRobot in {path.parent}, got none")
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (*READ_ERRORS, SafetensorError) as error:
        raise InputError(
            f"{flag}: expected tensors in {path}, which is damaged ({type(error).__name__})"
        ) from error


def read_json(path: Path, flag: str, largest: int = LARGEST_JSON) -> dict[str, Any]:
    """Read a JSON file of fields by name.

    Raises:
        InputError: no such file, too large, or something else.
    """
    if not path.is_file():
        raise InputError(f"{flag}: expected {path.name} of LeRobot in {path.parent}, got none")
    try:
        if path.stat().st_size > largest:
            raise ValueError("it is too large")
        content = msgspec.json.decode(path.read_bytes())
    except (*READ_ERRORS, msgspec.DecodeError) as error:
        raise InputError(f"{flag}: {path}: expected JSON, got: {' '.join(str(error).split())[:100]}") from error
    if not isinstance(content, dict):
        raise InputError(f"{flag}: {path}: expected fields by name, got {shown(content)}")
    return content


def without_compilation(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights under the names that they have where a policy was not compiled when it was saved."""
    return {name.replace("._orig_mod.", "."): value for name, value in tensors.items()}


def statistics_digest(normalizers: list[Normalizer]) -> list[Any]:
    """Return what normalisation computes with, as plain values."""
    return [
        (n.eps, sorted(n.norm_map.items()), n.keys, sorted(_lists(n.stats).items(), key=str)) for n in normalizers
    ]


def _lists(stats: dict[str, dict[str, Tensor]]) -> dict[str, Any]:
    return {f"{name}.{key}": torch.as_tensor(v).tolist() for name, s in stats.items() for key, v in s.items()}
