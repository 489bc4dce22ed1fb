"""Demonstrations from ManiSkill's motion planner, converted to a policy's control and observations."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dsrl_offpolicy.demos.planning_parts import PartCounts, PlanRequest, merge_parts, open_parts, parts_folder
from dsrl_offpolicy.demos.trajectory import check_new_file
from dsrl_offpolicy.errors import InputError, did_you_mean

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

CHILD = ("-m", "dsrl_offpolicy.demos.planner_process")


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


def record_motion_plans(request: PlanRequest, path: Path, report: Callable[[PartCounts], None]) -> PartCounts:
    """Plan, convert and write ``request.episodes`` demonstrations to ``path`` and its JSON.

    An interrupted run leaves whole parts in ``<path>.parts``; called again with the same request it goes on there.

    Args:
        request: what to record.
        path: the HDF5 file, which must not exist.
        report: hears the counts at the start and after every part.

    Raises:
        InputError: see :func:`check_planner`; parts begun with other settings; or a planner that fails or crashes.
    """
    check_new_file(path)
    check_planner(request)
    folder = parts_folder(path)
    total = open_parts(folder, request)
    report(total)
    if total.kept < request.episodes:
        total = _run_planner(folder, request.episodes, total, report)
    merge_parts(folder, path)
    return total


def _run_planner(
    folder: Path, episodes: int, total: PartCounts, report: Callable[[PartCounts], None]
) -> PartCounts:
    """Let a process of its own add parts to ``folder``. Returns the counts when it is done."""
    log = folder / "planner.log"
    with log.open("wb") as stderr:
        child = subprocess.Popen(
            [sys.executable, *CHILD, str(folder)],
            env={"OMP_NUM_THREADS": "1", **os.environ},  # small tensors: more threads only cost time
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
        try:
            assert child.stdout is not None
            for line in child.stdout:
                event = json.loads(line)
                if "error" in event:
                    raise InputError(event["error"])
                total = PartCounts(**event)
                report(total)
            status = child.wait()
        finally:
            if child.poll() is None:
                child.terminate()
            child.wait()
    if total.kept < episodes:
        said = log.read_text(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(said) if line.strip()), "nothing")
        how = f"a crash ({signal.Signals(-status).name})" if status < 0 else last
        raise InputError(
            f"env_id: expected motion plans, got {how} after {total.kept} demonstrations; "
            f"the same command goes on from there, {log} tells more"
        )
    return total
