"""LeRobot's DiffusionPolicy against LeRobot's own pipeline, and its weights read strictly. Needs LeRobot."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot_folders import (
    ACTION,
    BEFORE_STATS,
    CAMERAS,
    ENV,
    IMAGE,
    IMAGES,
    STATE,
    STATES,
    needs_lerobot,
    save_by_lerobot,
    write_folder,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

from dsrl_offpolicy import load_base_policy
from dsrl_offpolicy.base_policies import lerobot as adapter
from dsrl_offpolicy.base_policies.contract import check_contract
from dsrl_offpolicy.base_policies.lerobot import LeRobotPolicy
from dsrl_offpolicy.contracts import Encoding, Observation
from dsrl_offpolicy.errors import InputError

pytestmark = needs_lerobot


def loaded(folder: Path, **options: Any) -> LeRobotPolicy:
    policy = load_base_policy(f"lerobot:{folder}", **options)
    assert isinstance(policy, LeRobotPolicy)
    return policy


def close(found: Tensor, expected: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy of states that LeRobot saved."""
    folder = tmp_path_factory.mktemp("lerobot") / "states"
    save_by_lerobot(folder)
    return folder


def by_lerobot(folder: Path, policy: Any, frames: dict[str, Tensor], noise: Tensor) -> tuple[Tensor, Tensor]:
    """Features and executed actions of LeRobot's pipeline: both processors and ``generate_actions``."""
    from lerobot.processor import PolicyProcessorPipeline
    from lerobot.processor.converters import policy_action_to_transition, transition_to_policy_action

    before = PolicyProcessorPipeline.from_pretrained(folder, config_filename="policy_preprocessor.json")
    after = PolicyProcessorPipeline.from_pretrained(
        folder,
        config_filename="policy_postprocessor.json",
        to_transition=policy_action_to_transition,
        to_output=transition_to_policy_action,
    )
    with torch.no_grad():
        batch = before(dict(frames))
        if policy.config.image_features:
            batch["observation.images"] = torch.stack([batch[name] for name in CAMERAS], dim=-4)
        features = policy.diffusion._prepare_global_conditioning(batch)
        return features, after(policy.diffusion.generate_actions(batch, noise=noise))


def drawn(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape))) - 0.5


def test_a_real_policy_computes_what_was_recorded(shared_dir: Path) -> None:
    folder = shared_dir / "fixtures" / "lerobot" / "diffusion_push_state"
    with np.load(folder / "fixture.npz", allow_pickle=False) as arrays:
        held = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    policy = loaded(folder)
    encoding = policy.encode(torch.cat([held[STATE], held[ENV]], dim=-1))
    close(encoding.features, held["features"])
    close(policy.sample(encoding, held["noise"]), held["chunk_normalized"])
    close(policy.decode(encoding, held["noise"]), held["chunk"].clamp(-1, 1))
    assert (policy.info.state_dim, policy.info.executed_rows) == (39, slice(1, 9))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"prediction_type": "sample", "clip_sample": False},
        {"beta_schedule": "linear", "use_film_scale_modulation": False, "num_inference_steps": 20},
        {"normalization_mapping": {"STATE": "MEAN_STD", "ACTION": "MEAN_STD"}},  # the environment's state is not
        {"input_features": dict(reversed(STATES.items()))},  # read by name, not by order
    ],
)  # fmt: skip
def test_states_act_as_in_lerobot(tmp_path: Path, changes: dict[str, Any]) -> None:
    original = save_by_lerobot(tmp_path / "policy", **changes)
    frames = {STATE: drawn(3, 2, 4), ENV: drawn(3, 2, 7)}
    noise = torch.randn(3, 8, 3, generator=torch.Generator().manual_seed(0))
    features, actions = by_lerobot(tmp_path / "policy", original, frames, noise)
    policy = loaded(tmp_path / "policy")
    encoding = policy.encode({"state": torch.cat([frames[STATE], frames[ENV]], dim=-1)})
    close(encoding.features, features)
    # Rows 1 to 4 of 8 with two frames: the first belongs to the newest.
    chunk = policy.decode(encoding, noise)
    assert policy.info.executed_rows == slice(1, 5) and chunk.shape == (3, 8, 3)
    close(chunk[:, policy.info.executed_rows], actions.clamp(-1, 1))
    assert float(chunk.std(0).min()) > 1e-3  # not everywhere at its bounds


