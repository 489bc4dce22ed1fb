"""What a family of environments must tell and do; how the family of an environment is found. Free of torch.

A family is one class, built in under ``envs/families/`` or a user's own, named by ``--env_family module:Class``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium as gym
from gymnasium.vector import VectorEnv

from dsrl_offpolicy.envs.spec import EnvSpec, RewardMode
from dsrl_offpolicy.errors import InputError, did_you_mean
from dsrl_offpolicy.registry import ENV_FAMILIES

FAMILY_SETTINGS = ("control_mode", "obs_mode", "sim_backend", "render_backend", "image_size", "robot_uids")
"""Fields of ``EnvSpec`` that only some families understand."""


@dataclass(frozen=True)
class Capabilities:
    """What may be done with environments of a family.

    Attributes:
        batched: ``make_vector`` steps all environments at once in this process and takes device tensors. It draws
            the starts of one reset together, so evaluation starts all its slots at once.
        replayable: seeds and actions repeat an episode. Where they do not, a resumed run begins its episodes
            anew and sends no old chunk.
        exclusive: one vector environment at a time: Stage 2 evaluates in the training environment, whose episodes
            begin anew afterwards.
        single: there is one such environment, so ``num_envs`` is 1.
        supervised_reset: somebody stands by and resets by hand: a reset may take any time.
        lazy_images: the unwrapped environment has ``images_wanted``, ``image()`` and ``max_episode_steps``: while
            ``images_wanted`` is False, a step's ``"rgb"`` is None, and ``image()`` renders it late.
        killable: a process that hangs may be killed. Where it may not, the run ends and leaves it alone.
        trial_steps: whoever only wants facts may reset the environment and step it with zeros.
    """

    batched: bool = False
    replayable: bool = True
    exclusive: bool = False
    single: bool = False
    supervised_reset: bool = False
    lazy_images: bool = False
    killable: bool = True
    trial_steps: bool = True


@dataclass(frozen=True)
class EnvFacts:
    """What a job checks its files against before it starts.

    Attributes:
        state_dim: S.
        action_dim: A.
        max_episode_steps: env steps until truncation, or None.
        image_shape: ``(H, W, 3k)`` of the images of all k cameras; None without images.
        state_keys: names of the parts of the state, in the environment's order, where it tells them.
        cameras: names of the cameras, in the environment's order.
    """

    state_dim: int
    action_dim: int
    max_episode_steps: int | None
    image_shape: tuple[int, ...] | None = None
    state_keys: tuple[str, ...] | None = None
    cameras: tuple[str, ...] = ()


class MacroVectorEnv(VectorEnv):
    """Several macro-step environments that never reset by themselves.

    Attributes:
        capabilities: those of the family.
    """

    capabilities: Capabilities

    def step_async(self, actions: Any) -> None:
        """Set every environment going with its chunk of ``actions`` ``[E, H, A]``."""
        raise NotImplementedError

    def step_wait(self) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Return what the environments came to: observations, rewards, terminated, truncated, info."""
        raise NotImplementedError

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Call ``step_async``, then ``step_wait``."""
        self.step_async(actions)
        return self.step_wait()


class EnvFamily(ABC):
    """Environments that are made in the same way. Subclasses need ``tasks`` and ``make``.

    Attributes:
        name: how messages call it: its name in ``registry.ENV_FAMILIES``; by default ``module:Class``.
        package: the distribution whose version tells which simulator it is; "" for none.
        settings: the fields of ``FAMILY_SETTINGS`` that it understands; others are refused. A family with images
            has ``obs_mode``.
        reward_modes: the reward modes that it knows.
        common_reward_mode: one that every environment of it has, for looking at one.
        default_control_mode: the controller where nothing is said; None where there is none to choose.
        preload: modules that its worker processes share.
        to_draw: what cures it where environments cannot be drawn.
    """

    name: ClassVar[str]
    package: ClassVar[str] = ""
    settings: ClassVar[frozenset[str]] = frozenset()
    reward_modes: ClassVar[tuple[str, ...]] = ("sparse", "dense")
    common_reward_mode: ClassVar[RewardMode] = "dense"
    default_control_mode: ClassVar[str | None] = None
    preload: ClassVar[tuple[str, ...]] = ()
    to_draw: ClassVar[str] = "its render() must return an image, uint8 [H, W, 3]"

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.name = vars(cls).get("name", f"{cls.__module__}:{cls.__name__}")

    @abstractmethod
    def tasks(self) -> Sequence[str]:
        """Return the ids that it knows."""

    @abstractmethod
    def make(self, spec: EnvSpec) -> gym.Env:
        """Build one environment of single actions in [-1, 1].

        Observations are a float32 vector or a mapping with it under ``"state"``, uint8 images ``[H, W, 3k]`` under
        ``"rgb"``, and any other keys: numbers are stacked as frames are, strings (``gym.spaces.Text``) are passed
        on. ``info["success"]`` tells success, where there is such a thing. Reward mode, reward scale, the end on
        success and ``max_episode_steps`` are applied to what it returns.

        Where ``spec.frames_every`` is set, ``render()`` draws what a spectator sees, uint8 ``[h, w, 3]``; it is
        never called elsewhere.

        Raises:
            InputError: an environment that cannot be made or steered; says why.
        """

    def owns(self, env_id: str) -> bool:
        """Return whether the id is one of its."""
        return env_id in self.tasks()

    def missing(self) -> str:
        """Return what to do where the simulator is not installed, "" where it is."""
        return ""

    def capabilities(self, spec: EnvSpec) -> Capabilities:
        """Return what may be done with these environments."""
        return Capabilities()

    def filmed(self, spec: EnvSpec) -> EnvSpec:
        """Return the spec with which its environments can be filmed, a process each; ``frames_every`` is set."""
        return spec

    def make_vector(self, spec: EnvSpec, num_envs: int) -> MacroVectorEnv:
        """Build ``num_envs`` macro-step environments in this process; asked of ``batched`` families alone."""
        raise NotImplementedError(f"{type(self).__name__} has no batched environments")

    def time_limit(self, spec: EnvSpec) -> int | None:
        """Return the env steps until truncation where they are known before one is built."""
        return spec.max_episode_steps

    def facts(self, env: gym.Env | MacroVectorEnv, spec: EnvSpec) -> EnvFacts:
        """Return the facts of an environment made from ``spec`` (or of a batch of one), without stepping it."""
        stacked = isinstance(env, MacroVectorEnv)
        space = env.single_observation_space if isinstance(env, MacroVectorEnv) else env.observation_space
        parts = dict(space.spaces) if isinstance(space, gym.spaces.Dict) else {"state": space}
        shapes = {name: (part.shape or ())[stacked:] for name, part in parts.items()}
        assert env.action_space.shape is not None
        registered = env.spec.max_episode_steps if env.spec is not None else None
        own = registered or getattr(env.unwrapped, "max_episode_steps", None)
        return EnvFacts(
            state_dim=shapes["state"][0],
            action_dim=env.action_space.shape[-1],
            max_episode_steps=spec.max_episode_steps or (int(own) if own else None),
            image_shape=shapes.get("rgb"),
        )

    def describe(self, spec: EnvSpec) -> dict[str, Any]:
        """Return what else ``dsrl doctor env`` shows, such as the device that renders."""
        return {}

    def check(self, spec: EnvSpec) -> None:
        """Refuse settings that mean nothing for this family.

        Raises:
            InputError: naming the setting.
        """
        default = EnvSpec(spec.env_id)
        for setting in FAMILY_SETTINGS:
            value, expected = getattr(spec, setting), getattr(default, setting)
            if setting not in self.settings and value != expected:
                raise InputError(
                    f"{setting}: expected {expected or 'none'} for {spec.env_id}, because environments of "
                    f"{self.name} have no such setting, got {value}"
                )
        if spec.reward_mode not in self.reward_modes:
            raise InputError(
                f"reward_mode: expected {' or '.join(self.reward_modes)} for {spec.env_id}, got {spec.reward_mode}"
            )


def find_family(env_id: str, family: str = "auto") -> EnvFamily:
    """Return the family of an environment: the named one, or the first that owns the id.

    Args:
        env_id: the environment.
        family: a name of ``registry.ENV_FAMILIES``, ``module:Class``, or ``auto``.

    Raises:
        InputError: an unknown family, or an id that it does not know; names the nearest one.
    """
    asked: list[EnvFamily] = []
    for name in ENV_FAMILIES.names() if family == "auto" else [family]:
        found = ENV_FAMILIES.make(name, "env_family", EnvFamily)
        if found.owns(env_id):
            return found
        asked.append(found)
    whose = f"an environment of {family}"
    if family == "auto":
        whose = "a MetaWorld, ManiSkill or robosuite task or a registered Gymnasium id"
    near = did_you_mean(env_id, [task for found in asked for task in found.tasks()])
    missing = "".join(f" ({found.missing()})" for found in asked if found.missing())
    raise InputError(f"env_id: expected {whose}, got {env_id!r}{near}{missing}")


def family_of(spec: EnvSpec) -> EnvFamily:
    """Return the family that a spec names, or that owns its id."""
    return find_family(spec.env_id, spec.env_family)
