"""ManiSkill 3 tasks: the family, how they are made, and one of them on the CPU as a plain Gymnasium env."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np

from dsrl_offpolicy.envs.families.render_device import REMEDY, render_device
from dsrl_offpolicy.envs.family import FAMILY_SETTINGS, Capabilities, EnvFacts, EnvFamily, MacroVectorEnv
from dsrl_offpolicy.envs.frames import FRAME_HEIGHT
from dsrl_offpolicy.envs.spec import EnvSpec
from dsrl_offpolicy.envs.success import is_success
from dsrl_offpolicy.errors import InputError, did_you_mean

DEFAULT_CONTROL_MODE = "pd_ee_delta_pose"
TOO_NEW = (3, 13)
"""The first Python for which ManiSkill, or what it needs, has no packages; pyproject.toml says the same."""


class ManiSkill(EnvFamily):
    """ManiSkill's tasks: a process each with physics on the CPU, or one batch on the GPU."""

    name = "maniskill"
    package = "mani_skill"
    settings = frozenset(FAMILY_SETTINGS)
    reward_modes = ("sparse", "dense", "normalized_dense")
    common_reward_mode = "sparse"
    default_control_mode = DEFAULT_CONTROL_MODE
    preload = ("torch",)
    to_draw = REMEDY

    def tasks(self) -> list[str]:
        """Return the registered tasks; none where ManiSkill is not installed."""
        if importlib.util.find_spec("mani_skill") is None:
            return []
        import mani_skill.envs  # noqa: F401  (registers them)
        from mani_skill.utils.registration import REGISTERED_ENVS

        return sorted(REGISTERED_ENVS)

    def owns(self, env_id: str) -> bool:
        """Return whether the id is a task's. ManiSkill, which takes seconds, is imported only for ids that are
        not Gymnasium's."""
        if ":" in env_id or (env_id in gym.registry and "mani_skill" not in sys.modules):
            return False
        return env_id in self.tasks()

    def missing(self) -> str:
        """Return how to install ManiSkill where it is not."""
        installed = importlib.util.find_spec("mani_skill") is not None
        return "" if installed else f"for ManiSkill's tasks: {how_to_install()}"

    def make(self, spec: EnvSpec) -> gym.Env:
        """Build one on the CPU."""
        return ManiSkillEnv(spec)

    def capabilities(self, spec: EnvSpec) -> Capabilities:
        """Return that images may be drawn late, and that the GPU takes a batch."""
        return Capabilities(batched=sim_backend(spec) == "physx_cuda", lazy_images=spec.obs_mode == "rgb")

    def filmed(self, spec: EnvSpec) -> EnvSpec:
        """Return the spec with physics on the CPU, where an environment is a process."""
        return replace(spec, sim_backend="physx_cpu")

    def make_vector(self, spec: EnvSpec, num_envs: int) -> MacroVectorEnv:
        """Build a batch in one simulation."""
        from dsrl_offpolicy.envs.families.maniskill_batched import make_batched_env

        return make_batched_env(spec, num_envs)

    def time_limit(self, spec: EnvSpec) -> int | None:
        """Return what was asked for, or the limit the task is registered with."""
        return time_limit(spec)

    def facts(self, env: gym.Env | MacroVectorEnv, spec: EnvSpec) -> EnvFacts:
        """Return the facts, with the order of the state's parts and the cameras."""
        simulator: Any = env.unwrapped
        return replace(super().facts(env, spec), state_keys=simulator.state_keys, cameras=simulator.cameras)

    def describe(self, spec: EnvSpec) -> dict[str, Any]:
        """Return the device that renders, the physics and the controller."""
        return {
            "render_device": render_device(),
            "sim_backend": sim_backend(spec),
            "control_mode": spec.control_mode or DEFAULT_CONTROL_MODE,
        }


