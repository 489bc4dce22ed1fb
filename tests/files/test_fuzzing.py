"""Damaged files: every reader either loads a value of its kind or says in one line what is wrong.

``DSRL_FUZZ=20 pytest tests/test_fuzzing.py`` tries twenty times as many files; a seed names its file.
"""

from __future__ import annotations

import collections
import copy
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fuzzed_demos import META, make, read_all
from mutations import ODD_VALUES, damaged, restructured

from dsrl_offpolicy.agents.stage2_config import Stage2Config
from dsrl_offpolicy.base_policies.loading import load_base_policy
from dsrl_offpolicy.buffers.macro_replay_buffer import MacroReplayBuffer
from dsrl_offpolicy.buffers.replay_files import ReplayFiles
from dsrl_offpolicy.commands import checkpoint as inspect_checkpoint
from dsrl_offpolicy.configs.loading import parse_job, to_plain
from dsrl_offpolicy.contracts import Encoding
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.files.checkpoint import file_digest, read_tensors
from dsrl_offpolicy.files.formats import FORMAT_VERSION
from dsrl_offpolicy.files.metrics import read_metrics
from dsrl_offpolicy.tracking.run import Run
from dsrl_offpolicy.train.command import config_of_run
from dsrl_offpolicy.train.run import STAGE2, load_state
from dsrl_offpolicy.train.saves import Saves
from dsrl_offpolicy.train.stage2_state import Counters, Stage2State
from dsrl_offpolicy.train.steering_files import load_steering
from dsrl_offpolicy.train.train_stage2_online import Stage2

GOLDEN = Path(__file__).parents[1] / "golden" / f"format-{FORMAT_VERSION}"
TIMES = int(os.environ.get("DSRL_FUZZ", "1"))
SLOW = 20.0
"""Seconds that no damaged file may take; whole ones take milliseconds."""

TEXT_VALUES = tuple(v for v in ODD_VALUES if not (isinstance(v, str) and "\ud7ff" in v))
TENSORS = (
    torch.zeros(0), torch.zeros(3), torch.zeros(2, 2, dtype=torch.int64), torch.zeros(3, dtype=torch.complex64),
    torch.full((3,), float("nan")), torch.zeros(1).expand(10**9), torch.zeros(2, 2).to_sparse(),
)  # fmt: skip
FILE_VALUES = (*TEXT_VALUES, *TENSORS)


def fuzz(files: Iterable[Any], read: Callable[[], Any]) -> collections.Counter[str]:
    """Read after each file that ``files`` writes; what it gives names the file in an error."""
    outcomes: collections.Counter[str] = collections.Counter()
    for name in files:
        begin = time.monotonic()
        try:
            read()
        except InputError as error:
            outcomes["refused"] += 1
            said = str(error)
        except BaseException as error:
            raise AssertionError(f"file {name} raised {type(error).__name__}: {str(error)[:300]}") from error
        else:
            outcomes["loaded"] += 1
            said = "no error"
        assert "\n" not in said and len(said) < 1500, f"{name}: {said}"
        assert time.monotonic() - begin < SLOW, name
    assert outcomes["refused"] > 0, outcomes  # otherwise nothing was damaged
    return outcomes


def broken_bytes(path: Path, count: int) -> Iterator[str]:
    """Damage a file in place, again and again; it is whole again in the end."""
    whole = path.read_bytes()
    for seed in range(count * TIMES):
        path.write_bytes(damaged(whole, seed))
        yield f"{path.name}, bytes, seed {seed}"
    path.write_bytes(whole)


def broken_values(path: Path, count: int) -> Iterator[str]:
    """Whole files of tensors whose values are not what they should be."""
    whole = path.read_bytes()
    content = read_tensors(path, "file", "test")
    for seed in range(count * TIMES):
        torch.save(restructured(content, seed, FILE_VALUES), path)
        yield f"{path.name}, values, seed {seed}"
    path.write_bytes(whole)


def broken_text(path: Path, count: int, dump: Callable[[Any], str], content: Any) -> Iterator[str]:
    """Whole JSON or YAML files whose values are not what they should be."""
    whole = path.read_bytes()
    for seed in range(count * TIMES):
        path.write_text(dump(restructured(content, seed, TEXT_VALUES)))
        yield f"{path.name}, values, seed {seed}"
    path.write_bytes(whole)


def both(path: Path, count: int) -> Iterator[str]:
    yield from broken_bytes(path, count)
    yield from broken_values(path, count)


