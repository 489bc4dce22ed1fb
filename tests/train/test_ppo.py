"""On-policy PPO over macro-steps: its advantages by hand, where it starts, what it leaves, that it learns."""

from __future__ import annotations

import json
import math
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small_worlds import CountingEnv, counting_spec
from tiny_worlds import HalvingPolicy, counting_vector
from torch import nn

sb3 = pytest.importorskip("stable_baselines3", reason="needs the extra sb3")

from dsrl_offpolicy.agents.optimization import annealed  # noqa: E402
from dsrl_offpolicy.agents.ppo import LatentActorCritic, MacroSteps  # noqa: E402
from dsrl_offpolicy.files.checkpoint import load_checkpoint  # noqa: E402
from dsrl_offpolicy.models.latent_layout import LatentLayout  # noqa: E402
from dsrl_offpolicy.models.latent_policy import LatentPolicy  # noqa: E402
from dsrl_offpolicy.rollouts.latent_env import LatentVectorEnv  # noqa: E402
from dsrl_offpolicy.rollouts.sb3_env import SB3VecEnv  # noqa: E402
from dsrl_offpolicy.train.steering_files import save_steering  # noqa: E402
from dsrl_offpolicy.train.train_ppo import OnPolicy  # noqa: E402

LAYOUT = LatentLayout("full", 4, 1, slice(1, 3), 2.0)
WORLD = [
    "--base", "tiny_worlds:HalvingPolicy", "--env_id", "latent_worlds:Reach-v0", "--num_envs", 2,
    "--reward_mode", "dense", "--reward_scale", 1, "--rollout_steps", 64, "--batch_size", 64,
    "--actor_hidden_dims", 32, "--critic_hidden_dims", 32, "--eval_episodes", 10,
]  # fmt: skip


def _rows(folder: Path, group: str) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["group"] == group]


def _constant(value: float) -> nn.Module:
    net = nn.Linear(4, 1)
    nn.init.zeros_(net.weight)
    nn.init.constant_(net.bias, value)
    return net


def _policy(value: nn.Module, regularizer: str = "entropy") -> dict:
    return {"actor": LatentPolicy(4, (8,), LAYOUT), "value": value, "regularizer": regularizer}


def test_advantages_are_those_of_gae_over_macro_steps(monkeypatch):
    # Step k of an episode brings reward k; chunks of 2 at gamma .5. A first chunk brings 1 + .5 * 2 = 2, a second
    # one that is cut to its first step 3. V is 4 everywhere, lambda .5, so a whole chunk's delta is
    # 2 + .25 * 4 - 4 = -1, and .25 * .5 = .125 of the next advantage is added where the episode goes on.
    # slot 0, truncated at step 3: delta 3 + .5 * 4 - 4 = 1 (gamma^1: one step). Before: -1 + .125 * 1 = -.875.
    # slot 1, terminated at step 3: delta 3 - 4 = -1.                             Before: -1 - .125 = -1.125.
    # slot 2, its second macro-step lost: delta 0 + 4 - 4 = 0.                    Before: -1.
    # The third macro-step is the first of a new episode, and the rollout ends on it: -1.
    inner = counting_vector(
        [CountingEnv(truncate_at=3), CountingEnv(terminate_at=3), CountingEnv()], counting_spec(gamma=0.5)
    )
    step_wait, lost = inner.step_wait, iter([False, True, False])

    def lossy():
        obs, reward, terminated, truncated, info = step_wait()
        gone = np.array([False, False, next(lost)])
        return obs, np.where(gone, 0, reward), terminated, truncated, {
            **info, "lost": gone, "n_steps": np.where(gone, 0, info["n_steps"])
        }  # fmt: skip

    monkeypatch.setattr(inner, "step_wait", lossy)
    env = LatentVectorEnv(inner, HalvingPolicy(), LAYOUT, gamma=0.5)
    learner = sb3.PPO(
        LatentActorCritic, SB3VecEnv(env, before_squash=True), n_steps=3, batch_size=9, gamma=env.discount,
        gae_lambda=0.5, policy_kwargs=_policy(_constant(4.0)), device="cpu",
    )  # fmt: skip
    learner.set_logger(sb3.common.logger.Logger(None, []))
    steps = []
    callback = MacroSteps(lambda infos, ended: steps.append([info["n_steps"] for info in infos]))
    learner._setup_learn(9, callback)
    learner.collect_rollouts(learner.env, callback, learner.rollout_buffer, 3)
    assert steps == [[2, 2, 2], [1, 1, 0], [2, 2, 2]]
    expected = np.array([[-0.875, -1.125, -1.0], [1.0, -1.0, 0.0], [-1.0, -1.0, -1.0]])
    np.testing.assert_allclose(learner.rollout_buffer.advantages, expected, atol=1e-6)
    np.testing.assert_allclose(learner.rollout_buffer.returns, expected + 4, atol=1e-6)


