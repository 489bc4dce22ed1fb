"""The seam for formats of demonstrations: a user's own trains Stages 0 and 1; a broken one is refused."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from my_npz import NpzDemos
from tiny_worlds import TASK, TINY_BASE, TINY_STAGE1

from dsrl_offpolicy.demos.format import find_format, read_demonstrations
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.files.checkpoint import file_digest


@pytest.fixture
def npz(tiny_demos: Path, tmp_path: Path, monkeypatch) -> Path:
    """The tiny demonstrations in one .npz, in a folder with nothing but the user's format beside it."""
    demos = read_demonstrations(tiny_demos)
    parts = {name: [getattr(t, name) for t in demos.trajectories] for name in ("obs", "actions", "success")}
    path = tmp_path / "mine.npz"
    np.savez(
        path,
        env_id=TASK,
        control_mode=demos.control_mode,
        steps=[len(t) for t in demos.trajectories],
        **{name: np.concatenate(arrays) for name, arrays in parts.items()},
    )
    shutil.copy(Path(__file__).with_name("my_npz.py"), tmp_path / "their_npz.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(tmp_path)])
    monkeypatch.delitem(sys.modules, "their_npz", raising=False)
    return path


def _losses(run: Path) -> list[float]:
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [row[name] for row in rows for name in row if name.endswith("critic_loss")]


def test_a_users_format_trains_stages_0_and_1(npz, tiny_demos, run_command):
    assert len(Path("their_npz.py").read_text().splitlines()) <= 40
    flags = ["--demo_path", npz, "--demo_format", "their_npz:NpzDemos"]
    done = run_command(["pretrain", *flags, "--out", "stage0", *TINY_BASE])
    assert done.status == 0, done.err
    known = run_command(["pretrain", "--demo_path", tiny_demos, "--out", "known", *TINY_BASE])
    assert known.status == 0, known.err
    assert _losses(Path("stage0")) == _losses(Path("known")) and len(_losses(Path("known"))) == 2
    base = ["--awsc_checkpoint", "stage0/checkpoints/last.pt"]
    done = run_command(["stage1", *flags, *base, "--out", "stage1", *TINY_STAGE1])
    assert done.status == 0, done.err


def test_demonstrations_are_the_same_in_both_formats(npz, tiny_demos):
    ours, theirs = read_demonstrations(tiny_demos), read_demonstrations(npz, demo_format="my_npz:NpzDemos")
    assert (theirs.env_id, theirs.control_mode, theirs.episodes) == (ours.env_id, ours.control_mode, 6)
    for a, b in zip(ours.trajectories, theirs.trajectories, strict=True):
        for name in ("obs", "actions", "success"):
            assert np.array_equal(getattr(a, name), getattr(b, name))


def test_the_digest_is_that_of_the_file(npz):
    assert find_format("my_npz:NpzDemos", npz).digest(npz) == file_digest(npz)


def test_auto_names_the_known_formats_where_none_recognises_a_file(npz, run_command):
    done = run_command(["pretrain", "--demo_path", npz, "--out", "x", *TINY_BASE])
    assert done.status == 2 and len(done.error_lines) == 1
    for word in ("demo_path", "mine.npz", "maniskill_hdf5", "--demo_format"):
        assert word in done.err


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("maniskill_hdf", ["demo_format", "did you mean maniskill_hdf5"]),
        ("my_npz:NpzDemo", ["demo_format", "NpzDemo", "did you mean NpzDemos"]),
        ("no_such_module:X", ["demo_format", "no_such_module"]),
        ("pathlib:Path", ["demo_format", "DemoFormat", "pathlib:Path"]),
    ],
)
def test_what_is_no_format_is_refused_in_one_line(npz, name, words):
    with pytest.raises(InputError) as error:
        find_format(name, npz)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"obs": lambda x: x.astype(np.float64)}, ["float32", "'obs'", "float64"]),
        ({"obs": lambda x: x[:-1]}, ["rows in 'obs'"]),
        ({"success": lambda x: x.astype(np.int64)}, ["bool", "'success'", "int64"]),
        ({"actions": lambda x: 3 + x}, ["actions in [-1, 1]"]),
        ({"terminated": lambda x: x[None]}, ["rows in 'terminated'"]),
        ({"obs": lambda x: x.mean(1)}, ["[n + 1, S]", "'obs'"]),
        ({"obs": lambda x: x.nothing}, ["BrokenDemos", "nothing"]),
    ],
)
def test_trajectories_that_break_the_contract_are_refused_in_one_line(npz, monkeypatch, changes, words):
    class BrokenDemos(NpzDemos):
        def trajectories(self, path, wanted):
            for name, trajectory in super().trajectories(path, wanted):
                made = {field: change(getattr(trajectory, field)) for field, change in changes.items()}
                yield name, replace(trajectory, **made)

    monkeypatch.setattr("my_npz.BrokenDemos", BrokenDemos, raising=False)
    with pytest.raises(InputError) as error:
        read_demonstrations(npz, demo_format="my_npz:BrokenDemos")
    assert "\n" not in str(error.value) and "mine.npz" in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_rewards_that_are_needed_and_not_there_are_named(npz):
    with pytest.raises(InputError, match="'rewards'"):
        read_demonstrations(npz, demo_format="my_npz:NpzDemos", need_rewards=True)