@pytest.fixture
def files(golden_files: Path) -> Path:
    return golden_files


def test_base_policies(files):
    path = files / "base_policy.pt"

    def read() -> None:
        base = load_base_policy(path)
        chunk = base.decode(
            Encoding(torch.zeros(1, base.info.feature_dim)), torch.zeros(1, *base.info.latent_shape)
        )
        assert chunk.shape == (1, *base.info.latent_shape)

    fuzz(both(path, 200), read)


def test_damaged_weights_are_never_taken_for_whole_ones(tmp_path):
    path = shutil.copy(GOLDEN / "base_policy.pt", tmp_path / "base_policy.pt")
    whole = load_base_policy(path).state_dict()

    def read() -> None:
        found = load_base_policy(path).state_dict()
        assert all(torch.equal(found[name], value) for name, value in whole.items())

    outcomes = fuzz(broken_bytes(path, 200), read)
    assert outcomes["loaded"] < 0.2 * outcomes.total()  # those damaged where nothing stands


def test_latent_policies(files):
    base = load_base_policy(files / "base_policy.pt")
    path = files / "stage1.pt"

    def read() -> None:
        policy, _ = load_steering(path, "stage1", "stage1_checkpoint", base, torch.device("cpu"))
        latent = policy.act(torch.zeros(1, base.info.feature_dim), torch.zeros(1, *base.info.latent_shape))
        assert latent.shape == (1, policy.layout.dim)

    fuzz(both(path, 200), read)


@pytest.mark.parametrize("name", ["base_policy.pt", "stage2/checkpoints/last.pt"])
def test_inspection(files, name, capsys):
    def read() -> None:
        status = inspect_checkpoint.main(["inspect", str(files / name), "--json"])
        out, err = capsys.readouterr()
        if status == 0:
            assert json.loads(out)["format_version"] in range(1, FORMAT_VERSION + 1)
        else:
            assert status == 2 and out == "" and len(err.splitlines()) == 1
            raise InputError(err.strip())

    fuzz(both(files / name, 75), read)


def test_replay_files(files):
    state = read_tensors(files / "stage2" / "checkpoints" / "last.pt", "file", "test")["replay"]
    folder = files / "stage2" / "replay"
    path = folder / state["files"][0]["name"]
    buffer = None

    def read() -> None:
        nonlocal buffer
        state["files"][0]["sha256"] = file_digest(path)
        buffer = MacroReplayBuffer(64, 39, 16, generator=torch.Generator())
        try:
            ReplayFiles(folder).load(buffer, copy.deepcopy(state))
        except InputError:
            assert len(buffer) == 0 and buffer.total_added == 0  # nothing can be sampled of what was half loaded
            raise
        assert len(buffer) == 24 and bool(buffer.sample(50).reward.isfinite().all())

    fuzz(both(path, 200), read)


@pytest.fixture
def run(files: Path) -> Stage2:
    folder = files / "stage2"
    found = Stage2(config_of_run(Stage2Config(resume=folder), "stage2_online.yaml"))
    found.checkpoints = Saves(folder / "checkpoints", "stage2")
    return found


def test_runs_whose_manifest_is_lost(run):
    folder = run.checkpoints.folder
    (folder / "manifest.json").unlink()
    (folder / "previous.pt").unlink()

    def read() -> None:
        before = {name: value.clone() for name, value in run.agent.state_dict().items()}
        same = {"device": "cpu", "base_fingerprint": run.base.fingerprint()}
        try:
            state = load_state(STAGE2, folder.parent, Stage2State(run, folder.parent), same, run.config)
            run.agent.load_training_state(state["training"])
        except InputError:
            assert all(torch.equal(value, before[name]) for name, value in run.agent.state_dict().items())
            raise
        ReplayFiles(folder.parent / "replay").load(run.buffer, state["replay"])
        assert Counters(**state["counters"]).owed(1.0) <= 3
        metrics = run.agent.update(run.buffer.sample(4))
        assert metrics["critic_loss"].ndim == 0

    fuzz(both(folder / "last.pt", 150), read)


def test_manifests(run):
    folder = run.checkpoints.folder
    manifest = folder / "manifest.json"
    whole = run.checkpoints.load()

    def read() -> None:
        found = run.checkpoints.load()
        assert found["counters"] in (whole["counters"], {**whole["counters"], **found["counters"]})

    content = json.loads(manifest.read_text())
    fuzz(broken_bytes(manifest, 150), read)
    fuzz(broken_text(manifest, 100, json.dumps, content), read)
    manifest.write_text('{"sha256": ' + "[" * 100_000)
    read()