@pytest.mark.parametrize(
    "changes",
    [
        {"crop_shape": [32, 34]},
        {"use_separate_rgb_encoder_per_camera": True, "use_group_norm": False},
        {"resize_shape": [40, 40], "crop_ratio": 0.9, "crop_shape": [36, 36]},
    ],
)
def test_images_act_as_in_lerobot(tmp_path: Path, changes: dict[str, Any]) -> None:
    original = save_by_lerobot(tmp_path / "policy", input_features=IMAGES, **changes)
    state = drawn(2, 2, 4)
    rgb = (255 * (drawn(2, 2, *IMAGE[1:], 6) + 0.5)).to(torch.uint8)
    first, second = rgb.movedim(-1, 2).float().div(255).split(3, dim=2)
    frames = {STATE: state, CAMERAS[0]: first, CAMERAS[1]: second}
    noise = torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(0))
    features, actions = by_lerobot(tmp_path / "policy", original, frames, noise)
    policy = loaded(tmp_path / "policy")
    encoding = policy.encode({"state": state, "rgb": rgb})
    close(encoding.features, features)
    close(policy.decode(encoding, noise)[:, policy.info.executed_rows], actions.clamp(-1, 1))
    assert (policy.info.image_channels, policy.info.image_size) == (6, (36, 40))
    swapped = {"state": state, "rgb": torch.cat([rgb[..., 3:], rgb[..., :3]], dim=-1)}
    assert not torch.allclose(policy.encode(swapped).features, features, atol=1e-3)
    with pytest.raises(InputError, match=r"rgb: expected images of 36 x 40 pixels, got 36 x 36"):
        policy.encode({"state": state, "rgb": rgb[..., :36, :]})


def test_frames_one_by_one_are_the_stack(states: Path) -> None:
    policy = loaded(states)
    obs = drawn(3, 2, 11)
    frames = policy.encode_frames(obs.flatten(0, 1))
    close(frames.reshape(3, 22), policy.encode(obs).features, 0)


def test_what_never_varied_stays_within_bounds(states: Path, tmp_path: Path) -> None:
    folder = copy_of(states, tmp_path)
    stats = load_file(folder / BEFORE_STATS)
    stats[f"{ENV}.max"] = stats[f"{ENV}.min"].clone()
    save_file(stats, folder / BEFORE_STATS)
    policy = loaded(folder)
    obs = torch.cat([torch.zeros(1, 2, 4), stats[f"{ENV}.min"].expand(1, 2, 7)], dim=-1)
    close(policy.encode(obs).features[:, 4:11], -torch.ones(1, 7))  # LeRobot's for the bound itself
    assert float(policy.encode(obs + 0.01).features.abs().max()) <= 10  # without a limit: 2e6


# --- DDIM in place of DDPM -----------------------------------------------------------------------------------


