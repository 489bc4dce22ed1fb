"""LeRobot's SmolVLA against LeRobot's own pipeline, and its folder read strictly. Needs LeRobot."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot_folders import CAMERAS, STATE, needs_lerobot
from lerobot_vlas import IMAGE, save_smolvla, write_vla_folder, write_vlm
from safetensors.torch import load_file, save_file
from stoppable_runs import rows
from stopped_job import start
from torch import Tensor

from dsrl_offpolicy import load_base_policy
from dsrl_offpolicy.base_policies.lerobot_library import lerobot_classes
from dsrl_offpolicy.base_policies.lerobot_vla import SmolVLA
from dsrl_offpolicy.contracts import Encoding
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.files.checkpoint import load_checkpoint

pytestmark = needs_lerobot


@pytest.fixture(autouse=True, scope="module")
def torchvision() -> None:
    """As loading a policy does it: transformers cannot be imported before."""
    lerobot_classes("base")


TASKS = ["push the cube", "pull now"]


def loaded(folder: Path, **options: Any) -> SmolVLA:
    policy = load_base_policy(f"lerobot:{folder}", **options)
    assert isinstance(policy, SmolVLA)
    return policy


def close(found: Tensor, expected: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that LeRobot saved."""
    folder = tmp_path_factory.mktemp("vla") / "policy"
    save_smolvla(folder)
    return folder


def by_lerobot(folder: Path, policy: Any, obs: dict[str, Any], noise: Tensor) -> Tensor:
    """Actions of LeRobot's pipeline: both processors and ``predict_action_chunk``."""
    from lerobot.processor import PolicyProcessorPipeline
    from lerobot.processor.converters import policy_action_to_transition, transition_to_policy_action

    before = PolicyProcessorPipeline.from_pretrained(folder, config_filename="policy_preprocessor.json")
    after = PolicyProcessorPipeline.from_pretrained(
        folder,
        config_filename="policy_postprocessor.json",
        to_transition=policy_action_to_transition,
        to_output=transition_to_policy_action,
    )
    images = obs["rgb"][:, 0].movedim(-1, 1).float().div(255).split(3, dim=1)
    frame = {STATE: obs["state"][:, 0], **dict(zip(CAMERAS, images, strict=True)), "task": obs["instruction"]}
    return after(policy.predict_action_chunk(before(frame), noise=noise))


def observed(rows: int = 2) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(rows)
    return {
        "state": torch.rand(rows, 1, 4, generator=generator) - 0.5,
        "rgb": torch.randint(256, (rows, 1, *IMAGE[1:], 6), dtype=torch.uint8, generator=generator),
        "instruction": (TASKS * rows)[:rows],
    }


def drawn(rows: int = 2) -> Tensor:
    return torch.randn(rows, 6, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attention_mode": "self_attn", "self_attn_every_n_layers": 0, "add_image_special_tokens": True},
        {"num_expert_layers": 1, "prefix_length": 40, "pad_language_to": "max_length"},
        {"empty_cameras": 1, "resize_imgs_with_padding": (48, 48)},
    ],
)  # fmt: skip
def test_it_acts_as_in_lerobot(tmp_path: Path, changes: dict[str, Any]) -> None:
    original = save_smolvla(tmp_path / "policy", **changes)
    obs, noise = observed(), drawn()
    actions = by_lerobot(tmp_path / "policy", original, obs, noise)
    policy = loaded(tmp_path / "policy")
    encoding = policy.encode(obs)
    chunk = policy.decode(encoding, noise)
    close(chunk, actions.clamp(-1, 1))
    assert float((actions.abs() < 1).float().mean()) > 0.3  # not everywhere at its bounds
    assert policy.info.executed_rows == slice(0, 4) and policy.info.latent_shape == (6, 5)
    close(policy.decode(encoding, noise), chunk, 0)  # the prefix is as it was
    # What is beyond the three actions moves them too.
    assert not torch.allclose(policy.decode(encoding, noise * torch.tensor([1, 1, 1, 0, 0])), chunk, atol=1e-3)


