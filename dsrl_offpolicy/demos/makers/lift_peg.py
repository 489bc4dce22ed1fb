"""A scripted expert for ManiSkill's LiftPegUpright-v1, imperfect on purpose: about 40 env steps where a motion
plan takes 170, and failures among its demonstrations."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from dsrl_offpolicy.configs.jobs import DemosConfig
from dsrl_offpolicy.demos.formats.maniskill_hdf5 import check_new_file
from dsrl_offpolicy.demos.maker import Maker
from dsrl_offpolicy.demos.makers import imperfection
from dsrl_offpolicy.demos.makers.imperfection import CorrelatedNoise, Imperfection
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.seeding import FIRST_EVALUATION_SEED, numpy_generator
from dsrl_offpolicy.tracking.progress import ProgressReport

TASK = "LiftPegUpright-v1"
CONTROL_MODE = "pd_ee_delta_pose"

GRASP_FROM_CENTRE = 0.10
"""Metres from the peg's centre, towards its end, at which it is held."""
HOVER_HEIGHT = 0.05
"""Metres above the grasp from which the hand descends."""
LIFT = 0.26
"""Metres by which the end is lifted, so that the peg hangs free (it is 0.24 long)."""
HALF_LENGTH = 0.12
GRIP = -0.6
"""Gripper command that holds the peg loosely enough for it to swing down under its weight."""
FULL_ACTION = 0.1
"""Metres, and radians of opposite sign, that an action of 1 stands for in pd_ee_delta_pose."""
PATIENCE = 30
"""Env steps after which a phase is left although its goal was not met."""

HOVER, DESCEND, CLOSE, RAISE, TURN, LOWER, RELEASE = range(7)


class LiftPegExpert:
    """Grasps the peg near its end, lifts it until it hangs, turns it upright, lowers and releases it.

    Closed-loop on the simulator's poses; errs as ``imperfection`` says: noise on the six arm actions, and in some
    episodes a wrong grasp, ``wrong_goal_offset`` away from the right one.
    """

    def __init__(self, imperfection: Imperfection, rng: np.random.Generator) -> None:
        self._noise = CorrelatedNoise(imperfection, 6, rng)
        self._offset = imperfection.draw_offset(rng)
        self._phase = HOVER
        self._steps = 0
        self._grasp: np.ndarray | None = None
        self._hold = np.zeros(3)

    def act(self, tcp_pose: np.ndarray, peg_pose: np.ndarray) -> np.ndarray:
        """Return the action ``[7]`` in [-1, 1] for two poses ``[7]`` (position, quaternion w x y z)."""
        tcp, peg = tcp_pose[:3].astype(float), peg_pose[:3].astype(float)
        if self._grasp is None:
            self._grasp = peg + np.array([GRASP_FROM_CENTRE, 0, 0]) + self._offset
        upright = _rotation_to_vertical(_rotation(peg_pose).apply([1.0, 0.0, 0.0]))
        move, turn, reached = self._goal(tcp, peg, _rotation(tcp_pose), upright)
        self._steps += 1
        if (reached or self._steps > PATIENCE) and self._phase != RELEASE:
            self._phase, self._steps, self._hold = self._phase + 1, 0, tcp.copy()
        arm = np.concatenate((1.5 * move, -0.7 * turn)) / FULL_ACTION
        arm = np.clip(arm, -1, 1) + self._noise.draw()
        return np.clip(np.append(arm, self._gripper), -1, 1).astype(np.float32)

    def _goal(
        self, tcp: np.ndarray, peg: np.ndarray, hand: Rotation, upright: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, bool]:
        """Displacement, rotation vector, and whether the phase's goal is met; sets the gripper."""
        assert self._grasp is not None
        phase = self._phase
        self._gripper = 1.0 if phase in (HOVER, DESCEND, RELEASE) else GRIP
        pointing_down = (Rotation.from_euler("x", np.pi) * hand.inv()).as_rotvec()
        if phase == HOVER:
            move = self._grasp + np.array([0, 0, HOVER_HEIGHT]) - tcp
            level = np.linalg.norm(pointing_down) < 0.2  # a wrist camera's robot starts a quarter turn away
            return move, pointing_down, bool(np.linalg.norm(move) < 0.02 and level)
        if phase in (DESCEND, CLOSE):
            move = self._grasp - tcp
            met = np.linalg.norm(move) < 0.01 if phase == DESCEND else self._steps >= 3
            return move, pointing_down, bool(met)
        if phase == RAISE:
            move = self._grasp + np.array([0, 0, LIFT]) - tcp
            return move, pointing_down, bool(np.linalg.norm(move) < 0.04)
        if phase == TURN:
            return self._hold - tcp, upright, bool(np.linalg.norm(upright) < 0.06)
        if phase == LOWER:
            return np.array([0, 0, HALF_LENGTH - 0.001 - peg[2]]), upright, bool(peg[2] < HALF_LENGTH + 0.003)
        return np.zeros(3), np.zeros(3), False


