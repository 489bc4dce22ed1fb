"""Demonstrations from ManiSkill's motion planner, converted to a policy's control and observations."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from dsrl_offpolicy.configs.jobs import DemosConfig
from dsrl_offpolicy.demos.formats.maniskill_hdf5 import check_new_file
from dsrl_offpolicy.demos.maker import Maker
from dsrl_offpolicy.demos.makers.parts import (
    PART_EPISODES,
    PartCounts,
    PlanRequest,
    add_part,
    merge_parts,
    open_parts,
    parts_folder,
)
from dsrl_offpolicy.demos.makers.planner import MakePart, PlannerProcess, make_part
from dsrl_offpolicy.errors import InputError, did_you_mean
from dsrl_offpolicy.seeding import FIRST_EVALUATION_SEED, numpy_generator
from dsrl_offpolicy.tracking.progress import ProgressReport

PLANNED_TASKS = (
    "DrawSVG-v1",
    "DrawTriangle-v1",
    "LiftPegUpright-v1",
    "PegInsertionSide-v1",
    "PickCube-v1",
    "PlaceSphere-v1",
    "PlugCharger-v1",
    "PullCube-v1",
    "PullCubeTool-v1",
    "PushCube-v1",
    "StackCube-v1",
    "StackPyramid-v1",
)
"""Tasks for which ManiSkill 3.0.1 has a motion planner; known here so that naming them needs no simulator."""

CONTROL_MODES = (
    "pd_ee_delta_pose",
    "pd_ee_delta_pos",
    "pd_ee_target_delta_pose",
    "pd_ee_target_delta_pos",
    "pd_joint_delta_pos",
    "pd_joint_target_delta_pos",
)
"""Control modes with actions in [-1, 1] to which ManiSkill converts planned joint positions."""


class MotionPlanner(Maker):
    """ManiSkill's motion planner; plans that fail are left out."""

    name = "ManiSkill's motion planner"
    demonstrator = "planner"
    control_mode = "pd_ee_delta_pose"
    settings = ("control_mode", "obs_mode", "reward_mode", "max_episode_steps")

    def tasks(self) -> Sequence[str]:
        """Return the tasks that it plans."""
        return PLANNED_TASKS

    def record(self, config: DemosConfig, path: Path) -> None:
        """Record, or go on with an interrupted recording of the same settings."""
        rng = numpy_generator(config.seed, "demonstrations")
        request = PlanRequest(
            env_id=config.env_id,
            control_mode=config.control_mode or self.control_mode,
            obs_mode=config.obs_mode,
            reward_mode=config.reward_mode,
            max_episode_steps=config.max_episode_steps,
            episodes=config.episodes,
            seed=config.seed,
            first_seed=int(rng.integers(FIRST_EVALUATION_SEED // 2)),  # starts count up from it
        )
        with ProgressReport("demos", config.episodes, "episodes") as progress:

            def report(counts: PartCounts) -> None:
                lost = {"failed plans": counts.failed_plans, "failed replays": counts.failed_replays}
                progress.report(counts.kept, {"planned": counts.planned, **lost})

            record_motion_plans(request, path, report)


def check_planner(request: PlanRequest) -> None:
    """Refuse what cannot be planned, before anything is written.

    Raises:
        InputError: a control mode to which plans are not converted, the simulator or the planner is missing, or a
            numpy under which the planner crashes.
    """
    if request.control_mode not in CONTROL_MODES:
        hint = did_you_mean(request.control_mode, CONTROL_MODES)
        expected = ", ".join(CONTROL_MODES)
        raise InputError(f"control_mode: expected one of {expected}, got {request.control_mode!r}{hint}")
    for package in ("mani_skill", "mplib"):
        if importlib.util.find_spec(package) is None:
            raise InputError(
                f"env_id: expected the extra maniskill (pip install 'dsrl_offpolicy[maniskill]') for "
                f"{request.env_id}, got no {package}"
            )
    if int(np.__version__.split(".")[0]) >= 2:
        raise InputError(
            f"numpy: expected a version below 2, with a later one ManiSkill's motion planner crashes "
            f"(pip install 'numpy<2'), got {np.__version__}"
        )


def record_motion_plans(
    request: PlanRequest, path: Path, report: Callable[[PartCounts], None], make: MakePart = make_part
) -> PartCounts:
    """Plan, convert and write ``request.episodes`` demonstrations to ``path`` and its JSON.

    An interrupted run leaves whole parts in ``<path>.parts``; called again with the same request it goes on there.

    Args:
        request: what to record.
        path: the HDF5 file, which must not exist.
        report: hears the counts at the start and after every part.
        make: makes one part, in the planner's process.

    Raises:
        InputError: see :func:`check_planner`; parts begun with other settings; or a planner that fails or crashes.
    """
    check_new_file(path)
    check_planner(request)
    folder = parts_folder(path)
    total = open_parts(folder, request)
    report(total)
    if total.kept < request.episodes:
        planner = PlannerProcess(make, folder / "planner.log")
        try:
            while total.kept < request.episodes:
                total += add_part(folder, partial(planner.make, request, total))
                report(total)
                if total.kept == 0 and total.planned >= PART_EPISODES:
                    raise InputError(
                        f"control_mode: expected one in which plans of {request.env_id} still succeed, got "
                        f"{request.control_mode} (0 of {total.planned}); {folder} can be removed"
                    )
        finally:
            planner.kill()
    merge_parts(folder, path)
    return total
