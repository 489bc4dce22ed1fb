"""Real simulators drawn without a screen: in the process of the environment, only where it is asked for."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from drawn_worlds import DrawnReach
from strange_worlds import CALLS

from dsrl_offpolicy.envs.families import mujoco_opengl
from dsrl_offpolicy.envs.families.maniskill import ManiSkill
from dsrl_offpolicy.envs.families.mujoco_opengl import BACKENDS, find_opengl
from dsrl_offpolicy.envs.filming import filmed_spec
from dsrl_offpolicy.envs.frames import FRAME_HEIGHT, draw
from dsrl_offpolicy.envs.spec import EnvSpec
from dsrl_offpolicy.envs.vector import make_env, make_macro_env, make_vector_env
from dsrl_offpolicy.errors import InputError

TASK = EnvSpec("lever-pull-v3", act_horizon=4, max_episode_steps=6)
REACHER = EnvSpec("Reacher-v5", reward_mode="dense", act_horizon=4, max_episode_steps=6)


@pytest.fixture(scope="module")
def opengl() -> str:
    """Skips where MuJoCo can draw nothing."""
    before = os.environ.get("MUJOCO_GL")
    found = find_opengl()
    if before is None:
        os.environ.pop("MUJOCO_GL", None)  # every process finds it by itself
    if found is None:
        pytest.skip("needs EGL or OSMesa (scripts/setup_software_rendering.sh)")
    return found


@pytest.fixture
def close() -> Iterator[Any]:
    """Closes environments at the end of a test."""
    made: list[Any] = []
    yield lambda env: made.append(env) or env
    for env in made:
        env.close()


@pytest.mark.parametrize("spec", [TASK, REACHER], ids=lambda spec: spec.env_id)
def test_a_process_draws_what_one_environment_draws(opengl, close, spec):
    film = filmed_spec(spec)
    assert film == replace(spec, frames_every=1)
    vector, single = close(make_vector_env(film, 1)), close(make_env(film))
    vector.reset(seed=[7])
    single.reset(seed=7)
    drawn = [draw(single)]
    rng = np.random.default_rng(0)
    frames, steps = [], []
    for _ in range(2):  # a chunk of 4, and 2 rows of the next until the time limit
        chunk = rng.uniform(-1, 1, (4, single.action_space.shape[0])).astype(np.float32)
        *_, info = vector.step(chunk[None])
        seen = info["frame_step"][0] >= 0
        frames += [*info["frames"][0][seen]]
        steps += info["frame_step"][0][seen].tolist()
        for action in chunk[: info["n_steps"][0]]:
            single.step(action)
            drawn.append(draw(single))
    assert steps == [0, 1, 2, 3, 4, 5, 6]
    assert {frame.shape for frame in frames} == {(FRAME_HEIGHT, FRAME_HEIGHT, 3)}
    for one, other in zip(frames, drawn, strict=True):
        assert np.array_equal(one, other)
    assert all((one != other).any() for one, other in itertools.pairwise(frames))
    assert frames[0].std() > 10  # a scene, not a blank


def test_metaworlds_picture_is_bare_and_shows_another_start(opengl, close):
    env = close(make_env(replace(TASK, frames_every=1)))
    env.reset(seed=1)
    first = draw(env)
    env.reset(seed=2)
    assert (draw(env) != first).mean() > 0.001  # the lever stands elsewhere
    env.reset(seed=1)
    assert np.array_equal(draw(env), first)
    viewer = env.get_wrapper_attr("_viewer")
    import mujoco

    assert not viewer.scn.flags[mujoco.mjtRndFlag.mjRND_SHADOW]
    assert not viewer.scn.flags[mujoco.mjtRndFlag.mjRND_REFLECTION]
    assert env.unwrapped.model.vis.quality.offsamples == 0


def test_drawing_changes_no_number(opengl, close):
    plain, film = close(make_macro_env(TASK)), close(make_macro_env(replace(TASK, frames_every=1)))
    chunk = np.full((4, 4), 0.5, np.float32)
    for seed in (3, 4):
        assert np.array_equal(plain.reset(seed=seed)[0], film.reset(seed=seed)[0])
        for _ in range(2):
            one, other = plain.step(chunk), film.step(chunk)
            assert np.array_equal(one[0], other[0]) and one[1:4] == other[1:4]
            assert set(one[4]) == set(other[4]) - {"frames", "frame_step", "frame_success"}


def test_nothing_is_drawn_unless_it_is_asked_for(monkeypatch, close):
    made = []
    monkeypatch.setattr(gym, "make", lambda name, **settings: made.append(settings) or DrawnReach())
    env = close(make_macro_env(EnvSpec("drawn_worlds:DrawnReach-v0")))  # its render() would fail
    env.reset(seed=0)
    assert "frames" not in env.step(np.zeros((8, 1), np.float32))[4]
    assert "render_mode" not in made[0]


@pytest.mark.maniskill
def test_maniskill_is_drawn_beside_its_states(maniskill, close):
    spec = EnvSpec(
        "LiftPegUpright-v1", act_horizon=2, max_episode_steps=4, sim_backend="physx_cuda", frames_every=1
    )
    film = ManiSkill().filmed(spec)
    assert film == replace(spec, sim_backend="physx_cpu")  # a batch on the GPU is filmed in processes
    env = close(make_macro_env(film))  # in this process: a scene takes long to build
    obs, _ = env.reset(seed=0)
    assert obs.ndim == 2  # states
    *_, info = env.step(np.full((2, 7), 0.5, np.float32))
    assert info["frames"].shape == (3, FRAME_HEIGHT, FRAME_HEIGHT, 3)
    assert info["frame_step"].tolist() == [0, 1, 2]
    first, *_, last = info["frames"]
    assert first.std() > 10 and (first != last).any()
    with pytest.raises(InputError, match="render_backend: expected auto, cpu or gpu for videos, got none"):
        make_macro_env(replace(film, render_backend="none"))


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (
            EnvSpec("drawn_worlds:Undrawn-v0"),
            ["expected render() to return an image", "got str", "apt-get install"],
        ),
        (EnvSpec("latent_worlds:Reach-v0"), ["render", "rgb_array"]),
    ],
)
def test_what_cannot_be_drawn_is_one_line_with_the_cure(spec, words):
    with pytest.raises(InputError, match=r"^video: ") as found:
        filmed_spec(spec)
    for word in words:
        assert word in str(found.value)
    assert "\n" not in str(found.value)


def test_the_only_robot_is_not_filmed_beside_its_work():
    CALLS.clear()
    with pytest.raises(InputError, match=r"^video: environments of strange_worlds:Robots .* one at a time"):
        filmed_spec(EnvSpec("arm", env_family="strange_worlds:Robots"))
    assert CALLS == []


def test_the_first_backend_that_works_is_taken_and_a_choice_respected(monkeypatch):
    tried: list[str] = []
    monkeypatch.setattr(mujoco_opengl, "_works", lambda backend: tried.append(backend) or backend == "osmesa")
    monkeypatch.setenv("MUJOCO_GL", "")  # put back at the end
    assert find_opengl() == "osmesa" == os.environ["MUJOCO_GL"] and tried == ["egl", "osmesa"]
    tried.clear()
    assert find_opengl() == "osmesa" and tried == []
    monkeypatch.setenv("MUJOCO_GL", "")
    monkeypatch.setattr(mujoco_opengl, "_works", lambda backend: False)
    assert find_opengl() is None and os.environ["MUJOCO_GL"] == ""
    assert BACKENDS[-1] == "glfw"


def test_a_backend_that_draws_nothing_does_not_count(monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setenv("MUJOCO_GL", "")
    assert not mujoco_opengl._works("disabled")


def test_the_trial_starts_the_fork_server_as_environments_need_it(monkeypatch):
    """Whoever starts it first decides the threads and the modules of every process after it."""
    during: list[tuple[str | None, bool]] = []
    submit = ProcessPoolExecutor.submit

    def noted(self, *args):
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        during.append((os.environ.get("OMP_NUM_THREADS"), signal.SIGINT in blocked))
        return submit(self, *args)

    monkeypatch.setattr(ProcessPoolExecutor, "submit", noted)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    filmed_spec(EnvSpec("drawn_worlds:DrawnReach-v0"))
    assert during == [("1", True)]
    assert "OMP_NUM_THREADS" not in os.environ and signal.SIGINT not in signal.pthread_sigmask(
        signal.SIG_BLOCK, []
    )
