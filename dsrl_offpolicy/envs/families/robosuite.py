"""robosuite's Lift, Can and Square as robomimic set them up: its published policies and data sets fit them."""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np

from dsrl_offpolicy.envs.family import Capabilities, EnvFacts, EnvFamily, MacroVectorEnv
from dsrl_offpolicy.envs.spec import EnvSpec
from dsrl_offpolicy.errors import InputError, one_line
from dsrl_offpolicy.registry import not_installed

VERSION = "1.4.1"
EXPECTED = f"expected robosuite {VERSION} (pip install 'dsrl_offpolicy[robosuite]')"
PREFIX = "robosuite:"
CAMERAS = ("agentview", "robot0_eye_in_hand")
IMAGE_SIZE = (84, 84)
ROBOT_KEYS = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")
EGL_REMEDY = "on Debian and Ubuntu: apt-get install libegl1 libegl-mesa0"


@dataclass(frozen=True)
class Task:
    """What robosuite calls a task, and what robomimic observes of it.

    Attributes:
        name: robosuite's.
        horizon: env steps until truncation where no other limit is asked for.
        object_keys: what robomimic calls ``object``, in its order.
    """

    name: str
    horizon: int
    object_keys: tuple[str, ...]


def _placed(name: str) -> tuple[str, ...]:
    return f"{name}_pos", f"{name}_quat", f"{name}_to_robot0_eef_pos", f"{name}_to_robot0_eef_quat"


TASKS = {
    "Lift": Task("Lift", 300, ("cube_pos", "cube_quat", "gripper_to_cube_pos")),
    "Can": Task("PickPlaceCan", 300, _placed("Can")),
    "Square": Task("NutAssemblySquare", 400, _placed("SquareNut")),
}


class Robosuite(EnvFamily):
    """``robosuite:Lift``, ``robosuite:Can`` and ``robosuite:Square``."""

    name = "robosuite"
    package = "robosuite"
    settings = frozenset({"obs_mode", "image_size"})

    def tasks(self) -> list[str]:
        """Return the ids."""
        return [PREFIX + name for name in TASKS]

    def owns(self, env_id: str) -> bool:
        """Return whether the id begins with the family's name."""
        return env_id.startswith(PREFIX)

    def make(self, spec: EnvSpec) -> gym.Env:
        """Build one.

        Raises:
            InputError: no such task; robosuite is not installed, of another version, or cannot draw images.
        """
        return RobosuiteEnv(spec)

    def capabilities(self, spec: EnvSpec) -> Capabilities:
        """Return that images may be drawn late."""
        return Capabilities(lazy_images=spec.obs_mode == "rgb")

    def time_limit(self, spec: EnvSpec) -> int | None:
        """Return what was asked for, or robomimic's limit."""
        return spec.max_episode_steps or _task(spec).horizon

    def facts(self, env: gym.Env | MacroVectorEnv, spec: EnvSpec) -> EnvFacts:
        """Return the facts, with the order of the state's parts and the cameras."""
        simulator: Any = env.unwrapped
        return replace(super().facts(env, spec), state_keys=simulator.state_keys, cameras=simulator.cameras)