def test_a_policy_of_ddpm_is_sampled_by_ddim(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    original = save_by_lerobot(tmp_path / "policy", noise_scheduler_type="DDPM", num_inference_steps=None)
    frames = {STATE: drawn(3, 2, 4), ENV: drawn(3, 2, 7)}
    noise = torch.randn(3, 8, 3, generator=torch.Generator().manual_seed(0))
    first, second = (by_lerobot(tmp_path / "policy", original, frames, noise)[1] for _ in range(2))
    assert not torch.allclose(first, second, atol=1e-3)  # DDPM draws
    capsys.readouterr()
    policy = loaded(tmp_path / "policy")
    assert "note: the base policy was sampled by DDPM" in capsys.readouterr().err
    assert len(policy._steps()) == 10
    encoding = policy.encode(torch.cat([frames[STATE], frames[ENV]], dim=-1))
    close(policy.decode(encoding, noise), policy.decode(encoding, noise), 0)
    # The same weights saved as a policy of DDIM with 10 steps are what it must act as.
    described = json.loads((tmp_path / "policy" / "config.json").read_text())
    described |= {"noise_scheduler_type": "DDIM", "num_inference_steps": 10}
    (tmp_path / "policy" / "config.json").write_text(json.dumps(described))
    capsys.readouterr()
    close(policy.decode(encoding, noise), loaded(tmp_path / "policy").decode(encoding, noise), 0)
    assert "note" not in capsys.readouterr().err


def test_a_sampler_that_draws_is_refused(states: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = adapter.diffusion_config

    def left_on(lerobot: Any, spec: Any) -> Any:
        configuration = made(lerobot, spec)
        configuration.noise_scheduler_type = "DDPM"
        return configuration

    monkeypatch.setattr(adapter, "diffusion_config", left_on)
    with pytest.raises(InputError, match="the same latent decoded to actions"):
        loaded(states)


def test_options(states: Path) -> None:
    policy = loaded(states, act_horizon=7, denoising_steps=20, obs_horizon=2, pred_horizon=8)
    assert policy.info.executed_rows == slice(1, 8) and len(policy._steps()) == 20
    default = loaded(states)
    assert len(default._steps()) == 5
    encoding, noise = default.encode(drawn(2, 2, 11)), torch.randn(2, 8, 3)
    assert not torch.allclose(policy.decode(encoding, noise), default.decode(encoding, noise), atol=1e-4)
    assert policy.fingerprint() != default.fingerprint() == loaded(states).fingerprint()


# --- what a folder holds -------------------------------------------------------------------------------------


def copy_of(folder: Path, where: Path) -> Path:
    copy = where / "copy"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def test_a_folder_of_0_6_computes_the_same(states: Path, tmp_path: Path) -> None:
    # 0.6.1 writes two entries more, of which 0.4.4's own loader knows none.
    folder = copy_of(states, tmp_path)
    content = json.loads((folder / "config.json").read_text())
    content |= {"pretrained_revision": None, "gradient_checkpointing": False}
    (folder / "config.json").write_text(json.dumps(content, indent=4))
    old, new = loaded(states), loaded(folder)
    encoding, noise = old.encode(drawn(2, 2, 11)), torch.randn(2, 8, 3)
    close(new.decode(encoding, noise), old.decode(encoding, noise), 0)
    assert new.fingerprint() == old.fingerprint()


def test_weights_of_a_compiled_network(states: Path, tmp_path: Path) -> None:
    folder = copy_of(states, tmp_path)
    weights = load_file(folder / "model.safetensors")
    compiled = {name.replace("diffusion.unet.", "diffusion.unet._orig_mod."): v for name, v in weights.items()}
    assert compiled.keys() != weights.keys()
    save_file(compiled, folder / "model.safetensors")
    assert loaded(folder).fingerprint() == loaded(states).fingerprint()


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(InputError) as error:
        loaded(folder, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


NAME = "diffusion.unet.mid_modules.0.conv1.block.0.bias"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.pop(NAME), f"{NAME}: expected shape (24,), got none"),
        (lambda w: w.update({"more": torch.ones(2)}), "tensor more: expected shape none, got (2,)"),
        (lambda w: w.update({NAME: torch.ones(23)}), f"{NAME}: expected shape (24,), got (23,)"),
        (lambda w: w.update({NAME: torch.full((24,), torch.nan)}), f"{NAME}: expected finite numbers"),
    ],
)
def test_weights_that_do_not_fit(
    states: Path, tmp_path: Path, change: Callable[[dict], object], said: str
) -> None:
    folder = copy_of(states, tmp_path)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")
    message = refusal(folder)
    assert said in message and message.startswith("base: ") and "model.safetensors" in message


def test_entries_that_make_no_network(states: Path, tmp_path: Path) -> None:
    folder = copy_of(states, tmp_path)
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, "n_groups": 5}))
    assert "config.json: expected entries that make a network" in refusal(folder)
    (folder / "config.json").write_text(json.dumps({**content, "down_dims": [16384, 16384]}))  # 20 GB
    assert "expected shape (16384" in refusal(folder)


