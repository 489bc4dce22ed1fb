"""The whole way at tiny sizes: demonstrations -> Stage 0 -> Stage 1 -> Stage 2 -> evaluation.

Also a script: ``python tests/test_minimal_training.py``.
"""

from __future__ import annotations

import subprocess
import sys

if __name__ == "__main__":  # a process of its own: environment workers import the main module, so it stays light
    sys.exit(subprocess.call([sys.executable, "-m", "pytest", __file__, "-v", *sys.argv[1:]]))

import csv
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from stoppable_runs import shorten_quickstart
from tiny_worlds import TASK

from dsrl_offpolicy import load_base_policy
from dsrl_offpolicy.agents.dsrl_sac_agent import DSRLSACAgent
from dsrl_offpolicy.agents.stage2_config import Stage2Config
from dsrl_offpolicy.buffers.replay_files import ReplayFiles
from dsrl_offpolicy.commands import demos as generate_demos
from dsrl_offpolicy.commands import evaluate, quickstart
from dsrl_offpolicy.configs.jobs import (
    DemosConfig,
    EvalConfig,
    QuickstartConfig,
    Stage0Config,
    Stage1Config,
)
from dsrl_offpolicy.contracts import Encoding
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.files.checkpoint import load_checkpoint, read_tensors
from dsrl_offpolicy.train import pretrain_stage0, train_stage1_offline, train_stage2_online
from dsrl_offpolicy.train.train_stage2_online import Stage2

WIDTHS = {"actor_hidden_dims": (16,), "critic_hidden_dims": (16,)}
WALL_CLOCK = ("minutes", "env_steps_per_s", "gradient_steps_per_s")


@dataclass(frozen=True)
class Chain:
    """The run folders, and the configs that made them."""

    demos: Path
    stage0: Path
    stage1: Path
    stage2: Path
    evaluation: Path
    stage0_config: Stage0Config
    stage1_config: Stage1Config
    stage2_config: Stage2Config


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    folder = tmp_path_factory.mktemp("chain")
    demos = generate_demos.run(DemosConfig(env_id=TASK, out=folder / "demos.h5", episodes=5, demo_steps=80))
    stage0_config = Stage0Config(
        env_id=TASK, demo_path=demos, out=folder / "stage0", total_iters=20, batch_size=16, log_freq=5,
        denoising_steps=2, velocity_widths=(16,), critic_hidden_dims=(16,), embed_dim=8,
    )  # fmt: skip
    stage0 = pretrain_stage0.run(stage0_config)
    base = stage0 / "checkpoints" / "last.pt"
    stage1_config = Stage1Config(
        env_id=TASK, demo_path=demos, awsc_checkpoint=base, out=folder / "stage1", total_iters=6, batch_size=8,
        log_freq=3, num_candidates=4, distill_q=True, verify_states=8, verify_samples=4, eval_freq=6,
        eval_episodes=2, num_envs=1, max_episode_steps=16, **WIDTHS,
    )  # fmt: skip
    stage1 = train_stage1_offline.run(stage1_config)
    stage2_config = Stage2Config(
        env_id=TASK, awsc_checkpoint=base, stage1_checkpoint=stage1 / "checkpoints" / "last.pt", init_critic=True,
        out=folder / "stage2", total_timesteps=320, warmup_steps=64, batch_size=8, utd_ratio=2.0, log_freq=10,
        eval_freq=160, eval_episodes=2, num_envs=2, train_episode_steps=28,
        max_episode_steps=36, **WIDTHS,
    )  # fmt: skip
    stage2 = train_stage2_online.run(stage2_config)
    evaluation = evaluate.run(
        EvalConfig(
            env_id=TASK, awsc_checkpoint=base, stage1_checkpoint=stage1 / "checkpoints" / "last.pt",
            stage2_checkpoint=stage2 / "checkpoints" / "last.pt", out=folder / "eval", episodes=3, constants=2,
            screening_episodes=1, num_envs=1, max_episode_steps=16,
        )
    )  # fmt: skip
    return Chain(demos, stage0, stage1, stage2, evaluation, stage0_config, stage1_config, stage2_config)


def _metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _without_time(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in WALL_CLOCK} for row in rows]


