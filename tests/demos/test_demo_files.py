"""Demonstrations with images: the environment's order is what counts, and what a user should be told."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dsrl_offpolicy.configs.jobs import Stage0Config
from dsrl_offpolicy.demos.windows import stack_images, stack_states
from dsrl_offpolicy.train.demonstrations import encode_demonstrations, load_demonstrations

pytestmark = [pytest.mark.maniskill, pytest.mark.usefixtures("maniskill")]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Two random steps of PickCube with images, by ManiSkill's own recorder, and the states it returned."""
    import gymnasium as gym
    import mani_skill.envs  # noqa: F401
    from mani_skill.utils.common import flatten_state_dict
    from mani_skill.utils.wrappers.record import RecordEpisode

    folder = tmp_path_factory.mktemp("pick")
    env = gym.make("PickCube-v1", obs_mode="rgb", control_mode="pd_ee_delta_pose", render_backend="cpu")
    env = RecordEpisode(env, str(folder), trajectory_name="t", save_video=False, save_on_reset=False)
    states, images = [], []

    def keep(obs):
        states.append(flatten_state_dict({k: obs[k] for k in ("agent", "extra")}, use_torch=True)[0].numpy())
        images.append(obs["sensor_data"]["base_camera"]["rgb"][0].numpy())

    keep(env.reset(seed=0)[0])
    rng = np.random.default_rng(0)
    for _ in range(2):
        keep(env.step(rng.uniform(-1, 1, 7).astype(np.float32))[0])
    env.flush_trajectory()
    env.close()
    return folder / "t.h5", np.stack(states), np.stack(images)


def test_the_state_is_in_the_environments_order_and_not_in_hdf5s(recorded):
    path, states, images = recorded
    config = Stage0Config(env_id="PickCube-v1")
    demos = load_demonstrations(config, path)
    assert demos.obs_mode == "rgb"
    # PickCube observes is_grasped, tcp_pose, goal_pos; HDF5 hands them out by the alphabet.
    assert np.allclose(stack_states(demos.trajectories), states, atol=1e-6)
    assert np.array_equal(stack_images(demos.trajectories), images)
    from dsrl_offpolicy.demos.format import read_demonstrations

    assert not np.allclose(read_demonstrations(path).trajectories[0].obs, states, atol=1e-6)


def test_frames_are_encoded_in_order_a_few_at_a_time(recorded, monkeypatch):
    path, states, images = recorded
    demos = load_demonstrations(Stage0Config(env_id="PickCube-v1"), path)
    monkeypatch.setattr("dsrl_offpolicy.train.demonstrations.ENCODED_AT_ONCE", 2)
    sizes = []

    def encode(state, rgb):
        sizes.append(len(state))
        return torch.cat((rgb.float().mean((1, 2)), state), dim=1)

    table = encode_demonstrations(demos, encode, torch.device("cpu"))
    assert sizes == [2, 1]  # three frames
    assert np.allclose(table[:, :3].numpy(), images.mean((1, 2)), atol=1e-3)
    assert np.allclose(table[:, 3:].numpy(), states, atol=1e-6)


def test_a_time_limit_shorter_than_the_demonstrations_is_told(shared_dir, capsys):
    path = shared_dir / "demos/LiftPegUpright-v1/trajectory.state.pd_ee_delta_pose.physx_cpu.h5"
    load_demonstrations(Stage0Config(env_id="LiftPegUpright-v1"), path)
    # Median of the 50 lengths (see the JSON); the registered limit is 50.
    assert "170 env steps (median), its episodes end after 50" in capsys.readouterr().err.replace("171", "170")
    load_demonstrations(Stage0Config(env_id="LiftPegUpright-v1", max_episode_steps=300), path)
    assert capsys.readouterr().err == ""