def test_the_environment_squashes_what_the_policy_samples():
    world, policy = CountingEnv(), HalvingPolicy()
    env = LatentVectorEnv(counting_vector([world], counting_spec()), policy, LAYOUT, gamma=0.5)
    vector = SB3VecEnv(env, before_squash=True)
    vector.reset()
    vector.step(np.full((1, 4), 100.0, np.float32))  # b = 2
    assert policy.decoded[0].flatten().tolist() == [2.0] * 4
    vector.step(np.full((1, 4), 1.0, np.float32))
    assert policy.decoded[1][0, 0, 0].item() == pytest.approx(2 * math.tanh(0.5))


def _actor_critic(regularizer: str = "entropy") -> LatentActorCritic:
    env = LatentVectorEnv(counting_vector([CountingEnv()], counting_spec()), HalvingPolicy(), LAYOUT, gamma=0.5)
    vector = SB3VecEnv(env, before_squash=True)
    parts = _policy(_constant(4.0), regularizer)
    return LatentActorCritic(vector.observation_space, vector.action_space, lambda left: 1e-3, **parts)


def test_a_fresh_policy_is_the_prior():
    policy, obs = _actor_critic(), torch.randn(20000, 4)
    with torch.no_grad():
        u, values, log_prob = policy(obs)
    assert u.mean().abs() < 0.02 and (u.std() - 1).abs() < 0.02
    assert (values == 4).all()
    again, stored, entropy = policy.evaluate_actions(obs, u)
    assert (again == 4).all() and torch.allclose(stored, log_prob)
    # 4 dimensions of the standard normal.
    assert torch.allclose(entropy, torch.full((20000,), 2 * math.log(2 * math.pi * math.e)))
    assert (policy.predict(np.zeros((1, 4), np.float32), deterministic=True)[0] == 0).all()


def test_the_kl_regulariser_is_minus_the_divergence_from_the_prior():
    policy, obs = _actor_critic("kl"), torch.zeros(1, 4)
    with torch.no_grad():
        policy.actor.net[-1].bias[:4] = 1.0  # means of 1: KL = 4 * 1/2
    assert policy.evaluate_actions(obs, torch.zeros(1, 4))[2].item() == pytest.approx(-2.0)


@pytest.mark.parametrize(
    ("done", "anneal_from", "scale"), [(0.5, 1.0, 1.0), (1.2, 1.0, 1.0), (0.5, 0.5, 1.0), (0.75, 0.5, 0.5)]
)
def test_the_learning_rate_falls_from_where_it_was_told(done, anneal_from, scale):
    assert annealed(done, anneal_from) == scale


