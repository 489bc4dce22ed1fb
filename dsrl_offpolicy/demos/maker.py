"""The seam for ways to make demonstrations: who demonstrates which tasks, and by which settings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from dsrl_offpolicy.configs.jobs import DemosConfig


class Maker(ABC):
    """One way to make demonstrations.

    Attributes:
        name: for messages.
        demonstrator: what ``--demonstrator`` calls it.
        control_mode: of its actions where the settings name none.
        settings: fields of ``DemosConfig`` that it reads besides those that all makers read.
        needs_maniskill: whether it records in ManiSkill.
    """

    name: str
    demonstrator: str
    control_mode: str
    settings: Sequence[str]
    needs_maniskill: bool = True

    @abstractmethod
    def tasks(self) -> Sequence[str]:
        """Return the tasks that it demonstrates."""

    @abstractmethod
    def record(self, config: DemosConfig, path: Path) -> None:
        """Write ``config.episodes`` demonstrations to an HDF5 file and its JSON.

        Raises:
            InputError: the file exists or cannot be made, or a setting does not fit the task.
        """
