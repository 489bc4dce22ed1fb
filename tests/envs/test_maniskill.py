"""Real ManiSkill steps: the adapter against the simulator stepped bare, frames, limits, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dsrl_offpolicy.envs.families.maniskill import ManiSkillEnv, make_simulator, sim_backend
from dsrl_offpolicy.envs.macro_step import MacroStepEnv
from dsrl_offpolicy.envs.spec import EnvSpec
from dsrl_offpolicy.envs.vector import inspect_env, make_env, make_macro_env, make_vector_env
from dsrl_offpolicy.errors import InputError

pytestmark = [pytest.mark.maniskill, pytest.mark.usefixtures("maniskill")]

TASK = "LiftPegUpright-v1"
STATE = EnvSpec(TASK, max_episode_steps=12, obs_horizon=2, act_horizon=8, gamma=0.5)
RGB = replace(STATE, obs_mode="rgb")


def actions(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, (rows, 7)).astype(np.float32)


@pytest.fixture(scope="module")
def state_env() -> Iterator[MacroStepEnv]:
    env = make_macro_env(STATE)
    yield env
    env.close()


@pytest.fixture(scope="module")
def rgb_env() -> Iterator[MacroStepEnv]:
    env = make_macro_env(RGB)
    yield env
    env.close()


@pytest.fixture(scope="module")
def bare() -> Iterator[Any]:
    """ManiSkill as its documentation makes it, rendering at every step."""
    import gymnasium as gym
    import mani_skill.envs  # noqa: F401

    env = gym.make(
        TASK, obs_mode="rgb", control_mode="pd_ee_delta_pose", sim_backend="physx_cpu", render_backend="cpu"
    )
    yield env
    env.close()


def bare_frame(obs: dict) -> tuple[np.ndarray, np.ndarray]:
    parts = [obs["agent"]["qpos"], obs["agent"]["qvel"], obs["extra"]["tcp_pose"]]
    state = np.concatenate([np.asarray(part[0]) for part in parts])
    return state, np.asarray(obs["sensor_data"]["base_camera"]["rgb"][0])


def test_a_chunk_of_states_is_what_the_bare_simulator_gives(state_env):
    simulator = make_simulator(STATE, 1)
    obs, _ = simulator.reset(seed=3)
    first, _ = state_env.reset(seed=3)
    assert first.shape == (2, 32)
    assert np.array_equal(first, np.stack([obs[0]] * 2))  # before the first step the first frame repeats
    chunk = actions(8)
    expected = [simulator.step(row)[0][0].numpy() for row in chunk]
    simulator.close()
    stack, reward, terminated, truncated, info = state_env.step(chunk)
    assert np.allclose(stack, expected[-2:], atol=1e-6)
    assert info["n_steps"] == 8 and not terminated and not truncated
    assert reward == pytest.approx(-sum(0.5**i for i in range(8)))  # sparse: -1 per step that has not succeeded


def test_images_and_states_of_the_stack_are_those_of_a_simulator_that_renders_every_step(rgb_env, bare):
    obs, _ = bare.reset(seed=3)
    first, _ = rgb_env.reset(seed=3)
    state, image = bare_frame(obs)
    assert first["state"].shape == (2, 25) and first["rgb"].shape == (2, 128, 128, 3)  # 9 + 9 + 7 (algorithms §9)
    assert np.allclose(first["state"][1], state, atol=1e-6) and np.array_equal(first["rgb"][1], image)
    chunk = actions(8)
    frames = [bare_frame(bare.step(row)[0]) for row in chunk]
    stack, *_ = rgb_env.step(chunk)
    for place, row in ((0, 6), (1, 7)):
        assert np.allclose(stack["state"][place], frames[row][0], atol=1e-5)
        difference = np.abs(stack["rgb"][place].astype(int) - frames[row][1])
        assert difference.mean() < 0.5, row  # one step's arm motion is far above: see the next line
    assert np.abs(frames[7][1].astype(int) - frames[4][1]).mean() > 0.5


def test_only_the_frames_of_a_stack_are_rendered(rgb_env, monkeypatch):
    rgb_env.reset(seed=3)
    simulator = rgb_env.unwrapped.simulator
    rendered: list[int] = []
    original = simulator._get_obs_sensor_data

    def count(*args, **kwargs):
        rendered.append(int(simulator.elapsed_steps[0]))
        return original(*args, **kwargs)

    monkeypatch.setattr(simulator, "_get_obs_sensor_data", count)
    rgb_env.step(actions(8))
    assert rendered == [7, 8]
    stack, _, terminated, truncated, info = rgb_env.step(actions(8, 1))
    # The time limit of 12 leaves 4 rows of the second chunk: its last two are steps 11 and 12.
    assert rendered == [7, 8, 11, 12]
    assert (terminated, truncated, info["n_steps"], info["episode_length"]) == (False, True, 4, 12)
    assert not np.array_equal(stack["rgb"][0], stack["rgb"][1])
    still, reward, _, truncated, info = rgb_env.step(actions(8))
    assert np.array_equal(still["rgb"], stack["rgb"]) and (reward, truncated, info["n_steps"]) == (0, True, 0)


def test_an_unforeseen_end_inside_a_chunk_still_shows_the_true_last_image(rgb_env, monkeypatch):
    rgb_env.reset(seed=3)
    simulator = rgb_env.unwrapped.simulator
    evaluate = simulator.evaluate

    def succeeds_at_step_3():
        return {"success": evaluate()["success"] | (simulator.elapsed_steps == 3)}

    monkeypatch.setattr(simulator, "evaluate", succeeds_at_step_3)
    stack, reward, terminated, truncated, info = rgb_env.step(actions(8))
    assert (terminated, truncated, info["n_steps"]) == (True, False, 3)
    assert info["success"] and info["success_once"]
    assert reward == pytest.approx(-1 - 0.5)  # the step that succeeds costs nothing
    now = rgb_env.unwrapped.image()
    assert np.abs(stack["rgb"][1].astype(int) - now).mean() < 0.5
    assert np.array_equal(stack["rgb"][0], stack["rgb"][1])
    assert not np.array_equal(stack["state"][0], stack["state"][1])


def test_frames_without_images_hold_the_same_state_where_tasks_show_more_in_other_modes():
    spec = EnvSpec("PickCube-v1", obs_mode="rgb", obs_horizon=8, act_horizon=8, image_size=(32, 48))
    env = make_macro_env(spec)
    try:
        env.reset(seed=3)
        drawn, *_ = env.step(actions(8))
        assert drawn["rgb"].shape == (8, 32, 48, 3)
        env.env_spec = replace(spec, obs_horizon=1)  # from now on only the last row's image is asked for
        env.reset(seed=3)
        skipped, *_ = env.step(actions(8))
    finally:
        env.close()
    # PickCube adds the cube's pose wherever the mode's name says "state": none of it may leak in here.
    assert skipped["state"].shape == drawn["state"].shape
    assert np.allclose(skipped["state"][-1], drawn["state"][-1], atol=1e-5)
    assert np.allclose(skipped["state"][-2], drawn["state"][-2], atol=1e-5)


def test_another_robot_brings_its_camera():
    facts = inspect_env(EnvSpec("PickCube-v1", obs_mode="rgb", robot_uids="panda_wristcam", image_size=(32, 32)))
    assert facts.cameras == ("base_camera", "hand_camera") and facts.image_shape == (32, 32, 6)


def test_success_ends_nothing_where_the_spec_says_so_and_at_end_differs_from_once(state_env, monkeypatch):
    spec = replace(STATE, end_on_success=False)
    monkeypatch.setattr(state_env.env, "env_spec", spec)
    monkeypatch.setattr(state_env, "env_spec", spec)
    simulator = state_env.unwrapped.simulator
    evaluate = simulator.evaluate

    def succeeds_once():
        return {"success": evaluate()["success"] | (simulator.elapsed_steps == 3)}

    monkeypatch.setattr(simulator, "evaluate", succeeds_once)
    state_env.reset(seed=3)
    _, reward, terminated, _, info = state_env.step(actions(8))
    assert not terminated and info["n_steps"] == 8
    assert info["success_once"] and not info["success"]
    assert reward == pytest.approx(-sum(0.5**i for i in range(8)) + 0.5**2)  # step 3 has gamma^2


def test_a_start_depends_on_its_seed_alone(state_env):
    first = state_env.reset(seed=7)[0]
    other = state_env.reset(seed=8)[0]
    state_env.step(actions(8))
    assert np.array_equal(state_env.reset(seed=7)[0], first)
    assert not np.allclose(first, other)


def test_processes_give_what_an_environment_here_gives(state_env):
    env = make_vector_env(STATE, 2)
    try:
        obs, _ = env.reset(seed=[7, 8])
        assert np.array_equal(obs[1], state_env.reset(seed=8)[0])
        chunk = actions(8)
        obs, reward, _, truncated, info = env.step(np.stack([chunk, chunk]))
        alone, reward_alone, *_ = state_env.step(chunk)
        assert np.allclose(obs[1], alone, atol=1e-6) and reward[1] == pytest.approx(reward_alone)
        assert info["n_steps"].tolist() == [8, 8] and not truncated.any()
    finally:
        env.close()


def test_facts_tell_state_order_cameras_and_limit():
    facts = inspect_env(RGB)
    assert facts.state_keys == ("agent/qpos", "agent/qvel", "extra/tcp_pose")
    assert facts.cameras == ("base_camera",) and facts.image_shape == (128, 128, 3)
    assert (facts.state_dim, facts.action_dim, facts.max_episode_steps) == (25, 7, 12)
    assert inspect_env(replace(STATE, max_episode_steps=None)).max_episode_steps == 50  # as registered


def test_a_demonstration_replayed_through_the_adapter_succeeds_after_the_registered_limit(shared_dir):
    import h5py

    path = shared_dir / "demos" / TASK / "trajectory.state.pd_ee_delta_pose.physx_cpu.h5"
    with h5py.File(path) as file:
        rows, obs = file["traj_0/actions"][()], file["traj_0/obs"][()]
    env = make_env(EnvSpec(TASK, max_episode_steps=300))
    try:
        first, _ = env.reset(seed=0)  # the episode_seed of traj_0 in the JSON
        assert np.allclose(first, obs[0], atol=1e-4)
        ends = []
        for i, row in enumerate(rows):
            *_, terminated, truncated, info = env.step(row)
            assert not truncated
            if terminated:
                ends.append((i + 1, info["success"]))
                break
    finally:
        env.close()
    assert ends and ends[0][0] > 50 and ends[0][1]


def test_dense_reward_is_the_simulators(state_env):
    spec = replace(STATE, reward_mode="normalized_dense", reward_scale=2.0, gamma=1.0)
    env = make_macro_env(spec)
    simulator = make_simulator(spec, 1)
    simulator.reset(seed=3)
    env.reset(seed=3)
    chunk = actions(8)
    expected = 2 * sum(float(simulator.step(row)[1]) for row in chunk)
    assert env.step(chunk)[1] == pytest.approx(expected, rel=1e-4)
    assert 0 < expected < 16
    env.close()
    simulator.close()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"control_mode": "pd_ee_delta_pos_e"},
            ["control_mode", "pd_ee_delta_pos_e", "did you mean pd_ee_delta_pos"],
        ),
        ({"control_mode": "pd_joint_pos"}, ["control_mode", "[-1, 1]", "pd_joint_pos"]),
        ({"obs_mode": "rgb", "render_backend": "none"}, ["render_backend", "rgb", "none"]),
        ({"env_id": "LiftPegUprigth-v1"}, ["env_id", "did you mean LiftPegUpright-v1"]),
        ({"env_id": "TurnFaucet-v1"}, ["env_id", "TurnFaucet-v1"]),
    ],
)
def test_what_maniskill_cannot_do_is_one_line(changes, words):
    with pytest.raises(InputError) as error:
        make_env(replace(STATE, **changes))
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_physx_cuda_without_cuda_is_refused():
    import torch

    if torch.cuda.is_available():
        assert sim_backend(replace(STATE, sim_backend="physx_cuda")) == "physx_cuda"
        return
    with pytest.raises(InputError, match=r"sim_backend: expected physx_cpu or auto .* got physx_cuda"):
        make_vector_env(replace(STATE, sim_backend="physx_cuda"), 2)


def test_without_a_render_device_the_cure_is_told():
    code = (
        "from dsrl_offpolicy.envs.families.render_device import render_device\n"
        "from dsrl_offpolicy.errors import InputError\n"
        "try:\n    print('device:', render_device())\nexcept InputError as error:\n    print('error:', error)\n"
    )
    hidden = {"VK_DRIVER_FILES": "/nonexistent.json", "VK_ICD_FILENAMES": "/nonexistent.json"}
    import os

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **hidden}, check=True
    )
    assert done.stdout.startswith("error: render device: expected a Vulkan device")
    assert "bookworm-backports" in done.stdout and "apt-get install" in done.stdout
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.startswith("device: ") and len(shown.stdout.strip()) > len("device:")


@pytest.mark.parametrize("name", ["control_mode", "obs_mode", "sim_backend", "render_backend"])
def test_settings_of_maniskill_are_refused_elsewhere(name):
    values = {"control_mode": "pd_ee_delta_pose", "obs_mode": "rgb"}
    values |= {"sim_backend": "physx_cpu", "render_backend": "cpu"}
    with pytest.raises(InputError, match=rf"{name}: expected .* have no such setting"):
        make_env(EnvSpec("lever-pull-v3", **{name: values[name]}))
    with pytest.raises(InputError, match="normalized_dense"):
        make_env(EnvSpec("lever-pull-v3", reward_mode="normalized_dense"))


def test_the_adapter_is_a_gymnasium_environment(state_env):
    assert isinstance(state_env.unwrapped, ManiSkillEnv)
    obs, _ = state_env.reset(seed=1)
    assert state_env.observation_space.contains(obs)
    assert state_env.action_space.contains(actions(8))