def _summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def _same(one: Any, other: Any) -> bool:
    """Whether two nested structures of tensors and plain values are equal to the bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


@pytest.mark.parametrize("name", ["stage0", "stage1", "stage2", "evaluation"])
def test_every_run_folder_holds_config_metrics_and_summary(chain, name):
    folder = getattr(chain, name)
    for file in ("config.yaml", "metrics.jsonl", "summary.json"):
        assert (folder / file).stat().st_size > 0, file
    assert list((folder / "tensorboard").glob("events.*"))
    assert _summary(folder)


@pytest.mark.parametrize("name", ["stage0", "stage1", "stage2"])
def test_training_leaves_its_checkpoints(chain, name):
    saved = {p.name for p in (getattr(chain, name) / "checkpoints").iterdir()}
    best = set() if name == "stage0" else {"best_eval_success_once.pt"}
    manifest = {"manifest.json"} if name == "stage2" else set()
    assert saved == {"last.pt", *best, *manifest}


def test_the_base_policy_is_rebuilt_from_its_checkpoint_alone(chain):
    policy = load_base_policy(chain.stage0 / "checkpoints" / "last.pt")
    assert policy.info.latent_shape == (8, 4) and policy.info.executed_rows == slice(0, 8)
    features = policy.encode(torch.zeros(3, 1, 39)).features
    chunk = policy.decode(Encoding(features), torch.randn(3, 8, 4))
    assert chunk.shape == (3, 8, 4) and chunk.abs().max() <= 1
    assert policy.critic.q_values(features, chunk[:, policy.info.executed_rows]).shape == (2, 3)
    assert torch.equal(
        policy.decode(Encoding(features), torch.ones(3, 8, 4)),
        policy.decode(Encoding(features), torch.ones(3, 8, 4)),
    )
    assert not any(p.requires_grad for p in policy.parameters())


def test_stage0_metrics(chain):
    rows = _metrics(chain.stage0)
    assert [row["gradient_steps"] for row in rows] == [5, 10, 15, 20]
    for row in rows:
        assert {"flow_loss", "consistency_loss", "critic_loss", "value_loss", "q_mean"} <= set(row)
    summary = _summary(chain.stage0)
    assert summary["demonstrations"] == 5 and summary["gradient_steps"] == 20


def test_stage1_metrics_have_their_names_and_ranges(chain):
    rows = [row for row in _metrics(chain.stage1) if "nll_loss" in row]
    assert [row["gradient_steps"] for row in rows] == [3, 6]
    for row in rows:
        assert {"nll_loss", "kl_loss", "eff_num", "corr_A_logprob", "distill_loss"} <= set(row)
        assert 1 <= row["eff_num"] <= 4  # M candidates
        assert -1 <= row["corr_A_logprob"] <= 1
        assert row["kl_loss"] >= 0


def test_stage1_verifies_itself_and_is_evaluated(chain):
    summary = _summary(chain.stage1)
    check = summary["verification"]
    assert check["difference"] == pytest.approx(check["q_policy"] - check["q_prior"], abs=1e-4)
    assert check["episodes"] == 1 and "difference_low" not in check  # one held-out episode has no interval
    assert check["states"] == 8
    assert summary["evaluation"]["episodes"] == 2
    assert summary["evaluation"]["length"]["value"] == 16  # max_episode_steps: hardly trained, it never succeeds


def test_stage2_metrics_have_their_names(chain):
    rows = [row for row in _metrics(chain.stage2) if "td_error" in row]
    assert [row["gradient_steps"] for row in rows] == list(range(10, rows[-1]["gradient_steps"] + 1, 10))
    for row in rows:
        assert {"td_error", "q_mean", "alpha", "entropy", "actor_loss", "critic_loss"} <= set(row)
        assert {"env_steps", "macro_steps", "gradient_steps", "utd_effective", "buffer_size"} <= set(row)
        assert row["alpha"] > 0 and row["td_error"] >= 0


def test_stage2_evaluates_on_its_way_and_at_its_end(chain):
    rows = [row for row in _metrics(chain.stage2) if "success_once" in row]
    summary = _summary(chain.stage2)
    assert len(rows) >= 3 and rows[-1]["env_steps"] == summary["env_steps"]
    for row in rows:
        assert 0 <= row["success_once_low"] <= row["success_once"] <= row["success_once_high"] <= 1
        assert {"success_at_end", "return", "length"} <= set(row)
        assert row["length"] == 36  # the evaluation's own limit, not that of training
    assert (chain.stage2 / "learning_curve.png").read_bytes().startswith(b"\x89PNG")


def test_stage2_counts_env_steps_of_all_environments(chain):
    summary = _summary(chain.stage2)
    (file,) = (chain.stage2 / "replay").glob("*.pt")  # saved once, at the end
    buffer = read_tensors(file, "file of transitions", "x")
    assert summary["env_steps"] >= 320
    assert summary["env_steps"] == int(buffer["n_steps"].sum())  # primitive steps, as stored
    assert summary["macro_steps"] == len(buffer["reward"])
    # 28 steps an episode: three whole chunks and one of 4, which the time limit truncates.
    assert set(buffer["n_steps"].tolist()) == {4, 8}
    cut = buffer["n_steps"] == 4
    assert torch.equal(buffer["truncated"], cut) and not buffer["terminated"].any()
    assert torch.allclose(buffer["discount"], 0.99 ** buffer["n_steps"].float())  # truncation bootstraps
    assert buffer["latent"].abs().max() < 2  # |w| < action_magnitude


def test_the_evaluation_table_compares_base_controls_and_policies(chain):
    names = [
        "base (prior noise)", "w = 0", "best of 2 constants", "best of 32 by Q^A", "stage1 deterministic",
        "stage1 stochastic", "stage2 deterministic", "stage2 stochastic",
    ]  # fmt: skip
    rows = json.loads((chain.evaluation / "evaluation.json").read_text())
    assert [row["policy"] for row in rows] == names
    for row in rows:
        assert row["episodes"] == 3
        for column in ("success_once", "success_at_end", "episode_return", "length"):
            assert row[f"{column}_low"] <= row[column] <= row[f"{column}_high"]
    with (chain.evaluation / "evaluation.csv").open() as file:
        assert [row["policy"] for row in csv.DictReader(file)] == names


def test_same_seed_same_stage0_and_another_seed_another(chain, tmp_path):
    again = pretrain_stage0.run(replace(chain.stage0_config, out=tmp_path / "again"))
    assert _without_time(_metrics(again)) == _without_time(_metrics(chain.stage0))
    one, two = (load_checkpoint(f / "checkpoints" / "last.pt", "base_policy", "x") for f in (chain.stage0, again))
    assert _same(one, two)
    other = pretrain_stage0.run(replace(chain.stage0_config, out=tmp_path / "other", seed=2))
    assert _without_time(_metrics(other)) != _without_time(_metrics(chain.stage0))


def test_same_seed_same_stage1(chain, tmp_path):
    configs = [replace(chain.stage1_config, out=tmp_path / name, eval_freq=0) for name in ("one", "two")]
    folders = [train_stage1_offline.run(config) for config in configs]
    rows = [_without_time(_metrics(folder)) for folder in folders]
    assert rows[0] == rows[1]
    saved = [load_checkpoint(folder / "checkpoints" / "last.pt", "stage1", "x") for folder in folders]
    assert _same(*saved)
    # Evaluations on the way draw from generators of their own and change nothing.
    evaluated = load_checkpoint(chain.stage1 / "checkpoints" / "last.pt", "stage1", "x")
    assert _same(saved[0]["policy"], evaluated["policy"])


@pytest.fixture(scope="module")
def second(chain, tmp_path_factory) -> Stage2:
    """The chain's Stage 2 once more; the job itself, after its run."""
    job = Stage2(replace(chain.stage2_config, out=tmp_path_factory.mktemp("second") / "run"))
    job.run()
    return job