def test_metrics_of_a_run_that_goes_on(files):
    folder = files / "stage2"
    config = config_of_run(Stage2Config(resume=folder), "stage2_online.yaml")
    log = read_tensors(folder / "checkpoints" / "last.pt", "file", "test")["log"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = []

    def read() -> None:
        with Run(folder, config, resume=log) as tracker:
            rows = tracker.state_dict()["rows"]
        assert len(read_metrics(folder)) == rows <= log["rows"]
        kept.append(rows)

    def dump(values: Any) -> str:
        return "\n".join(map(json.dumps, values if isinstance(values, list) else [values])) + "\n"

    path = folder / "metrics.jsonl"
    for _ in broken_bytes(path, 40):
        read()
    for _ in broken_text(path, 40, dump, lines):
        read()
    assert min(kept) < log["rows"] == max(kept)


def settings(**changes: Any) -> dict[str, Any]:
    return {**to_plain(Stage2Config()), "image_size": [64, 64], "target_entropy": -3.0, **changes}


def test_settings(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(settings()))

    def read() -> None:
        config = parse_job(Stage2Config, "stage2_online.yaml", "dsrl stage2", ["--config", str(path)])
        assert parse_job(Stage2Config, "stage2_online.yaml", "x", ["--config", str(path)]) == config

    fuzz(broken_bytes(path, 120), read)
    fuzz(broken_text(path, 120, yaml.safe_dump, settings()), read)


@pytest.mark.parametrize(
    "text",
    [
        "seed: " + "[" * 20_000,
        "a: &a [x, x, x, x, x, x, x, x]\n"
        + "\n".join(f"{b}: &{b} [{', '.join(['*' + a] * 8)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
        + "\nseed: *i\n",
        "seed: 2024-13-45",
        "seed: " + "9" * 6000,
        f"seed: {2**63}",
        "seed: !!timestamp x",
        "seed: !!int x",
        "seed: !!bool x",
        "seed: --help",
        "track: -h",
        "critic_layer_norm: --help",
        "actor_hidden_dims: [--help]",
        'out: "a\\0b"',
        "? [a, b]\n: 1",
        "seed: {a: 1}",
    ],
    ids=range(15),
)
def test_yaml_that_is_a_trap(tmp_path, text):
    (tmp_path / "own.yaml").write_text(text)
    argv = ["--config", str(tmp_path / "own.yaml")]
    begin = time.monotonic()
    with pytest.raises(InputError) as error:
        parse_job(Stage2Config, "stage2_online.yaml", "dsrl stage2", argv)
    assert "\n" not in str(error.value) and len(str(error.value)) < 1500
    assert time.monotonic() - begin < SLOW


def test_settings_of_a_run_that_goes_on(files):
    path = files / "stage2" / "config.yaml"

    def read() -> None:
        config_of_run(Stage2Config(resume=files / "stage2"), "stage2_online.yaml")

    fuzz(broken_bytes(path, 60), read)
    fuzz(broken_text(path, 60, yaml.safe_dump, yaml.safe_load(path.read_text())), read)


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_demonstrations(tmp_path, compression):
    """In a process of its own: the library that reads HDF5 is native code."""
    path, count = make(tmp_path / "demos.h5", compression), 150 * TIMES
    script = Path(__file__).parents[1] / "fuzzed_demos.py"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(path), "0", str(count)],
        capture_output=True, text=True, timeout=120 * TIMES, check=False,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) == count, (
        f"ended at {lines[-1:]} with {done.returncode}: {done.stderr}"
    )
    outcomes = collections.Counter(line.split(maxsplit=1)[1] for line in lines)
    assert set(outcomes) == {"loaded", "refused"}, outcomes


def test_the_json_of_demonstrations(tmp_path):
    path = make(tmp_path / "demos.h5", None)
    fuzz(broken_bytes(path.with_suffix(".json"), 100), lambda: read_all(path))
    fuzz(broken_text(path.with_suffix(".json"), 100, json.dumps, META), lambda: read_all(path))
    path.with_suffix(".json").write_text('{"env_info": ' + "[" * 100_000)
    with pytest.raises(InputError, match="expected JSON"):
        read_all(path)
