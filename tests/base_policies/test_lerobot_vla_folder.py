"""What is refused of a SmolVLA's folder before LeRobot is needed: entries, processors, options."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot_folders import ENV, STATE, feature
from lerobot_vlas import INPUTS, config, write_vla_folder
from safetensors.torch import save_file

from dsrl_offpolicy import load_base_policy
from dsrl_offpolicy.base_policies.lerobot_vla_folder import read_smolvla
from dsrl_offpolicy.errors import InputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_vla_folder(tmp_path / "policy")


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
    save_file({"x": torch.ones(2)}, folder / "model.safetensors")
    assert "pip install 'dsrl_offpolicy[lerobot]'" in refusal(folder)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"chunk_size": None}, "chunk_size: expected a whole number, got None"),
        ({"n_action_steps": 7}, "n_action_steps: expected at most 6, chunk_size, got 7"),
        ({"max_state_dim": 3}, "observation.state: expected at most 3, max_state_dim, got 4"),
        ({"max_action_dim": 2}, "action: expected at most 2, max_action_dim, got 3"),
        ({"n_obs_steps": 2}, "n_obs_steps: expected 1, got 2"),
        ({"use_cache": False}, "use_cache: expected True, got False"),
        ({"adapt_to_pi_aloha": True}, "adapt_to_pi_aloha: expected False, got True"),
        ({"attention_mode": "linear"}, "attention_mode: expected cross_attn, self_attn, got 'linear'"),
        ({"num_steps": 0}, "num_steps: expected"),
        ({"use_peft": True}, "use_peft: expected false"),
        ({"guidance": 2.0}, "entry 'guidance' is unknown"),
        ({"input_features": {STATE: feature("STATE", 4)}}, "input_features: expected images, got none"),
        ({"input_features": {**INPUTS, ENV: feature("ENV", 7)}}, "expected observation.state and images, got 'ob"),
        ({"output_features": {}}, "output_features: expected 'action'"),
    ],
)  # fmt: skip
def test_a_config_that_does_not_fit(folder: Path, changes: dict[str, Any], said: str) -> None:
    (folder / "config.json").write_text(json.dumps(config("owner/model", **changes)))
    message = refusal(folder)
    assert said in message and "config.json" in message


def test_cameras_that_were_empty_in_training_are_none(tmp_path: Path) -> None:
    empty = {"observation.images.empty_camera_0": feature("VISUAL", 3, 480, 640)}
    spec = read_smolvla(config("owner/model", input_features={**INPUTS, **empty}, empty_cameras=1), "here")
    assert spec.cameras == ["observation.images.top", "observation.images.wrist"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop(3), "expected the steps smolvla_new_line_processor, tokenizer_processor, normalizer_pro"),
        (lambda s: s.insert(2, s.pop(3)), "in this order, got 'tokenizer_processor', 'smolvla_new_line_proc"),
        (lambda s: s.append({"registry_name": "delta_action"}), "got 'smolvla_new_line_processor', 'tokenizer_p"),
        (lambda s: s[3]["config"].update(tokenizer_name="owner/other"), "tokenizer_name: expected 'owner/model'"),
        (lambda s: s[3]["config"].pop("tokenizer_name"), "expected a field 'tokenizer_name', got none"),
        (lambda s: s[3]["config"].update(padding="none"), "padding: expected longest, max_length, got 'none'"),
        (lambda s: s[5].pop("state_file"), "expected a step normalizer_processor with statistics, got none"),
    ],
)  # fmt: skip
def test_a_processor_that_does_not_fit(folder: Path, change: Callable[[list], object], said: str) -> None:
    path = folder / "policy_preprocessor.json"
    content = json.loads(path.read_text())
    change(content["steps"])
    path.write_text(json.dumps(content))
    assert said in refusal(folder)


def test_a_postprocessor_with_words(folder: Path) -> None:
    path = folder / "policy_postprocessor.json"
    content = json.loads(path.read_text())
    content["steps"].append({"registry_name": "tokenizer_processor", "config": {}})
    path.write_text(json.dumps(content))
    assert "step 'tokenizer_processor' is unknown" in refusal(folder)


@pytest.mark.parametrize("kind", ["awsc", "dppo", "shortcut_flow"])
def test_an_instruction_for_a_policy_without_words(tmp_path: Path, kind: str) -> None:
    with pytest.raises(InputError, match=r"instruction: expected none, since the base policy .* reads no words"):
        load_base_policy(f"{kind}:{tmp_path}", instruction="push")
    with pytest.raises(InputError, match=r"instruction: expected none, since the base policy .* reads no words"):
        load_base_policy(tmp_path / "base.pt", instruction="push")
