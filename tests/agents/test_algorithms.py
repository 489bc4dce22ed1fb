"""Stage 2 with another algorithm: one from a file of the user's own, and files that are none."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from my_ensemble import Ensemble, EnsembleConfig
from tiny_agents import layout, random_batch, seeded
from tiny_worlds import TASK, TINY_WIDTHS
from torch import Tensor

from dsrl_offpolicy.agents.dsrl_sac_agent import DSRLSACAgent, SACConfig
from dsrl_offpolicy.agents.stage2_config import chosen_algorithm, find_algorithm, stage2_config
from dsrl_offpolicy.agents.steering_agent import SteeringAgent
from dsrl_offpolicy.analysis.run_folder import read_runs
from dsrl_offpolicy.analysis.run_health import check_run
from dsrl_offpolicy.configs.loading import parse_job
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.files.checkpoint import load_checkpoint

OWN = "my_algo:Ensemble"


@pytest.fixture
def own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The user's file in the working directory."""
    shutil.copy(Path(__file__).parents[1] / "my_ensemble.py", tmp_path / "my_algo.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_algo", raising=False)
    return OWN


def test_a_users_algorithm_trains_by_its_name_and_resumes_and_is_judged(own_file, tiny_base, run_command) -> None:
    flags = [
        "--env_id", TASK, "--awsc_checkpoint", tiny_base, "--num_envs", 2, "--max_episode_steps", 32,
        "--total_timesteps", 192, "--warmup_steps", 64, "--batch_size", 8, "--log_freq", 4, "--eval_freq", 0,
        "--compile", "on", "--utd_ratio", 2, "--out", "run", *TINY_WIDTHS,
    ]  # fmt: skip
    done = run_command(["stage2", "--algo", own_file, "--subset", 3, *flags])
    assert done.status == 0, done.err
    assert f"{own_file} has no compiled update" in done.err
    (run,) = read_runs(Path("run"))
    assert (run.config.algo, run.config.subset, run.config.num_critics) == (own_file, 3, 5)
    assert run.rows[-1]["gradient_steps"] >= 30
    weights = load_checkpoint(Path("run/checkpoints/last.pt"), "stage2", "test")["training"]["networks"]
    assert next(value for name, value in weights.items() if name.startswith("critic.online")).shape[0] == 5
    assert {verdict.name for verdict in check_run(run.config, run.rows, run.summary)} >= {"q_bounded", "buffer"}
    assert chosen_algorithm(["--resume", "run"]) == own_file
    again = run_command(["stage2", "--resume", "run"])
    assert again.status == 2 and "has finished" in again.err


def test_its_settings_are_flags_with_help_ranges_and_yaml(own_file, run_command, capsys) -> None:
    job = stage2_config(own_file)
    assert parse_job(job, None, "x", []).utd_ratio == 1.0  # its own default for a setting of the loop
    assert parse_job(job, None, "x", []) == parse_job(stage2_config(own_file), None, "x", ["--subset", "2"])
    Path("mine.yaml").write_text(f"algo: {own_file}\nsubset: 4\n")
    for argv, words in (
        (["--algo", own_file, "--subse", 3], ["--subse", "did you mean", "subset"]),
        (["--config", "mine.yaml"], ["--base"]),
        (["--config", "mine.yaml", "--subset", "many"], ["subset", "many"]),
        (["--subset", 3], ["--subset"]),  # SAC has no such flag
    ):
        done = run_command(["stage2", *argv])
        assert done.status == 2 and done.err.count("\n") == 1
        assert all(word in done.err for word in words), done.err
    with pytest.raises(SystemExit):
        parse_job(job, None, "dsrl stage2", ["--help_all"])
    told = capsys.readouterr().out
    assert "Heads drawn at random" in told and "Polyak rate" in told and "Env steps" in told


def test_the_ensemble_takes_the_least_of_a_few_heads() -> None:
    config = EnsembleConfig(actor_hidden_dims=(8,), critic_hidden_dims=(8,), subset=2)
    agent = Ensemble(config, 1, layout(), generator=seeded(0))
    found = agent.lower_bound(torch.arange(5.0)[:, None].expand(5, 7))
    assert found.shape == (7,) and len(set(found.tolist())) == 1
    assert agent.update(random_batch())["critic_loss"].ndim == 0


class Halved(SteeringAgent):
    Config = SACConfig

    def update(self, batch: object, *, update_actor: bool = True) -> dict[str, Tensor]:
        return {}


@dataclass
class Thawed:
    subset: int = 2


class Unsettled(DSRLSACAgent):
    Config = Thawed  # not frozen


class Misbuilt(DSRLSACAgent):
    def __init__(self, config: SACConfig) -> None:
        raise AssertionError("never built")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Halved", ["does not define", "load_training_state", "scale_learning_rates"]),
        ("Unsettled", ["frozen dataclass Config"]),
        ("Misbuilt", ["cannot be built", "feature_dim"]),
        ("Thawed", ["is no subclass of SteeringAgent"]),
        ("Tensr", ["has no Tensr", "did you mean Tensor"]),
    ],
)
def test_a_file_that_breaks_the_contract_is_refused_in_one_line_that_says_it(name: str, words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        find_algorithm(f"{__name__}:{name}")
    message = str(error.value)
    assert "\n" not in message and all(word in message for word in words), message
    assert name == "Tensr" or "SteeringAgent" in message


def test_an_unknown_algorithm_is_answered_with_the_list(run_command) -> None:
    done = run_command(["stage2", "--algo", "sak"])
    assert done.status == 2 and "did you mean sac" in done.err and "module:Class" in done.err