def how_to_install(python: tuple[int, ...] = sys.version_info[:2]) -> str:
    """Return what gets ManiSkill onto this machine: the extra is empty where ManiSkill has no packages."""
    if python >= TOO_NEW:
        return (
            f"ManiSkill has no packages for Python {python[0]}.{python[1]}; make a virtual environment of Python "
            "3.12 or older and install 'dsrl_offpolicy[maniskill]' there"
        )
    return "pip install 'dsrl_offpolicy[maniskill]'"


def check_maniskill() -> None:
    """Refuse to go on where ManiSkill cannot build a scene.

    Raises:
        InputError: it is not installed, or has no render device; says what cures it.
    """
    if importlib.util.find_spec("mani_skill") is None:
        raise InputError(f"env_id: expected ManiSkill to be installed: {how_to_install()}")
    render_device()


def sim_backend(spec: EnvSpec) -> str:
    """Return ``physx_cpu`` or ``physx_cuda``.

    Raises:
        InputError: ``physx_cuda`` without CUDA.
    """
    import torch

    if spec.sim_backend == "auto":
        return "physx_cuda" if torch.cuda.is_available() else "physx_cpu"
    if spec.sim_backend == "physx_cuda" and not torch.cuda.is_available():
        raise InputError("sim_backend: expected physx_cpu or auto on a machine without CUDA, got physx_cuda")
    return spec.sim_backend


def make_simulator(spec: EnvSpec, num_envs: int) -> Any:
    """Make ManiSkill's own environment, without any wrapper and without a time limit.

    Raises:
        InputError: no render device, a task whose assets are not here, or a mode it does not know.
    """
    from mani_skill import logger

    logger.setLevel(logging.ERROR)
    logging.getLogger("mani_skill").setLevel(logging.ERROR)
    check_maniskill()
    _check_assets(spec.env_id)
    backend = sim_backend(spec)
    if spec.render_backend == "none" and spec.obs_mode == "rgb":
        raise InputError("render_backend: expected auto, cpu or gpu for obs_mode rgb, got none")
    if spec.render_backend == "none" and spec.frames_every:
        raise InputError("render_backend: expected auto, cpu or gpu for videos, got none")

    settings: dict[str, Any] = {
        "num_envs": num_envs,
        "obs_mode": spec.obs_mode,
        "control_mode": spec.control_mode or DEFAULT_CONTROL_MODE,
        "reward_mode": spec.reward_mode,
        "sim_backend": backend,
    }
    if spec.image_size is not None:
        settings["sensor_configs"] = {"height": spec.image_size[0], "width": spec.image_size[1]}
    if spec.robot_uids is not None:
        settings["robot_uids"] = spec.robot_uids
    if spec.frames_every:
        spectator = {"height": FRAME_HEIGHT, "width": FRAME_HEIGHT}
        settings |= {"render_mode": "rgb_array", "human_render_camera_configs": spectator}
    try:
        return _make(spec, settings)
    except NotImplementedError as error:
        raise InputError(f"reward_mode or obs_mode of {spec.env_id}: {_one_line(error)}") from error
    except (KeyError, AssertionError) as error:
        raise _control_mode_error(spec, error) from error
    except (EOFError, SystemExit) as error:  # ManiSkill asks on standard input whether to download
        raise _assets_error(spec.env_id, "its robot") from error
    except RuntimeError as error:
        raise InputError(f"env_id: the scene of {spec.env_id} cannot be built: {_one_line(error)}") from error


def _make(spec: EnvSpec, settings: Mapping[str, Any]) -> Any:
    """Build it with a renderer only where one is needed: state steps go without. ``gpu`` is the CPU where there is
    no CUDA (ManiSkill falls back)."""
    from mani_skill.utils.registration import REGISTERED_ENVS

    make = functools.partial(REGISTERED_ENVS[spec.env_id].make, **settings)
    with open(os.devnull) as nothing, _standard_input(nothing):
        if spec.render_backend != "auto":
            return make(render_backend=spec.render_backend)
        if spec.obs_mode == "rgb" or spec.frames_every:
            return make(render_backend="gpu")
        try:
            return make(render_backend="none")
        except AttributeError:  # a task that edits its visual bodies (PushT-v1) has none without a renderer
            return make(render_backend="gpu")