@pytest.mark.parametrize(
    ("settings", "states", "size"),
    [
        # 100 steps of 8 states decode 3200 candidates; half of that among 50 states is 32 each, 4 M is 16
        ({}, 50, 16),
        ({}, 150, 10),  # 1600 / 150
        ({}, 201, 0),  # 7 each, below 2 M
        ({}, 10**9, 0),
        ({"total_iters": 10**9}, 10**7, 0),  # 2^30 bytes / (10^7 states * 10 floats * 4 bytes) = 2, below 2 M
        ({"candidate_pool": 0}, 50, 0),
        ({"candidate_pool": 5}, 201, 5),
    ],
)
def test_a_pool_is_taken_where_it_saves_half_of_the_decoding_and_fits(settings, states, size):
    config = Stage1Config(**{"total_iters": 100, "batch_size": 8, "num_candidates": 4, **settings})
    assert train_stage1_offline.pool_size(config, states, 10) == size


def test_stage1_learns_from_a_pool(chain, tmp_path):
    config = replace(chain.stage1_config, out=tmp_path / "run", candidate_pool=9, eval_freq=0)
    rows = _metrics(train_stage1_offline.run(config))
    fresh = _metrics(chain.stage1)
    assert {"nll_loss", "eff_num", "distill_loss"} <= set(rows[0])
    assert rows[0]["nll_loss"] != fresh[0]["nll_loss"]
    with pytest.raises(InputError, match="candidate_pool: expected 0 or at least num_candidates 4, got 3"):
        train_stage1_offline.run(replace(config, out=tmp_path / "other", candidate_pool=3))