def test_the_language_model_in_bf16_where_lerobot_has_it_so(tmp_path: Path) -> None:
    """Weights that LeRobot began from a language model's are saved, and computed with, in bf16."""
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

    vlm = write_vlm(tmp_path / "vlm_of_the_hub")
    SmolVLMForConditionalGeneration(SmolVLMConfig.from_pretrained(vlm)).save_pretrained(vlm)
    save_smolvla(tmp_path / "policy", load_vlm_weights=True)
    original = SmolVLAPolicy.from_pretrained(tmp_path / "policy")
    (vlm / "model.safetensors").unlink()  # not read again
    policy = loaded(tmp_path / "policy")
    assert {str(p.dtype) for p in policy.parameters()} == {"torch.bfloat16", "torch.float32"}
    obs, noise = observed(), drawn()
    encoding = policy.encode(obs)
    close(policy.decode(encoding, noise), by_lerobot(tmp_path / "policy", original, obs, noise).clamp(-1, 1))
    assert (
        encoding.features.dtype == torch.float32
        and policy.fingerprint() == loaded(tmp_path / "policy").fingerprint()
    )


def test_weights_that_two_layers_share(tmp_path: Path) -> None:
    write_vlm(tmp_path / "vlm_of_the_hub", tie_word_embeddings=True)
    original = save_smolvla(tmp_path / "policy")
    saved = load_file(tmp_path / "policy" / "model.safetensors")
    assert len(saved) == len(original.state_dict()) - 1  # under one of their names
    obs, noise = observed(), drawn()
    policy = loaded(tmp_path / "policy")
    actions = by_lerobot(tmp_path / "policy", original, obs, noise)
    close(policy.decode(policy.encode(obs), noise), actions.clamp(-1, 1))


def test_a_folder_written_by_hand_is_one_of_lerobots(saved: Path, tmp_path: Path) -> None:
    """The folders of the tests that need no LeRobot are what LeRobot writes."""
    folder = write_vla_folder(tmp_path / "by_hand", str(saved.parent / "vlm_of_the_hub"))
    for name in ("config.json", "policy_preprocessor.json", "policy_postprocessor.json"):
        assert json.loads((folder / name).read_text()) == json.loads((saved / name).read_text()), name
    assert {f.name for f in folder.iterdir()} | {"model.safetensors"} == {f.name for f in saved.iterdir()}


def test_features_are_of_images_instruction_and_state(saved: Path) -> None:
    policy, obs = loaded(saved), observed(1)
    features = policy.encode(obs).features
    assert features.shape == (1, 24 + 4)  # the language model's width, and the state's
    others = [
        {**obs, "state": obs["state"] + 0.1},
        {**obs, "rgb": 255 - obs["rgb"]},
        {**obs, "instruction": ["pull now"]},
        {**obs, "rgb": torch.cat([obs["rgb"][..., 3:], obs["rgb"][..., :3]], dim=-1)},
    ]
    for other in others:
        assert not torch.allclose(policy.encode(other).features, features, atol=1e-3)
    # What a longer instruction beside it adds is padding, and no part of the mean.
    both = policy.encode({name: [*part, "push the cube now"] if name == "instruction" else torch.cat([part, part])
                          for name, part in obs.items()})  # fmt: skip
    close(both.features[:1], features)


def test_the_setting_is_the_instruction(saved: Path) -> None:
    obs = observed()
    said = loaded(saved, instruction="pull now").encode({"state": obs["state"], "rgb": obs["rgb"]})
    told = loaded(saved).encode({**obs, "instruction": ["pull now"] * 2})
    close(said.features, told.features, 0)
    with pytest.raises(InputError, match="reads the task in words, and the environment observes none; say it by"):
        loaded(saved).encode({"state": obs["state"], "rgb": obs["rgb"]})