def _rotation(pose: np.ndarray) -> Rotation:
    return Rotation.from_quat(pose[[4, 5, 6, 3]].astype(float))


def _rotation_to_vertical(axis: np.ndarray) -> np.ndarray:
    """The rotation vector that turns a unit vector to +z."""
    normal = np.cross(axis, [0.0, 0.0, 1.0])
    length = float(np.linalg.norm(normal))
    return normal / max(length, 1e-9) * np.arctan2(length, axis[2])


class LiftPegScript(Maker):
    """The scripted expert of LiftPegUpright-v1, recorded by ManiSkill's own recorder."""

    name = f"{TASK}'s scripted expert"
    demonstrator = "scripted"
    control_mode = CONTROL_MODE
    settings = (*imperfection.SETTINGS, "obs_mode", "reward_mode", "robot_uids")

    def tasks(self) -> Sequence[str]:
        """Return its only task."""
        return (TASK,)

    def record(self, config: DemosConfig, path: Path) -> None:
        """Record one demonstration per start, failures included."""
        check_new_file(path)
        rng = numpy_generator(config.seed, "demonstrations")
        seeds = [int(s) for s in rng.integers(FIRST_EVALUATION_SEED, size=config.episodes)]
        errors = Imperfection.of(config)
        path = path.absolute()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            folder = tempfile.TemporaryDirectory(prefix=".demos-", dir=path.parent)
        except OSError as error:
            raise InputError(f"out: cannot make the file {path}: {error.strerror}") from error
        # The recorder replaces ".h5" anywhere in a path, also in the names of folders: it gets a relative one.
        with (
            folder,
            contextlib.chdir(folder.name),
            ProgressReport("demos", config.episodes, "episodes") as progress,
        ):
            env = _make_recorder(config)
            successes = 0
            for i, seed in enumerate(seeds, start=1):
                successes += _record_episode(env, seed, LiftPegExpert(errors, rng))
                env.flush_trajectory()
                if i % 20 == 0 or i == config.episodes:
                    progress.report(i, {"success": successes / i})
            env.close()
            Path("demos.json").rename(path.with_suffix(".json"))
            Path("demos.h5").rename(path)


def _make_recorder(config: DemosConfig) -> Any:
    try:
        import gymnasium as gym
        import mani_skill.envs  # registers the tasks
        from mani_skill.utils.wrappers.record import RecordEpisode
    except ImportError as error:
        raise InputError(
            f"env_id: expected the extra maniskill (pip install 'dsrl_offpolicy[maniskill]') for {TASK}, {error}"
        ) from error
    mani_skill.logger.setLevel(logging.ERROR)
    robot = {} if config.robot_uids is None else {"robot_uids": config.robot_uids}
    env = gym.make(
        TASK,
        obs_mode=config.obs_mode,
        control_mode=CONTROL_MODE,
        reward_mode=config.reward_mode,
        sim_backend="physx_cpu",
        render_backend="none" if config.obs_mode == "state" else "gpu",
        max_episode_steps=config.demo_steps,
        **robot,
    )
    return RecordEpisode(
        env, ".", trajectory_name="demos", save_video=False, save_on_reset=False, record_reward=True
    )


def _record_episode(env: Any, seed: int, expert: LiftPegExpert) -> bool:
    env.reset(seed=seed)
    simulator = env.unwrapped
    while True:
        poses = (simulator.agent.tcp.pose, simulator.peg.pose)
        action = expert.act(*(pose.raw_pose[0].numpy() for pose in poses))
        _, _, terminated, truncated, info = env.step(action)
        if bool(terminated) or bool(truncated):
            return bool(info["success"])
