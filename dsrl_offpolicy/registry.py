"""Find a kind of thing by name: base policies, environment families, algorithms, demonstration formats, loggers.

A name is a built-in kind below, an entry point of an installed package, or ``module:Class`` of a user's own file
in the working directory or on the path. Nothing is imported before it is asked for.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, TypeVar

from dsrl_offpolicy.errors import InputError, did_you_mean, one_line

T = TypeVar("T")

EXTRAS = {
    "mani_skill": "maniskill", "sapien": "maniskill", "mplib": "maniskill", "wandb": "track", "trackio": "trackio",
    "stable_baselines3": "sb3", "sb3_contrib": "sb3", "websockets": "remote", "msgpack": "remote",
    "lerobot": "lerobot", "diffusers": "lerobot", "draccus": "lerobot", "torchvision": "lerobot",
    "huggingface_hub": "hub", "pyarrow": "lerobot-data", "av": "lerobot-data", "PIL": "lerobot-data",
    "robosuite": "robosuite", "ray": "ray",
    "transformers": "smolvla", "num2words": "smolvla",
}  # fmt: skip
"""The extra that installs an optional library, by the name it is imported under."""


def not_installed(error: ImportError) -> str:
    """Return why an import failed, on one line, and the extra that installs what is missing."""
    extra = EXTRAS.get((error.name or "").split(".")[0])
    cure = f" (pip install 'dsrl_offpolicy[{extra}]')" if extra else ""
    return " ".join(str(error).split()) + cure


@dataclass(frozen=True)
class Registry:
    """The kinds of one thing.

    Attributes:
        what: the thing, for messages.
        group: of the entry points by which installed packages add kinds.
        builtin: ``module:Class`` by name.
    """

    what: str
    group: str
    builtin: Mapping[str, str]

    def names(self) -> list[str]:
        """Return the names of all kinds that are built in or installed."""
        return [*self.builtin, *self._installed()]

    def _installed(self) -> dict[str, str]:
        return {found.name: found.value for found in entry_points(group=self.group)}

    def find(self, name: str, flag: str, base: type[T]) -> type[T]:
        """Import the class that ``name`` names.

        Args:
            name: a built-in or installed kind, or ``module:Class``.
            flag: the setting to name in an error.
            base: what the class must be derived from; its abstract methods must all be defined.

        Raises:
            InputError: an unknown name, answered with the nearest one and the list; a module that cannot be
                imported or does not hold the class; a missing library, answered with the extra that installs it; a
                class that is something else, or lacks a method.
        """
        path = self.builtin.get(name) or (name if ":" in name else self._installed().get(name, name))
        if ":" not in path:
            raise InputError(
                f"{flag}: unknown {self.what} {name!r}{did_you_mean(name, self.names())}; "
                f"valid: {', '.join(self.names())}, or module:Class of your own"
            )
        found, needed = _imported(path, name, flag), sorted(base.__abstractmethods__)  # type: ignore[attr-defined]
        contract = f"expected a subclass of {base.__module__}.{base.__name__} that defines {', '.join(needed)}"
        if not (isinstance(found, type) and issubclass(found, base)):
            raise InputError(f"{flag}: {contract}; {name} is no subclass of {base.__name__}")
        if missing := [method for method in needed if method in found.__abstractmethods__]:  # type: ignore[attr-defined]
            raise InputError(f"{flag}: {contract}; {name} does not define {', '.join(missing)}")
        return found

    def make(self, name: str, flag: str, base: type[T]) -> T:
        """Make the kind that ``name`` names, without arguments.

        Raises:
            InputError: as :meth:`find`, and whatever the class raises.
        """
        kind = self.find(name, flag, base)
        try:
            return kind()
        except Exception as error:
            raise InputError(f"{flag}: {name} cannot be made: {one_line(error)}") from error


def _imported(path: str, name: str, flag: str) -> Any:
    module_name, _, class_name = path.partition(":")
    if os.getcwd() not in sys.path:  # a user's own file beside which a command was started
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise InputError(f"{flag}: {name} cannot be imported: {not_installed(error)}") from error
    except Exception as error:  # whatever a user's module raises while it is imported
        raise InputError(f"{flag}: {name} cannot be imported: {one_line(error)}") from error
    if not hasattr(module, class_name):
        near = did_you_mean(class_name, [n for n in vars(module) if not n.startswith("_")])
        raise InputError(f"{flag}: {module_name} has no {class_name or 'class; write module:Class'}{near}")
    return getattr(module, class_name)


BASE_POLICIES = Registry(
    "base policy",
    "dsrl_offpolicy.base_policies",
    {
        "awsc": "dsrl_offpolicy.base_policies.awsc:PublishedPolicy",
        "dppo": "dsrl_offpolicy.base_policies.dppo:DPPOPolicy",
        "lerobot": "dsrl_offpolicy.base_policies.lerobot:LeRobotPolicy",
        "remote": "dsrl_offpolicy.base_policies.remote:RemotePolicy",
        "shortcut_flow": "dsrl_offpolicy.base_policies.shortcut_flow:ShortcutFlowPolicy",
    },
)
ENV_FAMILIES = Registry(
    "environment family",
    "dsrl_offpolicy.env_families",
    {
        "metaworld": "dsrl_offpolicy.envs.families.metaworld:MetaWorld",
        "maniskill": "dsrl_offpolicy.envs.families.maniskill:ManiSkill",
        "robosuite": "dsrl_offpolicy.envs.families.robosuite:Robosuite",
        "robot": "dsrl_offpolicy.envs.families.robot:RobotEnvs",
        "gymnasium": "dsrl_offpolicy.envs.families.gymnasium:GymnasiumEnvs",
    },
)
ROBOTS = Registry("robot", "dsrl_offpolicy.robots", {})
"""``robot:NAME``: none is built in."""
ALGORITHMS = Registry(
    "algorithm",
    "dsrl_offpolicy.algorithms",
    {
        "sac": "dsrl_offpolicy.agents.dsrl_sac_agent:DSRLSACAgent",
        "na": "dsrl_offpolicy.agents.noise_aliasing:NoiseAliasingAgent",
        "lps": "dsrl_offpolicy.agents.latent_policy_gradient:LatentPolicyGradientAgent",
    },
)
DEMO_FORMATS = Registry(
    "demonstration format",
    "dsrl_offpolicy.demo_formats",
    {  # in the order in which files are tried; ManiSkill's takes any HDF5 file
        "lerobot_v3": "dsrl_offpolicy.demos.formats.lerobot_v3:LeRobotV3",
        "robomimic_hdf5": "dsrl_offpolicy.demos.formats.robomimic_hdf5:RobomimicHDF5",
        "maniskill_hdf5": "dsrl_offpolicy.demos.formats.maniskill_hdf5:ManiSkillHDF5",
    },
)
SINKS = Registry(
    "logger",
    "dsrl_offpolicy.sinks",
    {
        "tensorboard": "dsrl_offpolicy.tracking.sinks.tensorboard:TensorBoard",
        "trackio": "dsrl_offpolicy.tracking.sinks.trackio:Trackio",
        "wandb": "dsrl_offpolicy.tracking.sinks.wandb:WeightsAndBiases",
    },
)