class RobosuiteEnv(gym.Env):
    """One task with a Panda, moved by OSC_POSE at 20 Hz.

    Observations are ``[S]`` float32, the robot's and the object's parts, or with ``obs_mode`` rgb
    ``{"state": [9], "rgb": [H, W, 6] uint8}``, the robot's parts and two cameras' upright images along the
    channels. Actions are ``[7]``: displacement (1 is 0.05 m), rotation (1 is 0.5 rad), gripper (1 closes).
    Rewards are robosuite's shaped ones with ``reward_mode`` dense, else 1 on success.

    Attributes:
        images_wanted: whether ``step`` renders. Where it does not, ``"rgb"`` is None and ``image()`` renders late.
        max_episode_steps: env steps until truncation.
        state_keys: names of the parts of the state, in order.
        cameras: names of the cameras, in order.
    """

    def __init__(self, spec: EnvSpec) -> None:
        task, rgb = _task(spec), spec.obs_mode == "rgb"
        self.max_episode_steps = spec.max_episode_steps or task.horizon
        self.state_keys = ROBOT_KEYS if rgb else ROBOT_KEYS + task.object_keys
        self.cameras = CAMERAS if rgb else ()
        self.images_wanted = True
        self._size = spec.image_size or IMAGE_SIZE
        # Building Lift draws the size of its cube: the same in all environments, or no episode could be replayed.
        with _numpy_seeded(0):
            self.simulator = _make_simulator(task, spec)
            _check_order(self.simulator, task, spec)
            first = self.simulator.reset()
        self._elapsed = 0
        self.action_space = gym.spaces.Box(-1, 1, (self.simulator.action_dim,), np.float32)
        state = gym.spaces.Box(-np.inf, np.inf, self._state(first).shape, np.float32)
        image = gym.spaces.Box(0, 255, (*self._size, 3 * len(CAMERAS)), np.uint8)
        self.observation_space = gym.spaces.Dict({"state": state, "rgb": image}) if rgb else state

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self._elapsed = 0
        with _numpy_seeded(int(self.np_random.integers(2**32))):
            return self._observation(self.simulator.reset()), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, _, _ = self.simulator.step(np.asarray(action, np.float64))
        self._elapsed += 1
        success = bool(self.simulator._check_success())
        truncated = self._elapsed >= self.max_episode_steps
        return self._observation(obs), float(reward), False, truncated, {"success": success}

    def image(self) -> np.ndarray:
        """Render the cameras' images of the current state, ``[H, W, 6]`` uint8."""
        height, width = self._size
        render = self.simulator.sim.render
        images = [render(camera_name=name, width=width, height=height)[::-1] for name in self.cameras]
        return np.concatenate(images, axis=-1)

    def _state(self, obs: Any) -> np.ndarray:
        return np.concatenate([obs[name] for name in self.state_keys]).astype(np.float32)

    def _observation(self, obs: Any) -> Any:
        if not self.cameras:
            return self._state(obs)
        return {"state": self._state(obs), "rgb": self.image() if self.images_wanted else None}

    def close(self) -> None:
        self.simulator.close()


def _task(spec: EnvSpec) -> Task:
    """Raise InputError for an id that robosuite has and this family does not."""
    name = spec.env_id.removeprefix(PREFIX)
    if name not in TASKS:
        raise InputError(f"env_id: expected {', '.join(PREFIX + known for known in TASKS)}, got {spec.env_id}")
    return TASKS[name]


def _make_simulator(task: Task, spec: EnvSpec) -> Any:
    """Make robosuite's own environment, without a time limit.

    Raises:
        InputError: it is not installed, of another version, or cannot draw images.
    """
    robosuite = _import_robosuite(spec)
    try:
        return robosuite.make(
            task.name,
            robots="Panda",
            controller_configs=robosuite.load_controller_config(default_controller="OSC_POSE"),
            has_renderer=False,
            has_offscreen_renderer=spec.obs_mode == "rgb",
            use_camera_obs=False,  # `image` renders when asked
            use_object_obs=True,
            reward_shaping=spec.reward_mode == "dense",
            control_freq=20,
            ignore_done=True,
            hard_reset=False,  # 7 ms for 1 to 2 s
        )
    except (ImportError, AttributeError, RuntimeError) as error:
        remedy = f" ({EGL_REMEDY})" if spec.obs_mode == "rgb" else ""
        raise InputError(f"env_id: {spec.env_id} cannot be made: {one_line(error)}{remedy}") from error


def _import_robosuite(spec: EnvSpec) -> Any:
    """Raise InputError where robosuite is not there, is of another version, or finds no EGL, which it imports."""
    logging.disable(logging.WARNING)  # it recommends a file of settings
    try:
        import robosuite
    except ModuleNotFoundError as error:
        raise InputError(f"env_id: {spec.env_id} cannot be made: {not_installed(error)}") from error
    except (ImportError, AttributeError) as error:
        raise InputError(f"env_id: robosuite cannot be imported: {one_line(error)} ({EGL_REMEDY})") from error
    finally:
        logging.disable(logging.NOTSET)
    version = importlib.metadata.version("robosuite")
    if version.split(".")[:2] != VERSION.split(".")[:2]:
        raise InputError(f"env_id: {EXPECTED}, whose controllers and observations policies know, got {version}")
    return robosuite


def _check_order(simulator: Any, task: Task, spec: EnvSpec) -> None:
    """Raise InputError where ``object`` is put together in another order than policies and data sets have it."""
    found = tuple(
        name for name, part in simulator._observables.items() if part.modality == "object" and part.is_active()
    )
    if found != task.object_keys:
        raise InputError(
            f"env_id: {EXPECTED}, which observes the object of {spec.env_id} as {', '.join(task.object_keys)}, "
            f"got one that does as {', '.join(found)}"
        )


@contextlib.contextmanager
def _numpy_seeded(seed: int) -> Iterator[None]:
    """Seed numpy's global generator, which robosuite draws from, and leave it as it was."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002