def test_damaged_or_missing_weights(states: Path, tmp_path: Path) -> None:
    folder = copy_of(states, tmp_path)
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-8])
    assert "expected tensors in" in refusal(folder)
    (folder / "model.safetensors").unlink()
    assert "expected model.safetensors of LeRobot" in refusal(folder)


@pytest.mark.parametrize("obs", [drawn(2, 2, 10), drawn(2, 1, 11), drawn(2, 11), {"rgb": torch.zeros(1)}])
def test_observations_of_another_shape(states: Path, obs: Observation) -> None:
    with pytest.raises(InputError, match=r"obs: expected states \[B, 2, 11\] \(4 of observation.state, 7 of obs"):
        loaded(states).encode(obs)


def test_latents_of_another_shape(states: Path) -> None:
    # LeRobot's U-Net takes any even number of rows, and makes of them another chunk.
    policy = loaded(states)
    for shape in ((2, 4, 3), (2, 8, 2)):
        with pytest.raises(InputError, match=r"latent: expected \[B, 8, 3\]"):
            policy.decode(policy.encode(drawn(2, 2, 11)), torch.zeros(shape))


# --- the contract --------------------------------------------------------------------------------------------


def test_the_contract_holds_and_gradients_flow(states: Path) -> None:
    policy = loaded(states)
    check_contract(policy, "lerobot", torch.device("cpu"))
    assert not any(value.requires_grad for value in policy.parameters()) and policy.critic is None
    latent = torch.zeros(1, 8, 3, requires_grad=True)
    features = torch.zeros(1, policy.info.feature_dim, requires_grad=True)
    policy.decode(Encoding(features), latent).sum().backward()
    assert float(latent.grad.abs().sum()) > 0 and float(features.grad.abs().sum()) > 0


@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
def test_chunks_as_noise(tmp_path: Path, prediction: str) -> None:
    save_by_lerobot(tmp_path / "policy", prediction_type=prediction, clip_sample=False, num_inference_steps=3)
    policy = loaded(tmp_path / "policy")
    # Small actions, so that none is at a bound and every number of the chunk tells something of the noise.
    encoding, noise = policy.encode(drawn(4, 2, 11)), 0.1 * torch.randn(4, 8, 3)
    chunk = policy.decode(encoding, noise)
    latent, error = policy.invert(encoding, chunk)
    assert bool((error < 1e-3).all()), error
    off = (policy.decode(encoding, latent) - chunk).square().mean((1, 2)).sqrt()
    close(off, error, 1e-6)


def test_a_run_trains_and_evaluates(run_command: Callable, states: Path, tmp_path: Path) -> None:
    small = [
        "--reward_mode", "dense", "--total_timesteps", 120, "--warmup_steps", 60, "--utd_ratio", 1,
        "--batch_size", 16, "--num_envs", 2, "--eval_freq", 100, "--eval_episodes", 2, "--max_episode_steps", 40,
        "--log_freq", 5, "--actor_hidden_dims", 16, "--critic_hidden_dims", 16,
    ]  # fmt: skip
    out = tmp_path / "run"
    done = run_command(["stage2", "--base", f"lerobot:{states}", "--env_id", "Hopper-v4", "--out", out, *small])
    assert done.status == 0, done.err
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert any("critic_loss" in row for row in rows)
    # Hopper pays 1 for every step on its feet.
    returns = [row["return"] for row in rows if "return" in row]
    assert returns and min(returns) > 0


def test_a_folder_written_by_hand_is_one_of_lerobots(states: Path, tmp_path: Path) -> None:
    """The folders of the tests that need no LeRobot are what LeRobot writes."""
    folder = write_folder(tmp_path / "by_hand")
    for name in ("config.json", "policy_preprocessor.json", "policy_postprocessor.json"):
        assert json.loads((folder / name).read_text()) == json.loads((states / name).read_text()), name
    assert {f.name for f in folder.iterdir()} | {"model.safetensors"} == {f.name for f in states.iterdir()}
    stats = load_file(folder / BEFORE_STATS)
    assert stats.keys() == load_file(states / BEFORE_STATS).keys() and f"{ACTION}.min" in stats
