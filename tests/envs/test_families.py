"""Families: whose an environment is, what may be done with it, and what comes of a family of somebody else's."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from strange_worlds import CALLS, Robots
from tiny_worlds import HalvingPolicy

from dsrl_offpolicy.contracts import Encoding, observation_tensors
from dsrl_offpolicy.envs import processes, vector
from dsrl_offpolicy.envs.family import EnvFacts, find_family
from dsrl_offpolicy.envs.processes import ProcessVectorEnv
from dsrl_offpolicy.envs.spec import EnvSpec
from dsrl_offpolicy.envs.vector import (
    inspect_env,
    make_env,
    make_evaluation_env,
    make_macro_env,
    make_vector_env,
)
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.models.latent_layout import LatentLayout
from dsrl_offpolicy.models.latent_sources import prior_source
from dsrl_offpolicy.rollouts.collector import Collector

ARM = EnvSpec(
    "arm", env_family="strange_worlds:Robots", max_episode_steps=6, obs_horizon=2, act_horizon=2, obs_mode="rgb"
)
CHUNKS = np.zeros((1, 2, 1), np.float32)


@pytest.mark.parametrize(
    ("env_id", "name"),
    [("lever-pull-v3", "metaworld"), ("Pendulum-v1", "gymnasium"), ("strange_worlds:Unlimited-v0", "gymnasium")],
)
def test_an_id_belongs_to_one_family(env_id, name):
    assert find_family(env_id).name == name


@pytest.mark.parametrize(
    ("env_id", "family", "words"),
    [
        ("leg", "strange_worlds:Robots", ["env_id", "strange_worlds:Robots", "'leg'"]),
        ("stuk", "strange_worlds:Robots", ["did you mean stuck?"]),
        ("arm", "strange_worlds:Robot", ["env_family", "EnvFamily"]),
        ("arm", "metaword", ["env_family", "did you mean metaworld?"]),
        ("Pendulum-v1", "metaworld", ["env_id", "metaworld", "'Pendulum-v1'"]),
        ("strange_worlds:Unlimitd-v0", "auto", ["strange_worlds registers", "did you mean Unlimited-v0?"]),
        ("no_such_module:Foo-v0", "auto", ["env_id", "no_such_module"]),
    ],
)
def test_a_family_or_id_that_is_unknown_is_one_line(env_id, family, words):
    with pytest.raises(InputError) as error:
        find_family(env_id, family)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_settings_of_other_families_are_refused_by_the_family():
    with pytest.raises(InputError, match="sim_backend: expected auto for arm"):
        make_env(replace(ARM, sim_backend="physx_cpu"))
    with pytest.raises(InputError, match="reward_mode: expected sparse or dense for arm"):
        make_env(replace(ARM, reward_mode="normalized_dense"))


def test_facts_of_a_family_that_may_not_be_stepped_come_from_its_spaces():
    CALLS.clear()
    assert inspect_env(ARM) == EnvFacts(2, 1, 6, (4, 4, 3))
    assert inspect_env(replace(ARM, max_episode_steps=None)).max_episode_steps is None
    assert CALLS == ["make", "make"]


def test_frames_of_all_keys_are_their_own_and_strings_are_the_newest():
    env = make_macro_env(ARM)
    env.reset(seed=7)
    obs, *_ = env.step(CHUNKS[0])
    assert obs["state"].tolist() == [[7, 1], [7, 2]]  # the environment reuses its memory
    assert obs["rgb"][:, 0, 0, 0].tolist() == [1, 2] and obs["rgb"].dtype == np.uint8
    assert np.allclose(obs["force"], [[0.1], [0.2]])
    assert obs["instruction"] == "step 2"
    assert env.observation_space.contains(obs)
    for _ in range(2):
        *_, truncated, info = env.step(CHUNKS[0])
    assert truncated and info["episode_length"] == 6  # the limit is applied for the family


class _Reader(HalvingPolicy):
    """Keeps what it was given to encode."""

    def encode(self, obs):
        self.seen = obs
        return Encoding(obs["state"].flatten(1))


@pytest.fixture
def robots():
    """Two robots, in processes."""
    env = make_vector_env(ARM, 2)
    yield env
    env.close()


def _collector(env, policy=None) -> Collector:
    policy = policy or _Reader()
    layout = LatentLayout("full", *policy.info.latent_shape, policy.info.executed_rows, 2.0)
    noise, starts = torch.Generator().manual_seed(0), np.random.default_rng(0)
    return Collector(env, policy, layout, noise=noise, starts=starts)


def test_extra_keys_reach_the_policy_through_processes_and_the_collector(robots):
    collector = _collector(robots)
    assert collector.base_policy.seen["instruction"] == ("step 0", "step 0")
    collector.launch(prior_source())
    collector.collect()
    seen = collector.base_policy.seen
    assert seen["instruction"] == ("step 2", "step 2")
    assert seen["rgb"].shape == (2, 2, 4, 4, 3) and seen["rgb"].dtype == torch.uint8
    assert torch.allclose(seen["force"][1, :, 0], torch.tensor([0.1, 0.2]))


def test_a_list_of_strings_stays_as_it_is_and_numbers_become_tensors():
    found = observation_tensors({"state": np.zeros((2, 3)), "task": ["a", "b"]}, "cpu")
    assert found["task"] == ["a", "b"] and found["state"].shape == (2, 3)


def test_a_resumed_run_sends_no_old_chunk_where_episodes_cannot_be_repeated(robots, monkeypatch):
    before = _collector(robots)
    before.launch(prior_source())
    state = before.state_dict()
    before.collect()
    after = _collector(robots)
    with monkeypatch.context() as patch:
        for call in ("reset", "step_async"):
            patch.setattr(robots, call, None)  # nothing may be asked of the robots
        assert not after.load_state_dict(state)
    after.launch(prior_source())
    assert after.collect().obs_features[:, 1].tolist() == [0, 0]  # both began at a true start


def test_an_exclusive_family_is_evaluated_in_the_training_environment_and_begins_anew(robots):
    assert make_evaluation_env(robots, ARM, 2) is robots
    collector = _collector(robots)
    collector.launch(prior_source())
    running = collector.state_dict()["latent"]
    assert len(collector.lend()) == 2
    robots.reset(seed=[900, 901])  # the evaluation
    robots.step(np.zeros((2, 2, 1), np.float32))
    assert torch.equal(collector.state_dict()["latent"], running)  # what a stopped evaluation saves
    collector.take_back()
    collector.launch(prior_source())
    starts = collector.collect().obs_features
    assert starts[:, 1].tolist() == [0, 0] and not set(starts[:, 0].tolist()) & {900.0, 901.0}


def test_a_supervised_reset_may_take_longer_than_a_step():
    env = make_vector_env(replace(ARM, env_id="slow_reset", timeout=1.0), 1)
    try:
        obs, _ = env.reset(seed=[5])
        assert obs["state"][0, -1].tolist() == [5, 0]
    finally:
        env.close()


def test_a_process_that_may_not_be_killed_ends_the_run_and_lives_on(capsys):
    env = make_vector_env(replace(ARM, env_id="stuck", timeout=1.0), 1)
    env.reset(seed=[5])
    process = env.processes[0]
    with pytest.raises(InputError, match=f"process {process.pid} took more than 1 s; its"):
        env.step(CHUNKS)
    os.kill(process.pid, 0)  # it lives
    env.close()
    assert f"waiting for environment process {process.pid}" in capsys.readouterr().err
    assert process.exitcode == 0  # it came to its own end


@pytest.mark.parametrize("killable", [True, False])
def test_a_process_that_hangs_while_it_builds_is_not_waited_for_without_end(killable, monkeypatch):
    monkeypatch.setattr(processes, "BUILDING", 1.0)
    monkeypatch.setattr(Robots, "allowed", replace(Robots.allowed, killable=killable))
    with pytest.raises(InputError, match="took more than 1 s to build its environment"):
        make_vector_env(replace(ARM, env_id="slow_build", timeout=1.0), 1)


def test_a_failure_that_ends_an_episode_costs_what_never_succeeding_costs():
    env = make_macro_env(EnvSpec("strange_worlds:Failing-v0", act_horizon=8, gamma=0.9, reward_scale=0.5))
    env.reset(seed=0)
    _, reward, terminated, _, info = env.step(np.zeros((8, 4), np.float32))
    assert terminated and info["n_steps"] == 3 and not info["success"]
    assert reward == pytest.approx(-0.5 / (1 - 0.9))


def test_success_that_is_nan_is_none():
    env = make_env(EnvSpec("strange_worlds:NanSuccess-v0"))
    env.reset(seed=0)
    _, reward, terminated, _, info = env.step(np.zeros(4, np.float32))
    assert (reward, terminated, info["success"]) == (-1.0, False, False)


def test_an_environment_without_a_time_limit_is_refused_before_it_is_evaluated(run_command, tiny_base, tmp_path):
    flags = ["--env_id", "strange_worlds:Unlimited-v0", "--awsc_checkpoint", tiny_base, "--out", tmp_path / "run"]
    for command in ("eval", "stage2"):
        done = run_command([command, *flags])
        assert done.status == 2 and not (tmp_path / "run").exists()
        assert "--max_episode_steps: expected the env steps" in done.err and len(done.error_lines) == 1
    done = run_command(["stage2", *flags, "--train_episode_steps", 30])  # evaluation would have none
    assert done.status == 2 and "--max_episode_steps" in done.err


def test_ids_that_name_their_module_are_accepted_by_every_job(run_command, tiny_demos, tiny_base, tmp_path):
    env_id = ["--env_id", "strange_worlds:Failing-v0"]
    done = run_command(["doctor", "env", *env_id, "--seconds", 0.05])
    assert done.status == 0, done.err
    for command in (["pretrain"], ["stage1", "--awsc_checkpoint", tiny_base]):
        done = run_command([*command, *env_id, "--demo_path", tiny_demos, "--out", tmp_path / "run"])
        # The demonstrations are of another task: the id itself is known.
        assert done.status == 2 and "env_id: expected a MetaWorld" not in done.err, done.err
        assert str(tiny_demos) in done.err


def test_stage_2_of_an_exclusive_family_trains_and_evaluates_in_one_environment(
    run_command, tiny_base, tmp_path, monkeypatch
):
    from tiny_worlds import TINY_WIDTHS

    made = []

    class Counted(ProcessVectorEnv):
        def __init__(self, *args, **settings) -> None:
            made.append(args[1])
            super().__init__(*args, **settings)

    monkeypatch.setattr(vector, "ProcessVectorEnv", Counted)
    done = run_command(
        ["stage2", "--env_id", "room", "--env_family", "strange_worlds:OneRoom", "--awsc_checkpoint", tiny_base,
         "--out", tmp_path / "run", "--max_episode_steps", 20, "--num_envs", 1, "--total_timesteps", 64,
         "--warmup_steps", 16, "--utd_ratio", 1, "--batch_size", 4, "--log_freq", 2, "--eval_freq", 24,
         "--eval_episodes", 1, *TINY_WIDTHS]
    )  # fmt: skip
    assert done.status == 0, done.err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert made == [1] and summary["evaluation"]["length"]["value"] == 20
    # Chunks of 8 over episodes of 20 that begin anew after each evaluation: what was stored is what was stepped.
    assert summary["env_steps"] >= 64 and summary["macro_steps"] <= summary["env_steps"] / 4
