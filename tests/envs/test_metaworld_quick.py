"""MetaWorld's quick methods are MetaWorld's own, to the bit."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dsrl_offpolicy.demos.makers.imperfection import Imperfection
from dsrl_offpolicy.demos.makers.metaworld import ScriptedExpert
from dsrl_offpolicy.envs.families import metaworld as family
from dsrl_offpolicy.envs.families import metaworld_quick
from dsrl_offpolicy.envs.families.metaworld_quick import QuickRotation, quicken
from dsrl_offpolicy.envs.family import family_of
from dsrl_offpolicy.envs.spec import EnvSpec

NOISY = Imperfection(0.1, 0.5, 0.0, (0.0, 0.0, 0.0), False)
SOME = ["pick-place-v3", "lever-pull-v3", "stick-pull-v3", "faucet-close-v3"]
"""One object that is lifted; no object; two; a task that brings its hand to rest in its own way."""


def plain_and_quick(task: str, monkeypatch: pytest.MonkeyPatch) -> tuple[gym.Env, gym.Env]:
    quick = family_of(EnvSpec(task)).make(EnvSpec(task))
    monkeypatch.setattr(family, "quicken", lambda simulator: None)
    return family_of(EnvSpec(task)).make(EnvSpec(task)), quick


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return np.array_equal(one, other) and np.asarray(one).dtype == np.asarray(other).dtype


def compare(task: str, monkeypatch: pytest.MonkeyPatch, steps: int) -> int:
    """Runs episodes of the scripted expert in both; returns the steps on which it held its object."""
    plain, quick = plain_and_quick(task, monkeypatch)
    assert "touching_object" in vars(quick.unwrapped) and "touching_object" not in vars(plain.unwrapped)
    held = 0
    for seed in (0, None, 3):  # the second follows from the first's random numbers
        expert = ScriptedExpert(task, NOISY, np.random.default_rng(1))
        (obs, info), (other, other_info) = (env.reset(seed=seed) for env in (plain, quick))
        assert same(obs, other) and same(info, other_info), (task, seed)
        for step in range(steps):
            action = expert.act(obs)
            found, others = plain.step(action), quick.step(action)
            assert all(map(same, found, others)), (task, seed, step)
            obs = found[0]
            held += bool(found[-1].get("grasp_success"))
        assert np.array_equal(plain.unwrapped.data.qpos, quick.unwrapped.data.qpos)
        assert np.array_equal(plain.unwrapped.data.efc_force, quick.unwrapped.data.efc_force)
    for env in (plain, quick):
        env.close()
    return held


@pytest.mark.parametrize("task", SOME)
def test_every_number_is_metaworlds_own(task, monkeypatch):
    held = compare(task, monkeypatch, 90)
    assert task != "pick-place-v3" or held > 10


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_number_of_every_task_is_metaworlds_own(monkeypatch):
    for task in family.MetaWorld().tasks():
        with monkeypatch.context() as patch:
            compare(task, patch, 40)


def test_starts_are_those_of_the_whole_benchmark():
    """As it is registered, with its 50 goals."""
    task = "pick-place-v3"
    ours = family_of(EnvSpec(task)).make(EnvSpec(task))
    assert len(ours.get_wrapper_attr("tasks")) == 1
    registered = gym.make("Meta-World/MT1", env_name=task, disable_env_checker=True)
    assert len(registered.get_wrapper_attr("tasks")) == 50
    plain = family.ContinuousGoals(registered)
    for seed in (1, 2):
        assert np.array_equal(ours.reset(seed=seed)[0], plain.reset(seed=seed)[0].astype(np.float32))
        for action in np.random.default_rng(0).uniform(-1, 1, (20, 4)).astype(np.float32):
            found, other = ours.step(action), plain.step(action)
            assert np.array_equal(found[0], other[0].astype(np.float32)) and found[1] == other[1]
    for env in (ours, plain):
        env.close()


def test_quaternions_are_scipys():
    rng = np.random.default_rng(0)
    quaternions = [*rng.standard_normal((300, 4)), *np.eye(4)]
    for quaternion in quaternions:  # each of the four parts is the largest of some
        matrix = Rotation.from_quat(quaternion).as_matrix()
        assert np.array_equal(QuickRotation.from_matrix(matrix).as_quat(), Rotation.from_matrix(matrix).as_quat())


def test_what_is_no_rotation_is_left_to_scipy():
    bent = np.eye(3) + 1e-6 * np.arange(9).reshape(3, 3)
    assert np.array_equal(QuickRotation(bent).as_quat(), Rotation.from_matrix(bent).as_quat())
    with pytest.raises(ValueError, match="determinant"):
        QuickRotation(np.diag([1.0, 1.0, -1.0])).as_quat()


def test_methods_of_another_version_are_left_alone(monkeypatch):
    from metaworld.envs.sawyer_lever_pull_v3 import SawyerLeverPullEnvV3 as Lever

    monkeypatch.setattr(metaworld_quick, "_as_scipy", lambda: False)  # this machine's scipy computes other bits
    monkeypatch.setattr(Lever, "touching_object", lambda self, geom: True, raising=False)  # the task has its own
    simulator = Lever.__new__(Lever)
    quicken(simulator)
    assert set(vars(simulator)) == {"reset", "_get_curr_obs_combined_no_goal"}
