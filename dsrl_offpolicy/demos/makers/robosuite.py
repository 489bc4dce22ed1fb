"""Scripted experts for robosuite's Lift and Can, imperfect on purpose: they take the object by waypoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation

from dsrl_offpolicy.demos.makers.imperfection import CorrelatedNoise, Imperfection
from dsrl_offpolicy.demos.makers.scripted import ScriptedExperts

LIFT, CAN = "robosuite:Lift", "robosuite:Can"
HAND, HAND_ROTATION, OBJECT = slice(0, 3), slice(3, 7), slice(9, 12)
"""Where states hold the hand's position, its quaternion (x y z w) and the object's position."""

FULL_MOVE, FULL_TURN = 0.05, 0.5
"""Metres and radians that an action of 1 asks for."""
GAIN = 1.5
"""Of the way to a waypoint that an action asks for: the controller goes less far."""
HOVER = 0.1
"""Metres above the object from which the hand descends."""
BIN = np.array([0.1975, 0.4025])
"""x and y of the middle of the can's bin."""
CARRY_HEIGHT, RELEASE_HEIGHT = 1.1, 0.95
"""Metres: above the bins' walls, and where the can is let go."""
OPEN, CLOSED = -1.0, 1.0
LOST = 0.06
"""Metres between hand and object at which it is no longer held."""
PATIENCE = 40
"""Env steps after which a waypoint is left although it was not reached."""


class Waypoint(NamedTuple):
    """Where the hand goes and with which gripper; it is left ``wait`` steps on, within ``near`` metres of it."""

    place: np.ndarray
    gripper: float
    near: float
    wait: int = 0


def lift_waypoints(cube: np.ndarray) -> list[Waypoint]:
    """Return the way of the hand ``[3]`` from above the cube until it is lifted."""
    above = cube + np.array([0, 0, HOVER])
    return [Waypoint(above, OPEN, 0.02), Waypoint(cube, OPEN, 0.01), Waypoint(cube, CLOSED, 0.05, 6),
            Waypoint(above, CLOSED, 0.0)]  # fmt: skip


def can_waypoints(can: np.ndarray) -> list[Waypoint]:
    """Return the way of the hand ``[3]`` from above the can until it has let it go over its bin and moved away."""
    carried, over = (np.append(xy, CARRY_HEIGHT) for xy in (can[:2], BIN))
    into = np.append(BIN, RELEASE_HEIGHT)
    return [*lift_waypoints(can)[:3], Waypoint(carried, CLOSED, 0.04), Waypoint(over, CLOSED, 0.03),
            Waypoint(into, CLOSED, 0.03), Waypoint(into, OPEN, 0.05, 4), Waypoint(over, OPEN, 0.0)]  # fmt: skip


WAYS = {LIFT: lift_waypoints, CAN: can_waypoints}


class WaypointExpert:
    """Moves the hand along the waypoints of a task, pointing as at the start, for one episode. Where it has lost
    the object on the way, it begins again.

    Errs as ``imperfection`` says: noise on the six arm actions, and in some episodes a wrong grasp,
    ``wrong_goal_offset`` away from the right one.
    """

    def __init__(self, task: str, imperfection: Imperfection, rng: np.random.Generator) -> None:
        self._way = WAYS[task]
        self._offset = imperfection.draw_offset(rng)
        self._noise = CorrelatedNoise(imperfection, 6, rng)
        self._left: list[Waypoint] = []
        self._pointing: Rotation | None = None
        self._steps = 0

    def act(self, obs: np.ndarray) -> np.ndarray:
        """Return the action ``[7]`` in [-1, 1] for a state that begins with hand and object."""
        state = obs.astype(np.float64)
        rotation = Rotation.from_quat(state[HAND_ROTATION])
        self._pointing = self._pointing or rotation
        if not self._left or self._lost(state):
            self._left, self._steps = self._way(state[OBJECT] + self._offset), 0
        goal = self._left[0]
        move, turn = goal.place - state[HAND], (self._pointing * rotation.inv()).as_rotvec()
        self._steps += 1
        reached = np.linalg.norm(move) < goal.near and self._steps > goal.wait
        if (reached or self._steps > PATIENCE) and len(self._left) > 1:
            self._left, self._steps = self._left[1:], 0
        arm = np.concatenate((GAIN * move / FULL_MOVE, turn / FULL_TURN))
        arm = np.clip(arm, -1, 1) + self._noise.draw()
        return np.clip(np.append(arm, goal.gripper), -1, 1).astype(np.float32)

    def _lost(self, state: np.ndarray) -> bool:
        """Whether the hand carries an object that it does not hold."""
        carries = self._left[0].gripper == CLOSED and not self._left[0].wait
        return carries and bool(np.linalg.norm(state[HAND] - state[OBJECT]) > LOST)


class RobosuiteExperts(ScriptedExperts):
    """The experts of Lift and Can."""

    name = "robosuite's scripted experts"
    control_mode = "pd_ee_delta_pose"  # what OSC_POSE's actions are: a displacement, a rotation and the gripper

    def tasks(self) -> Sequence[str]:
        """Return the two tasks."""
        return tuple(WAYS)

    def expert(self, task: str, errors: Imperfection, rng: np.random.Generator) -> WaypointExpert:
        """Return the expert of a task."""
        return WaypointExpert(task, errors, rng)
