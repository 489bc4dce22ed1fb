"""Environments in processes: explicit resets, one thread each, and no torch inside."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from dsrl_offpolicy.envs.spec import EnvSpec
from dsrl_offpolicy.envs.vector import make_macro_env, make_vector_env

SPEC = EnvSpec("Pendulum-v1", reward_mode="dense", max_episode_steps=4, obs_horizon=2, act_horizon=2)


@pytest.fixture(scope="module")
def pair():
    env = make_vector_env(SPEC, 2)
    yield env
    env.close()


def test_seeds_of_a_reset_are_the_starts_of_the_slots(pair):
    obs, _ = pair.reset(seed=[5, 6])
    alone = make_macro_env(SPEC)
    assert np.array_equal(obs[0], alone.reset(seed=5)[0])
    assert np.array_equal(obs[1], alone.reset(seed=6)[0])
    assert not np.allclose(obs[0], obs[1])


def test_processes_step_as_one_environment_here_does(pair):
    pair.reset(seed=[5, 6])
    alone = make_macro_env(SPEC)
    alone.reset(seed=5)
    actions = np.array([[[0.5], [-1.0]], [[0.1], [0.2]]], np.float32)
    obs, reward, terminated, truncated, info = pair.step(actions)
    obs_alone, reward_alone, *_ = alone.step(actions[0])
    assert np.array_equal(obs[0], obs_alone) and reward[0] == pytest.approx(reward_alone)
    assert info["n_steps"].tolist() == [2, 2]
    assert not terminated.any() and not truncated.any()


def test_ended_episodes_wait_and_only_masked_slots_reset(pair):
    pair.reset(seed=[5, 6])
    actions = np.zeros((2, 2, 1), np.float32)
    pair.step(actions)
    last, _, terminated, truncated, _ = pair.step(actions)
    assert truncated.all() and not terminated.any()
    still, _, _, truncated, info = pair.step(actions)
    assert np.array_equal(still, last) and truncated.all() and info["n_steps"].tolist() == [0, 0]
    obs, _ = pair.reset(seed=[5, None], options={"reset_mask": np.array([True, False])})
    assert np.array_equal(obs[0], make_macro_env(SPEC).reset(seed=5)[0])
    assert np.array_equal(obs[1], last[1])  # untouched, and still ended
    _, _, _, truncated, info = pair.step(actions)
    assert info["n_steps"].tolist() == [2, 0] and truncated.tolist() == [False, True]


_WORKERS = """
import json, os, psutil
from dsrl_offpolicy.envs.spec import EnvSpec
from dsrl_offpolicy.envs.vector import make_vector_env
if __name__ == "__main__":
    env = make_vector_env(EnvSpec("Pendulum-v1", reward_mode="dense"), 2)
    env.reset(seed=[1, 2])
    workers = []
    for process in env.processes:
        worker = psutil.Process(process.pid)
        names = {name: worker.environ().get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        torch = any("libtorch" in m.path for m in worker.memory_maps())
        workers.append({"env": names, "threads": worker.num_threads(), "torch": torch})
    env.close()
    here = [os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")]
    print(json.dumps({"workers": workers, "here": here}))
"""


def test_workers_have_one_thread_and_the_parents_environment_is_restored():
    environment = {k: v for k, v in os.environ.items() if k != "MKL_NUM_THREADS"} | {"OMP_NUM_THREADS": "3"}
    done = subprocess.run(
        [sys.executable, "-c", _WORKERS], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["here"] == ["3", None]
    for worker in told["workers"]:
        assert worker["env"] == {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        assert worker["threads"] == 1
        assert not worker["torch"], "a worker process loaded torch: memory and seconds for nothing"
