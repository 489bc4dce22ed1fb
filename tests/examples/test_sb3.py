"""The examples of other libraries' learners run as they stand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
EXAMPLES = TESTS.parent / "examples"


@pytest.mark.parametrize(("name", "library"), [("sb3_sac.py", "stable_baselines3"), ("sb3_tqc.py", "sb3_contrib")])
def test_an_example_learns_for_some_steps(name, library):
    pytest.importorskip(library, reason="needs the extra sb3")
    world = ["--base", "tiny_worlds:HalvingPolicy", "--env_id", "latent_worlds:Reach-v0", "--macro_steps", "140"]
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *world],
        cwd=TESTS, env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])},
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # Episodes are truncated after 12 env steps, 6 macro-steps, unless they succeed; updates begin after 100.
    assert "ep_len_mean" in done.stdout and "success_rate" in done.stdout and "critic_loss" in done.stdout
