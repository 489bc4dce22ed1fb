"""What ``dsrl export`` writes, another machine loads: the same actions, and a card that says how well it does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from dsrl_offpolicy import load_base_policy, load_steered_policy
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.files.checkpoint import read_tensors
from dsrl_offpolicy.models.latent_sources import policy_source
from dsrl_offpolicy.train.steering_files import load_steering


@pytest.fixture
def run_dir(golden_files: Path) -> Path:
    """A Stage 2 run with a checkpoint and an evaluation."""
    folder = golden_files / "stage2"
    row = {
        "group": "eval",
        "env_steps": 1200,
        "success_once": 0.9,
        "success_once_low": 0.77,
        "success_once_high": 0.96,
    }
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    return folder


@pytest.fixture
def export(run_command, run_dir: Path, tmp_path: Path):
    """Runs ``dsrl export``; returns the folder."""

    def run(*flags: object) -> Path:
        done = run_command(["export", run_dir, "--out", tmp_path / "shared", *flags])
        assert done.status == 0, done.err
        return tmp_path / "shared"

    return run


def test_what_comes_back_does_what_the_run_did(export, run_dir: Path, golden_files: Path) -> None:
    folder = export("--with_base")
    base_file = golden_files / "base_policy.pt"
    base, cpu = load_base_policy(base_file), torch.device("cpu")
    latent_policy, _ = load_steering(run_dir / "checkpoints" / "last.pt", "stage2", "x", base, cpu)
    obs = torch.randn(3, base.info.obs_horizon, base.info.state_dim)
    encoding = base.encode(obs)
    noise = torch.zeros(3, *base.info.latent_shape)
    latent = policy_source(latent_policy, deterministic=True)(encoding.features, noise)
    expected = base.decode(encoding, latent)[:, base.info.executed_rows]
    shutil.rmtree(run_dir)  # the folder stands on its own
    base_file.unlink()
    torch.testing.assert_close(load_steered_policy(folder)(obs), expected)


def test_samples_repeat_with_their_seed(export) -> None:
    folder = export("--with_base")
    policies = [load_steered_policy(folder, deterministic=False, seed=seed) for seed in (1, 1, 2)]
    info = policies[0].base.info
    obs = torch.randn(2, info.obs_horizon, info.state_dim)
    one, same, other = (policy(obs) for policy in policies)
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_without_its_base_policy_a_folder_names_it(export, golden_files: Path, tmp_path: Path) -> None:
    folder = export()
    moved = tmp_path / "elsewhere.pt"
    shutil.move(golden_files / "base_policy.pt", moved)
    with pytest.raises(InputError, match=r"base_policy\.pt"):
        load_steered_policy(folder)
    assert load_steered_policy(folder, base=moved).base.info.env_id
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    manifest = json.loads((other / "export.json").read_text())
    (other / "export.json").write_text(json.dumps(manifest | {"base": "../x.pt", "base_in_folder": True}))
    with pytest.raises(InputError, match="expected the name of a file in the folder"):
        load_steered_policy(other)
    (other / "export.json").write_text(json.dumps(manifest | {"version": 2}))
    with pytest.raises(InputError, match="expected version 1, got 2"):
        load_steered_policy(other)


def test_the_card_has_the_last_evaluation_and_the_command(export) -> None:
    folder = export()
    card = (folder / "README.md").read_text()
    assert "| 90 [77, 96] |" in card and "after 1,200 env steps" in card
    assert "load_steered_policy" in card and "--config settings.yaml" in card and "    utd_ratio: " in card
    kept = read_tensors(folder / "latent_policy.safetensors", "checkpoint", "x")
    assert "policy" in kept and "training" not in kept and "critic" not in kept  # weights to act with, no more


def test_a_quickstarts_card_has_its_whole_table(run_command, run_dir: Path, tmp_path: Path) -> None:
    quick = tmp_path / "quick"
    shutil.copytree(run_dir, quick / "stage2")
    (quick / "config.yaml").write_text("task: x\n")
    (quick / "run.json").write_text('{"kind": "quickstart"}')
    rate = {"success_once": 0.5, "success_once_low": 0.4, "success_once_high": 0.6}
    (quick / "evaluation.json").write_text(json.dumps([{"policy": "w = 0", "episodes": 25, **rate}]))
    done = run_command(["export", quick, "--out", tmp_path / "shared"])
    assert done.status == 0, done.err
    assert "| w = 0 | 50 [40, 60] | 25 |" in (tmp_path / "shared" / "README.md").read_text()


def test_bad_input_is_one_line(run_command, run_dir: Path, golden_files: Path, tmp_path: Path) -> None:
    def error(*argv: object) -> str:
        done = run_command(["export", *argv])
        assert done.status == 2 and len(done.error_lines) == 1, done.err
        return done.err

    (tmp_path / "taken").mkdir()
    assert "taken exists" in error(run_dir, "--out", tmp_path / "taken")
    assert "RUN_DIR: expected a run folder" in error(tmp_path / "nowhere", "--out", tmp_path / "x")
    (golden_files / "base_policy.pt").unlink()
    assert "expected a base policy that is a file" in error(run_dir, "--out", tmp_path / "x", "--with_base")
    shutil.rmtree(run_dir / "checkpoints")
    assert "last.pt" in error(run_dir, "--out", tmp_path / "x")
    assert not (tmp_path / "x").exists()
