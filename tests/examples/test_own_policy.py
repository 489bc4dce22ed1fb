"""The example of a user's own function runs as it stands, by the commands in its first lines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OWN = ["--base", "steer_your_own_policy:MyPolicy", "--env_id", "reach-v3", "--max_episode_steps", "40"]


def dsrl(*argv: object) -> str:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "dsrl_offpolicy.cli", *map(str, argv)],
        cwd=ROOT / "examples", env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_first_lines_name_commands_of_this_file():
    text = (ROOT / "examples" / "steer_your_own_policy.py").read_text()
    assert "dsrl probe --base steer_your_own_policy:MyPolicy --env_id reach-v3" in text
    assert "dsrl stage2 --base steer_your_own_policy:MyPolicy --env_id reach-v3" in text


@pytest.mark.timeout(300)
def test_it_is_probed():
    small = ["--num_envs", 1, "--episodes", 4, "--constants", 1, "--states", 4, "--noises", 4]
    found = json.loads(dsrl("probe", *OWN, *small, "--json"))
    assert found["noise_effect"]["repeated"] == 0.0 and found["noise_effect"]["spread"] > 0.05
    assert found["noise_effect"]["other_rows"] is None  # all of its rows are executed
    assert found["success"]["w = 0"]["successes"] == found["success"]["w = 0"]["episodes"]  # straight to the goal


@pytest.mark.timeout(300)
def test_it_is_steered_for_some_hundred_steps(tmp_path):
    small = ["--total_timesteps", 240, "--warmup_steps", 80, "--num_envs", 1, "--utd_ratio", 1, "--batch_size", 8]
    tiny = ["--actor_hidden_dims", 16, "--critic_hidden_dims", 16, "--eval_freq", 240, "--eval_episodes", 2]
    dsrl("stage2", *OWN, *small, *tiny, "--log_freq", 10, "--out", tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    # 4 env steps per macro-step: after the first 20 of the warm-up, 40 are left, each of which earns one update.
    assert max(row.get("gradient_steps", 0) for row in rows) >= 30
    assert (tmp_path / "run" / "checkpoints" / "last.pt").is_file()