def test_later_noise_moves_no_earlier_action(saved: Path) -> None:
    """As docs/policies.md says of ``--steer_mode act_horizon``."""
    policy = loaded(saved)
    encoding, noise = policy.encode(observed()), drawn()
    later = torch.cat([noise[:, :4], drawn(3)[:2, 4:]], dim=1)
    close(policy.decode(encoding, later)[:, :4], policy.decode(encoding, noise)[:, :4])
    assert not torch.allclose(policy.decode(encoding, later)[:, 4:], policy.decode(encoding, noise)[:, 4:])


def test_gradients_flow_to_the_latent_alone(saved: Path) -> None:
    policy = loaded(saved)
    latent = drawn().requires_grad_()
    policy.decode(policy.encode(observed()), latent).sum().backward()
    assert float(latent.grad.abs().sum()) > 0 and not any(p.requires_grad for p in policy.parameters())


def test_options(saved: Path) -> None:
    policy = loaded(saved, act_horizon=6, denoising_steps=5, obs_horizon=1, pred_horizon=6)
    assert policy.info.executed_rows == slice(0, 6) and policy.spec.num_steps == 5
    default = loaded(saved)
    assert policy.fingerprint() != default.fingerprint() == loaded(saved).fingerprint()
    for options, message in (
        ({"act_horizon": 7}, "act_horizon: expected a whole number from 1 to 6, got 7"),
        ({"obs_horizon": 2}, "obs_horizon: expected 1, n_obs_steps of config.json, got 2"),
        ({"weights": "ema"}, "weights: expected none for a policy of LeRobot"),
    ):
        assert message in refusal(saved, **options)


# --- decoding where no prefix is kept ------------------------------------------------------------------------


@pytest.mark.parametrize("algo", ["na", "lps"])
def test_algorithms_that_decode_stored_features_are_refused(
    run_command: Callable, saved: Path, tmp_path: Path, algo: str
) -> None:
    argv = ["stage2", "--base", f"lerobot:{saved}", *WORLD, "--algo", algo, "--out", tmp_path / "run"]
    done = run_command(argv)
    assert done.status == 2 and len(done.error_lines) == 1 and not (tmp_path / "run").exists()
    assert f"algo: {algo} decodes latents from stored features, but this base policy decodes from a" in done.err


def test_features_alone_do_not_decode(saved: Path) -> None:
    policy = loaded(saved)
    with pytest.raises(InputError, match="decodes from its prefix"):
        policy.decode(Encoding(policy.encode(observed()).features), drawn())
    with pytest.raises(InputError, match=r"latent: expected \[B, 6, 5\], got \[2, 6, 3\]"):
        policy.decode(policy.encode(observed()), drawn()[..., :3])


# --- what a folder holds -------------------------------------------------------------------------------------


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(InputError) as error:
        loaded(folder, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "policy"))


def test_the_language_model_beside_the_weights(folder: Path, saved: Path) -> None:
    described = json.loads((folder / "config.json").read_text())
    name = "HuggingFaceTB/SmolVLM2-500M-Video-Instruct"
    (folder / "config.json").write_text(json.dumps({**described, "vlm_model_name": name}))
    path = folder / "policy_preprocessor.json"
    assert f"tokenizer_name: expected '{name}', vlm_model_name of config.json" in refusal(folder)
    path.write_text(path.read_text().replace(described["vlm_model_name"], name))
    message = refusal(folder)
    assert f"vlm_model_name: {name} is neither a folder nor in the cache of the hub" in message
    assert f"hf download {name} --include '*.json' '*.txt' --local-dir {folder / 'vlm'}" in message
    shutil.copytree(described["vlm_model_name"], folder / "vlm")
    encoding, noise = loaded(saved).encode(observed()), drawn()
    close(loaded(folder).decode(encoding, noise), loaded(saved).decode(encoding, noise), 0)


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("config.json", {"model_type": "llava"}, "model_type: expected smolvlm, got 'llava'"),
        ("config.json", {"auto_map": {"AutoConfig": "code.Config"}}, "auto_map: expected none, got code to run"),
        ("tokenizer_config.json", {"auto_map": {}}, "auto_map: expected none, got code to run"),
        ("config.json", {"text_config": {"hidden_size": 24.5}}, "expected entries that make a network"),
        ("tokenizer.json", {"model": None}, "expected a tokenizer, got"),
    ],
)  # fmt: skip
def test_a_language_model_that_does_not_fit(folder: Path, file: str, change: dict[str, Any], said: str) -> None:
    described = json.loads((folder / "config.json").read_text())
    shutil.copytree(described["vlm_model_name"], folder / "vlm")
    path = folder / "vlm" / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert said in refusal(folder)


