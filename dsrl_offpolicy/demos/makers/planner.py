"""ManiSkill's motion planner and its replay, in a process of their own: they are native code that can crash."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from dsrl_offpolicy.demos.makers.parts import PART_EPISODES, PartCounts, PlanRequest
from dsrl_offpolicy.errors import InputError

MAX_FAILURES = 50
"""Plans that may fail in a row before the task is given up."""


MakePart = Callable[[PlanRequest, Path, int, int], PartCounts]
"""Plans from a first seed until there are so many successes, and writes what it keeps into a folder."""


class PlannerProcess:
    """The process that makes parts.

    Args:
        make: makes one part there.
        log: file for all that the libraries print.
    """

    def __init__(self, make: MakePart, log: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._log = log
        self._connection, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there, make, log), daemon=True)
        self._process.start()
        there.close()

    def make(self, request: PlanRequest, so_far: PartCounts, folder: Path) -> PartCounts:
        """Make the part that follows ``so_far`` in ``folder``.

        Raises:
            InputError: the request cannot be met, or the planner crashed.
        """
        count = min(PART_EPISODES, request.episodes - so_far.kept)
        try:
            self._connection.send((request, folder.absolute(), request.first_seed + so_far.tried, count))
            while not self._connection.poll(0.5):  # a signal that another thread was handed wakes no read
                pass
            answer = self._connection.recv()
        except (EOFError, OSError):
            raise InputError(
                f"env_id: expected motion plans, got {self._last_words()} after {so_far.kept} demonstrations; "
                f"run the same command to continue from there; {self._log} says more"
            ) from None
        if isinstance(answer, InputError):
            raise answer
        return answer

    def kill(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        self._process.join()

    def _last_words(self) -> str:
        self._process.join()
        status = self._process.exitcode or 0
        if status < 0:
            return f"a crash ({signal.Signals(-status).name})"
        said = self._log.read_text(errors="replace").split("\n") if self._log.exists() else []
        return next((line.strip() for line in reversed(said) if line.strip()), "nothing")


def _serve(connection: Connection, make: MakePart, log: Path) -> None:
    """Make parts until nobody asks for more. Ctrl-C is the job's to hear, which then ends this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # small tensors: more threads only cost time
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    while True:
        try:
            asked = connection.recv()
        except EOFError:
            return
        try:
            connection.send(make(*asked))
        except InputError as error:
            connection.send(error)


def make_part(request: PlanRequest, folder: Path, first_seed: int, count: int) -> PartCounts:
    """Plan ``count`` successes and convert them; leaves ``trajectory.h5`` and ``.json`` in ``folder``.

    Raises:
        InputError: the environment cannot be made as asked, or the planner never succeeds.
    """
    # ManiSkill's tools replace ".h5" anywhere in a path, also in the names of folders: they get relative paths.
    with contextlib.chdir(folder):
        tried = _plan(request, first_seed, count)
        _convert(request)
        kept = len(json.loads(Path("trajectory.json").read_text())["episodes"])
    return PartCounts(tried, count, kept)


def _plan(request: PlanRequest, first_seed: int, count: int) -> int:
    """Write ``plans.h5`` and ``.json``: joint positions, no observations. Returns the number of starts tried."""
    from mani_skill.examples.motionplanning.panda.run import MP_SOLUTIONS
    from mani_skill.utils.wrappers.record import RecordEpisode

    env = RecordEpisode(
        _make_planning_env(request), ".", trajectory_name="plans", save_video=False, save_on_reset=False
    )
    solve, seed, successes, failures = MP_SOLUTIONS[request.env_id], first_seed, 0, 0
    while successes < count:
        try:
            result = solve(env, seed=seed, debug=False, vis=False)
        except Exception as error:  # what a planner raises where it finds no way is not specified
            print(f"seed {seed}: {error}", file=sys.stderr)
            result = -1
        info = None if isinstance(result, int) else result[-1]
        success = (
            info is not None
            and bool(info["success"].item())
            and int(info["elapsed_steps"].item()) <= request.max_episode_steps
        )
        env.flush_trajectory(save=success)
        seed += 1
        successes, failures = (successes + 1, 0) if success else (successes, failures + 1)
        if failures == MAX_FAILURES:
            raise InputError(
                f"env_id: expected motion plans that succeed within {request.max_episode_steps} env steps for "
                f"{request.env_id}, got {failures} failures in a row"
            )
    env.close()
    return seed - first_seed


def _make_planning_env(request: PlanRequest) -> Any:
    import gymnasium as gym
    import mani_skill.envs  # noqa: F401  registers the tasks

    try:
        env = gym.make(
            request.env_id,
            obs_mode="none",
            control_mode="pd_joint_pos",
            reward_mode="sparse",
            sim_backend="physx_cpu",
            render_backend="none",
            max_episode_steps=request.max_episode_steps,
        )
    except Exception as error:  # ManiSkill and SAPIEN raise what they like
        problem = " ".join(str(error).split())
        raise InputError(f"env_id: {request.env_id} cannot be made: {problem}") from error
    for name, value, known in (
        ("control_mode", request.control_mode, env.unwrapped.agent.supported_control_modes),
        ("reward_mode", request.reward_mode, env.unwrapped.SUPPORTED_REWARD_MODES),
    ):
        if value not in known:
            raise InputError(f"{name}: expected one of {', '.join(known)} for {request.env_id}, got {value}")
    return env


def _convert(request: PlanRequest) -> None:
    """``plans`` to ``trajectory``, by ManiSkill's replay: it drops what does not succeed again."""
    from mani_skill.trajectory import replay_trajectory

    meta_file = Path("plans.json")
    meta = json.loads(meta_file.read_text())
    # The replay makes its environments from these and would keep the registered time limit.
    kwargs = meta["env_info"]["env_kwargs"]
    kwargs["max_episode_steps"] = request.max_episode_steps
    if request.obs_mode != "state":
        del kwargs["render_backend"]
    meta_file.write_text(json.dumps(meta))
    replay_trajectory.main(
        replay_trajectory.Args(
            traj_path="plans.h5",
            obs_mode=request.obs_mode,
            target_control_mode=request.control_mode,
            save_traj=True,
            record_rewards=True,
            reward_mode=request.reward_mode,
        )
    )
    for suffix in (".h5", ".json"):
        (converted,) = Path().glob(f"plans.*{suffix}")  # under the name that the tool chose
        converted.rename(f"trajectory{suffix}")
        Path(f"plans{suffix}").unlink()
