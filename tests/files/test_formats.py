"""Files of every format version load, compute what they did, and go on; versions that never were are refused."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from dsrl_offpolicy.buffers.macro_replay_buffer import MacroReplayBuffer
from dsrl_offpolicy.buffers.replay_files import ReplayFiles
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.files.checkpoint import load_checkpoint, read_tensors, save_checkpoint
from dsrl_offpolicy.files.formats import FORMAT_VERSION, MIGRATIONS, NewerFormatError
from dsrl_offpolicy.train.saves import Saves

GOLDEN = Path(__file__).parents[1] / "golden"
VERSIONS = range(1, FORMAT_VERSION + 1)
_spec = importlib.util.spec_from_file_location("make_checkpoints", GOLDEN / "make_checkpoints.py")
golden = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(golden)


@pytest.fixture(params=VERSIONS)
def folder(request) -> Path:
    return GOLDEN / f"format-{request.param}"


@pytest.fixture
def version(folder: Path) -> int:
    return int(folder.name.removeprefix("format-"))


def expected(folder: Path) -> dict:
    return json.loads((folder / "expected.json").read_text())


def stored(path: Path) -> dict:
    return read_tensors(path, "file", "test")


def test_every_version_has_its_step_and_golden_files_of_its_own(folder, version):
    assert set(MIGRATIONS) == set(VERSIONS) - {FORMAT_VERSION}
    for file in ("base_policy.pt", "stage1.pt", "stage2/checkpoints/last.pt", "stage2/checkpoints/previous.pt"):
        assert stored(folder / file)["format_version"] == version, file
    for file in (folder / "stage2" / "replay").iterdir():
        assert stored(file).get("format_version", 1) == version


def test_networks_compute_what_they_did_when_the_files_were_made(folder):
    found = golden.outputs(folder)
    for name, values in expected(folder)["outputs"].items():
        assert torch.allclose(torch.tensor(found[name]), torch.tensor(values), rtol=1e-4, atol=1e-6), name


def test_a_run_holds_what_it_did(folder):
    content = Saves(folder / "stage2" / "checkpoints", "stage2").load()
    known = expected(folder)
    assert content["format_version"] == FORMAT_VERSION
    assert content["counters"] == {"lost_macro_steps": 0, **known["counters"]}
    buffer = MacroReplayBuffer(64, 39, 16, generator=torch.Generator())
    ReplayFiles(folder / "stage2" / "replay").load(buffer, content["replay"])
    assert len(buffer) == known["transitions"] == content["counters"]["macro_steps"]
    assert buffer.reward[: len(buffer)].tolist() == known["rewards"]


@pytest.fixture
def moved(folder: Path, tmp_path: Path) -> Path:
    """The run, in another place together with the files that its settings name."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    config = tmp_path / "stage2" / "config.yaml"
    settings = yaml.safe_load(config.read_text())
    settings["device"] = "cpu"  # where they were made
    for name in ("awsc_checkpoint", "stage1_checkpoint"):
        settings[name] = str(tmp_path / settings[name])
    config.write_text(yaml.safe_dump(settings))
    return tmp_path / "stage2"


def test_an_interrupted_run_goes_on_to_its_end(folder, moved, run_command):
    before = (moved / "metrics.jsonl").read_text()
    done = run_command(["stage2", "--resume", moved])
    assert done.status == 0, done.err
    assert (moved / "metrics.jsonl").read_text().startswith(before)
    counters = stored(moved / "checkpoints" / "last.pt")["counters"]
    summary = json.loads((moved / "summary.json").read_text())
    assert stored(moved / "checkpoints" / "last.pt")["format_version"] == FORMAT_VERSION
    # 160 env steps of chunks of 4 are 40 macro-steps; those after the warm-up of 32 (8) earn a gradient step each
    assert counters["env_steps"] == summary["env_steps"] == 160
    assert (counters["macro_steps"], counters["gradient_steps"], counters["lost_macro_steps"]) == (40, 32, 0)
    replay = [stored(file) for file in sorted((moved / "replay").iterdir())]
    rewards = torch.cat([file["reward"] for file in replay])
    assert len(rewards) == 40 and rewards[:24].tolist() == expected(folder)["rewards"]


def test_what_a_file_is_of_is_told_by_its_own_version(folder, version, run_command):
    done = run_command(["checkpoint", "inspect", folder / "stage2" / "checkpoints" / "last.pt", "--json"])
    told = json.loads(done.out)
    assert told["format_version"] == version and told["counters"]["lost_macro_steps"] == 0


def save_as(path: Path, kind: str, version: object, **content) -> Path:
    torch.save({"kind": kind, "format_version": version, **content}, path)
    return path


@pytest.mark.parametrize("version", [0, -1, None, True, 1.0, "1", [1], torch.tensor(1)])
def test_a_version_that_is_none_is_refused_and_the_supported_ones_named(tmp_path, version):
    path = save_as(tmp_path / "odd.pt", "stage1", version)
    with pytest.raises(InputError, match=r"x: expected format version 1 to \d, .*odd.pt has ") as found:
        load_checkpoint(path, "stage1", "x")
    assert "\n" not in str(found.value) and len(str(found.value)) < 300


def test_a_later_version_says_to_upgrade_and_is_not_taken_for_damage(tmp_path):
    checkpoints = Saves(tmp_path, "stage2")
    checkpoints.save({"counters": {}})
    save_as(tmp_path / "new.pt", "stage2", FORMAT_VERSION + 1).rename(tmp_path / "last.pt")
    save_checkpoint(tmp_path / "previous.pt", "stage2", {"counters": {}})
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(NewerFormatError, match=r"last\.pt has 4: a later dsrl_offpolicy wrote it, upgrade yours"):
        checkpoints.load()


def test_the_step_from_1_to_2_counts_lost_macro_steps_of_stage2_alone(tmp_path):
    counters = {"env_steps": 7}
    stage2 = load_checkpoint(save_as(tmp_path / "2.pt", "stage2", 1, counters=counters), "stage2", "x")
    assert stage2["counters"] == {"env_steps": 7, "lost_macro_steps": 0}
    stage1 = load_checkpoint(save_as(tmp_path / "1.pt", "stage1", 1, counters=counters), "stage1", "x")
    assert stage1["counters"] == counters and stage1["format_version"] == FORMAT_VERSION
    for broken in ({}, {"counters": 3}, {"counters": None}):
        path = save_as(tmp_path / "broken.pt", "stage2", 1, **broken)
        with pytest.raises(InputError, match=r"stage2 file of format version 1, .* lacks what such a file holds"):
            load_checkpoint(path, "stage2", "x")