def test_without_transformers_its_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    message = refusal(folder)
    assert "SmolVLA of lerobot cannot be imported" in message
    assert "pip install 'dsrl_offpolicy[smolvla]'" in message


def test_a_language_model_of_another_size(folder: Path) -> None:
    described = json.loads((folder / "config.json").read_text())
    shutil.copytree(described["vlm_model_name"], folder / "vlm")
    path = folder / "vlm" / "config.json"
    content = json.loads(path.read_text())
    content["text_config"] |= {"hidden_size": 30_000, "intermediate_size": 30_000}  # 10 GB a layer
    path.write_text(json.dumps(content))
    assert "model.safetensors: tensor" in refusal(folder)


NAME = "model.action_in_proj.bias"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.pop(NAME), f"{NAME}: expected shape (18,), got none"),
        (lambda w: w.update({"more": torch.ones(2)}), "tensor more: expected shape none, got (2,)"),
        (lambda w: w.update({NAME: torch.ones(17)}), f"{NAME}: expected shape (18,), got (17,)"),
    ],
)
def test_weights_that_do_not_fit(folder: Path, change: Callable[[dict], object], said: str) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")
    message = refusal(folder)
    assert said in message and message.startswith("base: ") and "model.safetensors" in message


# --- Stage 2 -------------------------------------------------------------------------------------------------

WORLD = [
    "--env_family", "vla_worlds:Tables", "--env_id", "table", "--reward_mode", "dense", "--max_episode_steps", 12,
    "--num_envs", 2, "--device", "cpu",
]  # fmt: skip
SMALL = [
    "--total_timesteps", 320, "--warmup_steps", 64, "--utd_ratio", 1, "--batch_size", 8, "--log_freq", 10,
    "--eval_freq", 160, "--eval_episodes", 2, "--actor_hidden_dims", 16, "--critic_hidden_dims", 16,
]  # fmt: skip


def test_a_run_is_stopped_and_resumed_to_the_bit(run_command: Callable, saved: Path, tmp_path: Path) -> None:
    argv = ["stage2", "--base", f"lerobot:{saved}", *WORLD, *SMALL]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    done = run_command([*argv, "--out", whole])
    assert done.status == 0, done.err
    after = "dsrl_offpolicy.rollouts.collector:Collector.collect"
    status, said = start(after, 20, signal.SIGTERM, [*argv, "--out", parts])
    assert status == 128 + signal.SIGTERM and "Traceback" not in said, said
    done = run_command(["stage2", "--resume", parts])
    assert done.status == 0, done.err
    assert rows(parts) == rows(whole) and any("critic_loss" in row for row in rows(whole))
    first, second = (load_checkpoint(f / "checkpoints" / "last.pt", "stage2", "test") for f in (whole, parts))
    for name, value in first["policy"].items():
        assert torch.equal(value, second["policy"][name]), name
    assert "observations of the saved run" not in done.err


def test_an_environment_that_says_nothing_needs_the_setting(
    run_command: Callable, saved: Path, tmp_path: Path
) -> None:
    silent = ["silent_table" if part == "table" else part for part in WORLD]
    argv = ["stage2", "--base", f"lerobot:{saved}", *silent, *SMALL]
    done = run_command([*argv, "--out", tmp_path / "run"])
    assert done.status == 2 and len(done.error_lines) == 1
    assert "instruction: this policy reads the task in words" in done.err
    done = run_command([*argv, "--instruction", "push the cube", "--out", tmp_path / "told"])
    assert done.status == 0, done.err
