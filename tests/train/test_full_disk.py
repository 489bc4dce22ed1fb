"""A disk that fills up during a run: one line, and what was saved before is whole. On a real file system."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from stoppable_runs import FLAGS, content, finish, start

SMALL = "--eval_freq 0 --log_freq 1 --total_timesteps 20000"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a file system of a given size."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip("needs the command mount")
        if done.returncode:
            pytest.skip(f"needs the right to mount a file system: {done.stderr.strip()}")
        return folder

    yield mount
    subprocess.run(["umount", str(folder)], capture_output=True)


def test_a_save_that_does_not_fit_leaves_the_one_before_and_the_run_goes_on_with_room(reach_base, disk) -> None:
    folder = disk("500k") / "run"
    status, said = finish(start(f"{FLAGS} {SMALL} --save_freq 16 --awsc_checkpoint {reach_base} --out {folder}"))
    assert status == 2 and "Traceback" not in said
    assert "cannot be written: " in said or "cannot write" in said
    saved = content(folder)["counters"]["env_steps"]  # whole: its digest and its tensors are read
    assert saved >= 16
    subprocess.run(["mount", "-o", "remount,size=20m", str(folder.parent)], check=True)
    process = start(f"--resume {folder}")
    while content(folder)["counters"]["env_steps"] < saved + 200:
        assert process.poll() is None
    process.terminate()
    assert finish(process)[0] == 143


def test_logs_that_do_not_fit_end_the_run_with_one_line(reach_base, disk) -> None:
    folder = disk("60k") / "run"
    status, said = finish(start(f"{FLAGS} {SMALL} --save_freq 0 --awsc_checkpoint {reach_base} --out {folder}"))
    assert status == 2 and "Traceback" not in said
    assert "cannot write logs: No space left on device" in said
