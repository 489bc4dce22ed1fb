"""robosuite's tasks: parts of the state by name, starts that follow from the seed, what is refused."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import numpy as np
import pytest

from dsrl_offpolicy.envs.family import find_family
from dsrl_offpolicy.envs.spec import EnvSpec
from dsrl_offpolicy.envs.vector import inspect_env, make_env, make_macro_env
from dsrl_offpolicy.errors import InputError

needs_robosuite = pytest.mark.usefixtures("robosuite")
STILL = np.zeros(7, np.float32)


def test_without_robosuite_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "robosuite", None)  # as if it were not there
    with pytest.raises(InputError) as error:
        inspect_env(EnvSpec("robosuite:Can"))
    assert "robosuite:Can" in str(error.value) and "dsrl_offpolicy[robosuite]" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_task_that_the_family_does_not_know_is_refused_with_those_it_knows() -> None:
    assert find_family("robosuite:Stack").name == "robosuite"
    with pytest.raises(InputError, match="robosuite:Lift, robosuite:Can, robosuite:Square, got robosuite:Stack"):
        inspect_env(EnvSpec("robosuite:Stack"))


@needs_robosuite
@pytest.mark.parametrize(
    # The robot's position, quaternion and two fingers are 9 numbers. Lift adds a position, a quaternion and a
    # difference (10), the others a position and a quaternion, twice (14).
    ("name", "width", "limit", "part"),
    [("Lift", 19, 300, "cube_pos"), ("Can", 23, 300, "Can_pos"), ("Square", 23, 400, "SquareNut_pos")],
)
def test_facts_of_the_tasks(name: str, width: int, limit: int, part: str) -> None:
    facts = inspect_env(EnvSpec(f"robosuite:{name}"))
    assert (facts.state_dim, facts.action_dim, facts.max_episode_steps) == (width, 7, limit)
    assert facts.state_keys is not None and facts.state_keys[3] == part and facts.cameras == ()
    assert inspect_env(EnvSpec(f"robosuite:{name}", max_episode_steps=20)).max_episode_steps == 20


@needs_robosuite
def test_a_start_and_what_follows_are_the_seeds_alone() -> None:
    def episode(env, seed: int | None) -> np.ndarray:
        rng = np.random.default_rng(5)
        states = [env.reset(seed=seed)[0]]
        states += [env.step(rng.uniform(-1, 1, 7).astype(np.float32))[0] for _ in range(8)]
        return np.stack(states)

    one = make_env(EnvSpec("robosuite:Lift"))
    first, unseeded = episode(one, 3), episode(one, None)
    assert np.array_equal(episode(one, 3), first)  # other episodes lie between
    before = np.random.get_state()[1].copy()  # noqa: NPY002 (the generator that robosuite draws from)
    other = make_env(EnvSpec("robosuite:Lift", reward_mode="dense"))
    assert np.array_equal(episode(other, 3), first)  # the cube's size too is drawn, once, when it is built
    assert np.array_equal(episode(other, None), unseeded)  # follows from the last seed
    assert np.abs(episode(other, 4)[0, 9:12] - first[0, 9:12]).max() > 1e-3
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    one.close()
    other.close()


@needs_robosuite
def test_rewards_are_shaped_or_of_success() -> None:
    rewards = {}
    for mode in ("sparse", "dense"):
        env = make_env(EnvSpec("robosuite:Lift", reward_mode=mode))
        env.reset(seed=0)
        rewards[mode] = env.step(STILL)[1]
        env.close()
    # Without success -1; robosuite's reward for reaching is (1 - tanh(10 d)) / 2.25 at d metres from the cube.
    assert rewards["sparse"] == -1 and 0 < rewards["dense"] < 1 / 2.25


@needs_robosuite
def test_a_policy_of_robomimics_layout_reads_what_it_was_trained_on(shared_dir: Path) -> None:
    limits = np.load(shared_dir / "fixtures" / "dppo" / "can_trained" / "normalization.npz")
    env = make_env(EnvSpec("robosuite:Can"))
    states = np.stack([env.reset(seed=seed)[0] for seed in range(8)])
    env.close()
    low, high = limits["obs_min"], limits["obs_max"]
    scaled = 2 * (states - low) / (high - low + 1e-6) - 1
    # Normalised states of demonstrations are within +-1; where the object's parts come in another order, some are
    # beyond 1.5.
    assert np.abs(scaled).max() < 1.5
    swapped = np.concatenate([scaled[:, :9], states[:, 16:], states[:, 9:16]], axis=1)
    swapped[:, 9:] = 2 * (swapped[:, 9:] - low[9:]) / (high[9:] - low[9:] + 1e-6) - 1
    assert np.abs(swapped).max() > 1.5


@needs_robosuite
def test_another_order_of_the_objects_parts_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from robosuite.environments.manipulation.pick_place import PickPlace

    made = PickPlace._create_obj_sensors

    def relative_first(self, **arguments):
        sensors, names = made(self, **arguments)
        return sensors[2:] + sensors[:2], names[2:] + names[:2]

    monkeypatch.setattr(PickPlace, "_create_obj_sensors", relative_first)
    with pytest.raises(InputError) as error:
        make_env(EnvSpec("robosuite:Can"))
    said = str(error.value)
    assert "expected robosuite 1.4.1" in said and "Can_to_robot0_eef_quat, Can_pos" in said and "\n" not in said


@needs_robosuite
def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.5.2")
    with pytest.raises(InputError, match=r"expected robosuite 1\.4\.1 .*, got 1\.5\.2"):
        make_env(EnvSpec("robosuite:Can"))


@needs_robosuite
def test_images_of_two_cameras_are_drawn_for_the_frames_that_are_kept() -> None:
    spec = EnvSpec("robosuite:Lift", obs_mode="rgb", image_size=(48, 64), obs_horizon=1, act_horizon=3)
    facts = inspect_env(spec)
    assert facts.cameras == ("agentview", "robot0_eye_in_hand") and facts.image_shape == (48, 64, 6)
    assert facts.state_dim == 9  # the robot alone: a policy of images must see the cube
    env = make_macro_env(spec)
    drawn = []
    render = env.unwrapped.simulator.sim.render
    env.unwrapped.simulator.sim.render = lambda **where: drawn.append(where["camera_name"]) or render(**where)
    env.reset(seed=0)
    env.step(np.zeros((3, 7), np.float32))
    assert drawn == list(facts.cameras) * 2  # at the reset, and once in three steps
    rows = []
    for height in (0.83, 1.0):
        env.unwrapped.simulator.sim.data.set_joint_qpos("cube_joint0", [0, 0, height, 1, 0, 0, 0])
        env.unwrapped.simulator.sim.forward()
        red, green, blue = np.moveaxis(env.unwrapped.image()[..., :3].astype(float), -1, 0)
        rows.append(np.argwhere(red - np.maximum(green, blue) > 60)[:, 0].mean())
    env.close()
    assert rows[1] < rows[0] - 1  # upright: the red cube is nearer to the first row when it is lifted