@contextlib.contextmanager
def _standard_input(file: Any) -> Iterator[None]:
    before, sys.stdin = sys.stdin, file
    try:
        yield
    finally:
        sys.stdin = before


def _check_assets(env_id: str) -> None:
    from mani_skill.utils import assets
    from mani_skill.utils.registration import REGISTERED_ENVS

    for name in REGISTERED_ENVS[env_id].asset_download_ids or []:
        sources = assets.DATA_GROUPS.get(name) or [name]
        for source in sources:
            if source in assets.DATA_SOURCES and not assets.is_data_source_downloaded(source):
                raise _assets_error(env_id, source)


def _assets_error(env_id: str, missing: str) -> InputError:
    return InputError(
        f"env_id: expected the assets of {env_id} on this machine, those of {missing} are missing: "
        f"python -m mani_skill.utils.download_asset {env_id}"
    )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _control_mode_error(spec: EnvSpec, error: Exception) -> Exception:
    """What to raise when a scene could not be built: an unknown controller is the user's, the rest is not."""
    said = _one_line(error)
    mode = spec.control_mode or DEFAULT_CONTROL_MODE
    if mode not in said:
        return error
    known = [word for word in re.findall(r"\w+", said) if word != mode]
    valid = ", ".join(word for word in known if "pd_" in word)
    return InputError(
        f"control_mode: expected a controller of {spec.env_id} ({valid}), got {mode!r}{did_you_mean(mode, known)}"
    )


def time_limit(spec: EnvSpec) -> int | None:
    """Return env steps until truncation: what was asked for, or the limit the task is registered with."""
    from mani_skill.utils.registration import REGISTERED_ENVS

    limit = spec.max_episode_steps or REGISTERED_ENVS[spec.env_id].max_episode_steps
    return int(limit) if limit else None


def check_actions(spec: EnvSpec, space: gym.Space) -> None:
    """Refuse controllers whose actions are not normalised: demonstrations hold them as they are.

    Raises:
        InputError: no Box, or limits other than [-1, 1].
    """
    if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
        raise InputError(f"env_id: expected one robot with a Box action vector, {spec.env_id} has {space}")
    if not (np.all(space.low == -1) and np.all(space.high == 1)):
        raise InputError(
            f"control_mode: expected a controller with actions in [-1, 1] (such as pd_ee_delta_pose or "
            f"pd_joint_delta_pos), {spec.control_mode} has [{space.low.min():.3g}, {space.high.max():.3g}]"
        )


def check_cameras(spec: EnvSpec, raw: Mapping[str, Any]) -> None:
    """Refuse scenes whose images cannot be concatenated along the channels.

    Raises:
        InputError: no camera, or cameras of different sizes.
    """
    sizes = {name: tuple(data["rgb"].shape[1:3]) for name, data in raw["sensor_data"].items()}
    if len(set(sizes.values())) != 1:
        raise InputError(f"env_id: expected cameras of one image size, {spec.env_id} has {sizes or 'none'}")


