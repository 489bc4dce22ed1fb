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
from typing import Any

from dsrl_offpolicy.errors import InputError, did_you_mean

EXTRAS = {
    "mani_skill": "maniskill", "sapien": "maniskill", "mplib": "maniskill", "wandb": "track",
}  # fmt: skip
"""The extra that installs an optional library, by the name it is imported under."""


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
        return [*self.builtin, *(found.name for found in entry_points(group=self.group))]

    def find(self, name: str, flag: str) -> Any:
        """Import the kind that ``name`` names.

        Args:
            name: a built-in or installed kind, or ``module:Class``.
            flag: the setting to name in an error.

        Raises:
            InputError: an unknown name, answered with the nearest one and the list; a module that cannot be
                imported or does not hold the class; a missing library, answered with the extra that installs it.
        """
        if name in self.builtin:
            return _imported(self.builtin[name], name, flag)
        for found in entry_points(group=self.group):
            if found.name == name:
                return _imported(found.value, name, flag)
        if ":" not in name:
            raise InputError(
                f"{flag}: unknown {self.what} {name!r}{did_you_mean(name, self.names())}; "
                f"valid: {', '.join(self.names())}, or module:Class of your own"
            )
        return _imported(name, name, flag)


def _imported(path: str, name: str, flag: str) -> Any:
    module_name, _, class_name = path.partition(":")
    if os.getcwd() not in sys.path:  # a user's own file beside which a command was started
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        extra = EXTRAS.get((error.name or "").split(".")[0])
        cure = f" (pip install 'dsrl_offpolicy[{extra}]')" if extra else ""
        raise InputError(f"{flag}: {name} cannot be imported: {' '.join(str(error).split())}{cure}") from error
    except Exception as error:  # whatever a user's module raises while it is imported
        problem = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"{flag}: {name} cannot be imported: {problem}") from error
    if not hasattr(module, class_name):
        near = did_you_mean(class_name, [n for n in vars(module) if not n.startswith("_")])
        raise InputError(f"{flag}: {module_name} has no {class_name or 'class; write module:Class'}{near}")
    return getattr(module, class_name)


BASE_POLICIES = Registry(
    "base policy",
    "dsrl_offpolicy.base_policies",
    {
        "awsc": "dsrl_offpolicy.base_policies.awsc:PublishedPolicy",
        "shortcut_flow": "dsrl_offpolicy.base_policies.shortcut_flow:ShortcutFlowPolicy",
    },
)
ENV_FAMILIES = Registry(
    "environment family",
    "dsrl_offpolicy.env_families",
    {
        "metaworld": "dsrl_offpolicy.envs.families.metaworld:MetaWorld",
        "maniskill": "dsrl_offpolicy.envs.families.maniskill:ManiSkill",
        "gymnasium": "dsrl_offpolicy.envs.families.gymnasium:GymnasiumEnvs",
    },
)
ALGORITHMS = Registry(
    "algorithm", "dsrl_offpolicy.algorithms", {"sac": "dsrl_offpolicy.agents.dsrl_sac_agent:DSRLSACAgent"}
)
DEMO_FORMATS = Registry(
    "demonstration format",
    "dsrl_offpolicy.demo_formats",
    {"maniskill_hdf5": "dsrl_offpolicy.demos.formats.maniskill_hdf5:ManiSkillHDF5"},
)
SINKS = Registry(
    "logger",
    "dsrl_offpolicy.sinks",
    {
        "tensorboard": "dsrl_offpolicy.tracking.sinks.tensorboard:TensorBoard",
        "wandb": "dsrl_offpolicy.tracking.sinks.wandb:WeightsAndBiases",
    },
)