@pytest.fixture(scope="module")
def trained(run_command, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ppo") / "run"
    plan = ["--lr", 3e-3, "--total_timesteps", 2000, "--eval_freq", 1000, "--seed", 1]
    done = run_command(["ppo", *WORLD, *plan, "--out", folder])
    assert done.status == 0, done.err
    return folder


def test_it_learns(trained):
    evaluations = _rows(trained, "eval")
    assert evaluations[0]["env_steps"] == 0 and evaluations[0]["success_once"] < 0.5
    assert evaluations[-1]["env_steps"] >= 2000 and evaluations[-1]["success_once"] > 0.9


def test_its_rows_stand_at_env_steps_of_all_environments(trained):
    rows, summary = _rows(trained, "train"), json.loads((trained / "summary.json").read_text())
    assert [row["macro_steps"] for row in rows] == [128 * i for i in range(1, len(rows) + 1)]  # 64 x 2 a rollout
    assert [row["gradient_steps"] for row in rows] == [20 * i for i in range(1, len(rows) + 1)]  # 10 x 128 / 64
    assert all(row["macro_steps"] <= row["env_steps"] <= 2 * row["macro_steps"] for row in rows)
    assert {"policy_loss", "value_loss", "approx_kl", "clip_fraction", "kl", "train_success"} <= set(rows[0])
    assert summary["env_steps"] == rows[-1]["env_steps"] and summary["lost_macro_steps"] == 0
    assert json.loads((trained / "run.json").read_text()) == {"kind": "ppo"}
    assert (trained / "learning_curve.png").is_file()


def test_eval_takes_its_checkpoints_for_those_of_stage_2(trained, run_command, tmp_path):
    best = trained / "checkpoints" / "best_eval_success_once.pt"
    argv = ["eval", *WORLD[:6], "--episodes", 6, "--constants", 0, "--out", tmp_path / "eval"]
    done = run_command([*argv, "--stage2_checkpoint", best])
    assert done.status == 0, done.err
    table = {row["policy"]: row for row in json.loads((tmp_path / "eval" / "evaluation.json").read_text())}
    assert table["stage2 deterministic"]["success_once"] > table["w = 0"]["success_once"]


def test_a_stopped_run_is_saved_and_goes_on(run_command, tmp_path, monkeypatch):
    folder, original, calls = tmp_path / "run", OnPolicy._count, []

    def count(self, infos, ended):
        calls.append(1)
        original(self, infos, ended)
        if len(calls) == 100:  # in the second rollout of 64
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(OnPolicy, "_count", count)
        done = run_command(["ppo", *WORLD, "--total_timesteps", 600, "--eval_freq", 0, "--out", folder])
    assert done.status == 130 and f"dsrl ppo --resume {folder}" in done.err and len(calls) == 100
    saved = load_checkpoint(folder / "checkpoints" / "last.pt", "stage2", "test")
    assert (saved["counters"]["macro_steps"], saved["counters"]["gradient_steps"]) == (200, 20)
    done = run_command(["ppo", "--resume", folder])
    assert done.status == 0 and "new episodes and a new rollout begin" in done.err, done.err
    rows = _rows(folder, "train")
    assert [row["macro_steps"] for row in rows][:2] == [128, 200 + 128]
    assert [row["gradient_steps"] for row in rows][:2] == [20, 40]
    done = run_command(["ppo", "--resume", folder])
    assert done.status == 2 and "has finished" in done.err


def test_it_starts_from_stage_1(run_command, tmp_path):
    base, layout = HalvingPolicy(), LatentLayout("full", 4, 1, slice(1, 3), 2.0)
    stage1 = LatentPolicy(4, (32,), layout)
    nn.init.constant_(stage1.net[-1].bias, 0.25)
    save_steering(tmp_path / "stage1.pt", "stage1", stage1, base, (32,), {})
    argv = ["ppo", *WORLD, "--stage1_checkpoint", tmp_path / "stage1.pt", "--eval_freq", 0]
    done = run_command([*argv, "--total_timesteps", 100, "--lr", 1e-9, "--out", tmp_path / "run"])
    assert done.status == 0, done.err
    saved = load_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt", "stage2", "test")
    assert torch.allclose(saved["policy"]["net.3.bias"], torch.tensor(0.25), atol=1e-6)
    done = run_command([*argv, "--action_magnitude", 3, "--out", tmp_path / "other"])
    assert done.status == 2 and "stage1_checkpoint: expected steer_mode full and action_magnitude 3.0" in done.err
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--batch_size", 100], "batch_size: expected a divisor of rollout_steps x num_envs = 128, got 100"),
        (["--gae_lambda", 1.1], "gae_lambda: expected a number <= 1"),
        (["--base", "no.pt"], "no.pt does not exist"),
    ],
)
def test_bad_input_is_one_line(run_command, tmp_path, flags, says):
    done = run_command(["ppo", *WORLD, "--out", tmp_path / "run", *flags])
    assert done.status == 2 and len(done.error_lines) == 1, done.err
    assert done.err.startswith("dsrl ppo: error: ") and says in done.err
    assert not (tmp_path / "run").exists()


def test_a_machine_without_the_library_is_told_the_extra(run_command, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    done = run_command(["ppo", *WORLD, "--out", tmp_path / "run"])
    assert done.status == 2 and len(done.error_lines) == 1
    assert "pip install 'dsrl_offpolicy[sb3]'" in done.err


def test_doctor_says_that_it_has_no_checks_for_it(run_command, trained):
    done = run_command(["doctor", trained])
    assert done.status == 2 and "no checks for one of PPO" in done.err and len(done.error_lines) == 1