def test_same_seed_same_stage2(chain, second):
    folder = second.config.out
    assert _without_time(_metrics(folder)) == _without_time(_metrics(chain.stage2))
    one, two = (load_checkpoint(f / "checkpoints" / "last.pt", "stage2", "x") for f in (chain.stage2, folder))
    assert one.pop("log")["rows"] == two.pop("log")["rows"]  # and the minutes, which differ
    assert one["settings"].pop("out") != two["settings"].pop("out")
    assert _same(one, two)


def test_last_checkpoint_restores_learner_and_buffer(second, tmp_path):
    content = load_checkpoint(second.config.out / "checkpoints" / "last.pt", "stage2", "x")
    assert content["counters"] == asdict(second.counters)
    restored = Stage2(replace(second.config, out=tmp_path / "unused", seed=99, stage1_checkpoint=None,
                              init_critic=False))  # fmt: skip
    assert not _same(restored.agent.state_dict(), second.agent.state_dict())
    restored.agent.load_training_state(content["training"])
    ReplayFiles(second.config.out / "replay").load(restored.buffer, content["replay"])
    for _ in range(5):
        metrics = [job.agent.update(job.buffer.sample(8)) for job in (second, restored)]
        assert _same(*metrics)
    assert _same(second.agent.training_state(), restored.agent.training_state())