def state_keys(raw: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the parts of the state in the environment's order: ``agent/qpos, agent/qvel, extra/tcp_pose``, ..."""
    keys: list[str] = []

    def walk(part: Mapping[str, Any], prefix: str) -> None:
        for name, value in part.items():
            if isinstance(value, Mapping):
                walk(value, f"{prefix}{name}/")
            else:
                keys.append(f"{prefix}{name}")

    walk({name: part for name, part in raw.items() if name not in ("sensor_data", "sensor_param")}, "")
    return tuple(keys)


class ManiSkillEnv(gym.Env):
    """One environment in this process, with physics on the CPU.

    Observations are the state ``[S]`` float32, or with ``obs_mode`` rgb
    ``{"state": [S], "rgb": [H, W, 3k] uint8}``: k cameras along the channels, in the environment's order.
    Rendering is nearly all of an rgb step's time, so whoever needs no image of a step sets ``images_wanted`` to
    False before it: that step's ``"rgb"`` is then None, and ``image()`` renders the current one late.

    Attributes:
        images_wanted: whether ``step`` renders.
        max_episode_steps: env steps until truncation, or None.
        state_keys: names of the parts of the state, in order; None for obs_mode state.
        cameras: names of the cameras, in order.
    """

    def __init__(self, spec: EnvSpec) -> None:
        import torch
        from mani_skill.utils import common

        self._inference_mode = torch.inference_mode
        self._flatten = common.flatten_state_dict
        # Everything under inference mode, from the first tensor on: a quarter of a step's time (small operations).
        with self._inference_mode():
            self.simulator = make_simulator(spec, 1)
        space = self.simulator.single_action_space
        try:
            check_actions(spec, space)
        except InputError:
            self.close()
            raise
        self.action_space = space
        self.max_episode_steps = time_limit(spec)
        self._rgb = spec.obs_mode == "rgb"
        self.images_wanted = True
        self._observe_all = self.simulator._get_obs_with_sensor_data
        if self._rgb:
            self.simulator._get_obs_with_sensor_data = self._observe_wanted
        first = self.simulator._init_raw_obs
        self.state_keys = state_keys(first) if self._rgb else None
        self.cameras = tuple(first["sensor_data"]) if self._rgb else ()
        self.observation_space = self._space(first, spec)
        self._elapsed = 0

    def _space(self, first: Any, spec: EnvSpec) -> gym.Space:
        if not self._rgb:
            return gym.spaces.Box(-np.inf, np.inf, (int(first.shape[-1]),), np.float32)
        check_cameras(spec, first)
        obs = self._observation(first)
        return gym.spaces.Dict(
            {
                "state": gym.spaces.Box(-np.inf, np.inf, obs["state"].shape, np.float32),
                "rgb": gym.spaces.Box(0, 255, obs["rgb"].shape, np.uint8),
            }
        )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        self._elapsed = 0
        with self._inference_mode():
            obs, _ = self.simulator.reset(seed=seed)
            return self._observation(obs), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        with self._inference_mode():
            obs, reward, terminated, _, info = self.simulator.step(action)
            self._elapsed += 1
            facts = {"success": is_success(info["success"])} if "success" in info else {}
            truncated = self.max_episode_steps is not None and self._elapsed >= self.max_episode_steps
            # ManiSkill ends an episode on success or failure; ending on success is SuccessReward's to decide.
            failed = bool(terminated) and not facts.get("success", False)
            return self._observation(obs), float(reward), failed, truncated, facts

    def _observe_wanted(self, info: Any, apply_texture_transforms: bool = True) -> Any:
        """In ManiSkill's place: the parts of the state alone where no image is wanted. The observation mode stays
        rgb meanwhile, because tasks add privileged parts in others."""
        if self.images_wanted:
            return self._observe_all(info, apply_texture_transforms)
        return self.simulator._get_obs_state_dict(info)

    def image(self) -> np.ndarray:
        """Render the cameras' images of the current state, ``[H, W, 3k]`` uint8."""
        self.images_wanted = True
        with self._inference_mode():
            image: np.ndarray = self._observation(self.simulator.get_obs())["rgb"]
            return image

    def _observation(self, obs: Any) -> Any:
        if not self._rgb:
            return obs[0].numpy()
        state = self._flatten({k: v for k, v in obs.items() if not k.startswith("sensor")}, use_torch=True)
        images = [data["rgb"][0].numpy() for data in obs.get("sensor_data", {}).values()]
        return {"state": state[0].numpy(), "rgb": np.concatenate(images, axis=-1) if images else None}

    def render(self) -> np.ndarray:
        with self._inference_mode():
            image: np.ndarray = self.simulator.render()[0].cpu().numpy()
            return image

    def close(self) -> None:
        self.simulator.close()
