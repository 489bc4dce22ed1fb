"""What README and the notebook show of Python runs as it stands, but for its sizes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dsrl_offpolicy import evaluate, pretrain, stage1, stage2
from dsrl_offpolicy.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "examples" / "steer_in_a_notebook.ipynb"
SMALL = """max_episode_steps=40, total_timesteps=160, warmup_steps=80, num_envs=1, utd_ratio=1, batch_size=8,
        actor_hidden_dims=[16], critic_hidden_dims=[16], eval_freq=160, eval_episodes=2, log_freq=10"""


def python(folder: Path, *argv: object) -> str:
    told = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"}
    done = subprocess.run(
        [sys.executable, *map(str, argv)], cwd=folder, env=told, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.timeout(300)
def test_readme_goes_from_a_base_policy_to_a_table(tmp_path):
    (shown,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(shown.splitlines()) <= 15
    example = (ROOT / "examples" / "steer_your_own_policy.py").read_text()
    (tmp_path / "my_policy.py").write_text(example.replace("class MyPolicy", "class DDIMPolicy"))
    for sizes, small in (
        ("total_timesteps=30_000, warmup_steps=3_000", SMALL),
        ("episodes=100", "episodes=2, constants=1, screening_episodes=1, num_envs=1, max_episode_steps=40"),
    ):
        assert sizes in shown
        shown = shown.replace(sizes, small)
    (tmp_path / "steer.py").write_text(shown)
    told = python(tmp_path, "steer.py").splitlines()[-5:]
    assert [line[:24].strip() for line in told] == [
        "base (prior noise)", "w = 0", "best of 1 constants", "stage2 deterministic", "stage2 stochastic",
    ]  # fmt: skip
    assert all(re.search(r"\d+ % \[\d+, \d+\] of 2 episodes$", line) for line in told)


RUNNER = """
import json, sys
sizes = {
    "BUDGET = 1.0": "BUDGET = 0.02", "num_envs=2": "num_envs=1",
    'compile="off"': "utd_ratio=1, batch_size=8, actor_hidden_dims=[16], critic_hidden_dims=[16]",
}
names = {"__name__": "notebook"}
for cell in json.load(open(sys.argv[1]))["cells"]:
    source = "".join(cell["source"])
    for size, small in sizes.items():
        source = source.replace(size, small)
    if cell["cell_type"] == "code":
        exec(source, names)
"""


@pytest.mark.timeout(300)
def test_the_notebooks_cells_run_in_their_order(tmp_path):
    told = python(NOTEBOOK.parent, "-c", RUNNER, NOTEBOOK)
    assert "spread of the actions over the noise: 0." in told
    assert re.search(r"^stage2 deterministic +return -?\d", told, re.MULTILINE)


def test_the_notebook_holds_no_output():
    code = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert len(code) == 5 and all(cell["outputs"] == [] for cell in code)


@pytest.mark.parametrize("job", [pretrain, stage1, stage2, evaluate])
def test_settings_are_checked_as_flags_are(job):
    with pytest.raises(InputError, match=f"{job.__name__}: unknown key 'num_env'; did you mean num_envs"):
        job(num_env=2)
    with pytest.raises(InputError, match="num_envs: expected a whole number >= 1, got 0"):
        job(num_envs=0)


def test_stage2_takes_the_settings_of_the_algorithm_that_is_named():
    with pytest.raises(InputError, match="unknown key 'action_critic_lrs'"):
        stage2(algo="na", action_critic_lrs=1.0)
    with pytest.raises(InputError, match="unknown algorithm 'sca'"):
        stage2(algo="sca")