@pytest.mark.parametrize(
    ("num_envs", "utd_ratio", "warmup_steps", "burnin", "anneal_from"),
    [(1, 0.5, 0, 0, 1.0), (3, 4.0, 80, 7, 0.5)],
    ids=["1x0.5", "3x4"],
)
def test_utd_is_gradient_steps_per_macro_transition_stored(
    chain, tmp_path, monkeypatch, num_envs, utd_ratio, warmup_steps, burnin, anneal_from
):
    updates = {"all": 0}
    original = DSRLSACAgent.update

    def counted(self, batch, **options):
        updates["all"] += 1
        return original(self, batch, **options)

    monkeypatch.setattr(DSRLSACAgent, "update", counted)
    job = Stage2(
        replace(
            chain.stage2_config, out=tmp_path / "run", num_envs=num_envs, utd_ratio=utd_ratio, batch_size=4,
            warmup_steps=warmup_steps, critic_burnin_steps=burnin, total_timesteps=400, eval_freq=0,
            max_episode_steps=None, train_episode_steps=None, log_freq=100, anneal_from=anneal_from,
        )
    )  # fmt: skip
    job.run()
    # Chunks of 8 env steps in each environment: the warm-up lasts until a vector step ends at >= 80 env steps.
    vector_steps_of_warmup = -(-warmup_steps // (8 * num_envs))
    earning = job.buffer.total_added - num_envs * vector_steps_of_warmup
    # Chunks are 400 / 8 = 50 in one environment, and 51 in three, less the 12 of their warm-up.
    assert earning == (50 if num_envs == 1 else 39)
    assert updates["all"] - burnin == utd_ratio * earning
    summary = _summary(tmp_path / "run")
    assert summary["gradient_steps"] == updates["all"] - burnin
    assert summary["burnin_steps"] == burnin
    assert summary["earning_transitions"] == earning
    assert summary["utd_effective"] == utd_ratio
    rates = [o.param_groups[0]["lr"] for o in (job.agent.actor_optimizer, job.agent.critic_optimizer)]
    assert rates == ([0, 0] if anneal_from < 1 else [job.config.actor_lr, job.config.critic_lr])


def test_rows_of_metrics_are_complete_even_before_the_first_actor_step(chain, tmp_path):
    config = replace(
        chain.stage2_config, out=tmp_path / "run", num_envs=1, total_timesteps=48, warmup_steps=0, utd_ratio=1.0,
        actor_update_every=2, log_freq=1, batch_size=4, eval_freq=0, train_episode_steps=None,
        max_episode_steps=None,
    )  # fmt: skip
    rows = [row for row in _metrics(train_stage2_online.run(config)) if row["group"] == "train"]
    assert [row["gradient_steps"] for row in rows] == [1, 2, 3, 4, 5, 6]
    for row in rows:
        assert {"td_error", "q_mean", "critic_loss"} <= set(row)
    for row in rows[1:]:
        assert {"alpha", "entropy", "actor_loss"} <= set(row)


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_no_evaluation_episodes_is_refused_or_means_no_evaluation(chain, tmp_path, stage):
    config = replace(
        getattr(chain, f"{stage}_config"), out=tmp_path / "run", eval_episodes=0, eval_freq=1, num_envs=1
    )
    if stage == "stage2":
        config = replace(config, total_timesteps=16, warmup_steps=0, utd_ratio=0.5)
    run = {"stage1": train_stage1_offline.run, "stage2": train_stage2_online.run}[stage]
    try:
        folder = run(config)
    except InputError:
        assert not (tmp_path / "run").exists()
    else:
        assert (folder / "checkpoints" / "last.pt").is_file()
        assert not any("success_once" in row for row in _metrics(folder))


def test_quickstart_does_not_start_from_a_critic_that_knows_little_of_its_start(tmp_path):
    config = QuickstartConfig(budget=0.5)
    near, far = (quickstart._stage2_from(start, config, tmp_path) for start in ("aw_mle", "constant 3"))
    assert (near.init_critic, near.critic_burnin_steps) == (True, 0)
    assert (far.init_critic, far.critic_burnin_steps) == (False, 1500)  # half of 3,000
    assert replace(far, init_critic=True, critic_burnin_steps=0) == near


def test_quickstart_end_to_end_at_a_hundredth_of_its_budget(tmp_path, capsys, monkeypatch):
    shorten_quickstart(monkeypatch)
    out = tmp_path / "quick"
    assert quickstart.run(QuickstartConfig(out=out, budget=0.01, seed=3, num_envs=1)) == out
    summary, printed = _summary(out), capsys.readouterr().out
    for name in ("base", "stage1", "stage2"):
        assert f"  {name} " in printed  # the final table
        entry = summary[name]
        assert set(entry) == {"success", "low", "high", "episodes"}
        assert 0 <= entry["low"] <= entry["success"] <= entry["high"] <= 1 and entry["episodes"] >= 1
    assert summary["task"] == QuickstartConfig().task and summary["seed"] == 3
    assert summary["env_steps"] > 0 and summary["gradient_steps"] > 0 and summary["minutes"] > 0
    # One episode each, of 200 env steps at most. A win on one start is not clearly better than AW-MLE.
    trials = _summary(out / "stage1")["choice"]["trials"]
    assert summary["start"] == "aw_mle" and {trial["episodes"] for trial in trials.values()} == {1}
    assert 100 * len(trials) < summary["choosing_env_steps"] <= 200 * len(trials)
    assert set(trials) == {"prior", "w = 0", "aw_mle", "constant 1"}
    assert f"{summary['choosing_env_steps']} env steps to choose its start (aw_mle)" in printed
    for file in ("config.yaml", "metrics.jsonl", "evaluation.csv", "evaluation.json", "learning_curve.png"):
        assert (out / file).stat().st_size > 0, file
    assert (out / "stage2" / "checkpoints" / "last.pt").is_file()
