"""What is refused of a folder of LeRobot before LeRobot is needed: types, entries, processors, statistics."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot_folders import ACTION, AFTER_STATS, BEFORE_STATS, ENV, IMAGES, STATE, config, feature, write_folder
from safetensors.torch import load_file, save_file

from dsrl_offpolicy import load_base_policy
from dsrl_offpolicy.base_policies.lerobot_folder import REFUSED, read_diffusion
from dsrl_offpolicy.errors import InputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "policy")


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(InputError) as error:
        load_base_policy(f"lerobot:{folder}", **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_folder_itself_is_refused_for_its_weights_alone(folder: Path) -> None:
    """What the other tests refuse is what they changed."""
    assert "expected model.safetensors of LeRobot in" in refusal(folder)


@pytest.mark.skipif(importlib.util.find_spec("lerobot") is not None, reason="LeRobot is installed")
def test_without_lerobot_its_extra_is_named(folder: Path) -> None:
    save_file({"diffusion.x": torch.ones(2)}, folder / "model.safetensors")
    assert "pip install 'dsrl_offpolicy[lerobot]'" in refusal(folder)


def test_lerobot_is_not_imported_before_a_policy_of_it_is_loaded() -> None:
    code = "import dsrl_offpolicy.base_policies.lerobot, sys; sys.exit('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("act", "its actions do not depend on noise"),
        ("vqbet", "has no noise"),
        ("tdmpc", "plans among actions"),
        ("xvla", "accepts noise and ignores it"),
        ("groot", "draws its noise itself"),
    ],
)
def test_policies_without_noise_of_ours_are_refused_by_name(folder: Path, kind: str, why: str) -> None:
    (folder / "config.json").write_text(json.dumps({"type": kind}))
    message = refusal(folder)
    assert message.startswith(f"base: a {kind} policy of LeRobot is not steered: ") and why in message
    assert kind in REFUSED


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"type": "unheard_of"}, "type: expected diffusion, smolvla, got 'unheard_of'"),
        ({"type": None}, "type: expected diffusion, smolvla, got None"),
        ({"horizon": None}, "horizon: expected a whole number, got None"),
        ({"horizon": "8"}, "horizon: expected a whole number, got '8'"),
        ({"n_action_steps": 8}, "n_action_steps: expected at most 7, got 8"),
        ({"num_inference_steps": 21}, "num_inference_steps: expected at most 20, got 21"),
        ({"noise_scheduler_type": "PNDM"}, "noise_scheduler_type: expected DDPM, DDIM"),
        ({"vision_backbone": "resnet"}, "vision_backbone: expected resnet18, resnet34"),
        ({"down_dims": [10**9]}, "down_dims"),
        ({"use_peft": True}, "use_peft: expected false"),
        ({"guidance": 2.0}, "entry 'guidance' is unknown"),
        ({"input_features": {ENV: feature("ENV", 7)}}, "input_features: expected 'observation.state', got none"),
        ({"input_features": {STATE: feature("STATE", 4, 2)}}, "expected one dimension, got (4, 2)"),
        ({"input_features": {STATE: feature("ENV", 4)}}, "got ENV"),
        ({"input_features": {**IMAGES, "observation.images.side": feature("VISUAL", 3, 8, 8)}}, "of one shape"),
        ({"input_features": {**IMAGES, "observation.images.side": feature("VISUAL", 1, 8, 8)}}, "the shape (3, h"),
        ({"output_features": {}}, "output_features: expected 'action'"),
    ],
)  # fmt: skip
def test_a_config_that_does_not_fit(folder: Path, changes: dict[str, Any], said: str) -> None:
    (folder / "config.json").write_text(json.dumps(config(**changes)))
    message = refusal(folder)
    assert said in message and "config.json" in message


def test_a_missing_entry_is_named(folder: Path) -> None:
    content = config()
    content.pop("use_group_norm")  # versions of LeRobot differ in its default
    (folder / "config.json").write_text(json.dumps(content))
    assert "expected a field 'use_group_norm', got none" in refusal(folder)


def test_entries_of_training_may_be_missing() -> None:
    content = {name: v for name, v in config().items() if not name.startswith(("optimizer", "resize", "compile"))}
    assert read_diffusion(content, "here") == read_diffusion(config(), "here")


def test_missing_or_damaged_files(folder: Path, tmp_path: Path) -> None:
    assert "expected a folder with config.json of LeRobot, nowhere is none" in refusal(Path("nowhere"))
    (tmp_path / "empty").mkdir()
    assert "expected config.json of LeRobot in" in refusal(tmp_path / "empty")
    (folder / "config.json").write_text("{")
    assert "config.json: expected JSON, got" in refusal(folder)
    (folder / "config.json").write_text("[1]")
    assert "config.json: expected fields by name" in refusal(folder)
    (folder / "config.json").write_text("[" * 100_000)
    assert "config.json: expected JSON, got" in refusal(folder)
    (folder / "config.json").write_text(f'{{"type": "{"x" * 2**20}"}}')
    assert "too large" in refusal(folder)


def test_a_folder_without_processors_is_told_how_to_get_them(folder: Path) -> None:
    (folder / "policy_postprocessor.json").unlink()
    assert "expected policy_postprocessor.json" in refusal(folder)
    (folder / "policy_preprocessor.json").unlink()
    assert "lerobot.processor.migrate_policy_normalization" in refusal(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop(3), "expected a step normalizer_processor with statistics, got none"),
        (lambda s: s.append(s[3]), "step 'normalizer_processor' is unknown, or stands there twice"),
        (lambda s: s.append({"registry_name": "delta_action"}), "step 'delta_action' is unknown"),
        (lambda s: s.append({"class": "os.system", "config": {}}), "step None is unknown"),
        (lambda s: s[3].update(state_file="../other.safetensors"), "expected the name of a file beside it"),
        (lambda s: s[3].update(state_file="none.safetensors"), "expected none.safetensors of LeRobot in"),
        (lambda s: s[3]["config"]["features"].pop(ENV), f"features: expected {ENV} as in config.json"),
        (lambda s: s[3]["config"]["features"].update({STATE: feature("STATE", 5)}), f"expected {STATE} as in"),
        (lambda s: s[3]["config"]["norm_map"].update(STATE="SQUARE"), "expected MIN_MAX, MEAN_STD"),
        (lambda s: s[3]["config"]["norm_map"].update(SOUND="MIN_MAX"), "norm_map: type 'SOUND' of features is"),
        (lambda s: s[3]["config"]["norm_map"].update(STATE="QUANTILES"), f"{STATE}.q01: expected finite numbers"),
    ],
)  # fmt: skip
def test_a_processor_that_does_not_fit(folder: Path, change: Callable[[list], object], said: str) -> None:
    path = folder / "policy_preprocessor.json"
    content = json.loads(path.read_text())
    change(content["steps"])
    path.write_text(json.dumps(content))
    assert said in refusal(folder)


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        (BEFORE_STATS, {f"{ENV}.max": None}, f"{ENV}.max: expected finite numbers of shape [7], got none"),
        (BEFORE_STATS, {f"{STATE}.min": torch.zeros(5)}, f"{STATE}.min: expected finite numbers of shape [4]"),
        (AFTER_STATS, {f"{ACTION}.min": torch.full((3,), torch.nan)}, f"{ACTION}.min: expected finite numbers"),
        (AFTER_STATS, {f"{ACTION}.max": torch.full((3,), 512.0)}, "expected actions within [-1, 1]"),
    ],
)  # fmt: skip
def test_statistics_that_do_not_fit(folder: Path, file: str, change: dict[str, Any], said: str) -> None:
    content = {**load_file(folder / file), **change}
    save_file({name: value for name, value in content.items() if value is not None}, folder / file)
    assert said in refusal(folder)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"weights": "ema"}, "weights: expected none for a policy of LeRobot"),
        ({"obs_horizon": 1}, "obs_horizon: expected 2, n_obs_steps of config.json, got 1"),
        ({"pred_horizon": 16}, "pred_horizon: expected 8, horizon of config.json, got 16"),
        ({"act_horizon": 8}, "act_horizon: expected a whole number from 1 to 7, got 8"),
        ({"denoising_steps": 21}, "denoising_steps: expected a whole number from 1 to 20, got 21"),
    ],
)
def test_options_that_contradict_the_folder(folder: Path, options: dict[str, Any], said: str) -> None:
    assert said in refusal(folder, **options)


def test_images_are_described(folder: Path) -> None:
    spec = read_diffusion(config(input_features=IMAGES), "here")
    assert spec.cameras == ["observation.images.top", "observation.images.wrist"] and spec.vectors == {STATE: 4}
