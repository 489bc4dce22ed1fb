"""MetaWorld's env steps and resets with less Python around the physics: the same numbers, to the bit.

Of a step of pick-place-v3 in MetaWorld 3.1.1 the physics is a tenth. A quarter looks for contacts of the gripper,
in Python and twice; a quarter turns a rotation matrix into a quaternion by way of scipy's checks; a tenth splits
and joins arrays. A reset lets the arm come to rest twice and throws the first time away. These are replaced, on
the environment itself and nowhere else, by methods that compute the same.
"""

from __future__ import annotations

import math
import types
from typing import Any

import numpy as np

CLOSE = 1e-13
"""How far from orthogonal a matrix may be; scipy mends those that are further than 1e-12."""


def quicken(simulator: Any) -> None:
    """Give an unwrapped MetaWorld environment the quick methods, where it has those of 3.1.1.

    Args:
        simulator: a ``SawyerXYZEnv`` that has been reset once.
    """
    from metaworld.sawyer_xyz_env import SawyerXYZEnv

    kind = type(simulator)
    methods: dict[str, Any] = {
        "touching_object": _touching_object,
        "_get_curr_obs_combined_no_goal": _observation,
        "reset": _reset,
    }
    for name, quick in methods.items():
        if getattr(kind, name, None) is getattr(SawyerXYZEnv, name, kind):
            setattr(simulator, name, types.MethodType(quick, simulator))
    plain = kind._get_quat_objects
    if "Rotation" in plain.__code__.co_names and _as_scipy():
        names = {**plain.__globals__, "Rotation": QuickRotation}
        method = types.FunctionType(plain.__code__, names, plain.__name__, plain.__defaults__, plain.__closure__)
        simulator._get_quat_objects = types.MethodType(method, simulator)


def _reset(
    self: Any, seed: int | None = None, options: dict[str, Any] | None = None
) -> tuple[Any, dict[str, Any]]:
    """Begin an episode. MetaWorld places everything, lets the arm come to rest, throws that state away, and does
    all of it again with the next random numbers. Of the first time these alone matter: no time passes in it."""
    from metaworld.sawyer_xyz_env import SawyerXYZEnv

    self.curr_path_length = 0
    self.do_simulation = _stand_still
    try:
        self.reset_model()
    finally:
        del self.do_simulation
    obs, info = super(SawyerXYZEnv, self).reset()
    self._prev_obs = obs[:18].copy()
    obs[18:36] = self._prev_obs
    return obs.astype(np.float64), info


def _stand_still(ctrl: Any, n_frames: int) -> None:
    """In place of physics."""


def _touching_object(self: Any, object_geom_id: int) -> Any:
    """Return whether both fingers press on a geom, by one pass over the contacts' arrays."""
    data = self.data
    pairs = data.contact.geom.tolist()
    forces = []
    for name in ("leftpad_geom", "rightpad_geom"):
        pad = data.geom(name).id
        touching = [i for i, pair in enumerate(pairs) if pad in pair and object_geom_id in pair]
        addresses = data.contact.efc_address[touching] if touching else ()
        forces.append(sum(data.efc_force[address] for address in addresses))
    return forces[0] > 0 and forces[1] > 0


def _observation(self: Any) -> np.ndarray:
    """Return hand, opening, and position and quaternion of each object, ``[18]``."""
    data = self.data
    obs = np.zeros(4 + self._obs_obj_max_len)
    obs[:3] = self.get_endeff_pos()
    apart = data.body("rightclaw").xpos - data.body("leftclaw").xpos
    obs[3] = min(max(math.sqrt(apart.dot(apart)) / 0.1, 0.0), 1.0)
    positions, quaternions = self._get_pos_objects(), self._get_quat_objects()
    for i in range(len(positions) // 3):
        at = 4 + 7 * i
        obs[at : at + 3] = positions[3 * i : 3 * i + 3]
        obs[at + 3 : at + 7] = quaternions[4 * i : 4 * i + 4]
    return obs


class QuickRotation:
    """What MetaWorld's tasks use of scipy's ``Rotation``, for one matrix ``[3, 3]``."""

    def __init__(self, matrix: np.ndarray) -> None:
        self._matrix = matrix

    @classmethod
    def from_matrix(cls, matrix: np.ndarray) -> QuickRotation:
        """Keep the matrix."""
        return cls(matrix)

    def as_quat(self) -> np.ndarray:
        """Return the quaternion ``[4]``, scalar last (Markley, 2008, in scipy's order of operations); by scipy
        where the matrix is not a rotation to within :data:`CLOSE`."""
        m = self._matrix.tolist()
        if not _is_rotation(m):
            from scipy.spatial.transform import Rotation

            found: np.ndarray = Rotation.from_matrix(self._matrix).as_quat()
            return found
        trace = m[0][0] + m[1][1] + m[2][2]
        diagonal = [m[0][0], m[1][1], m[2][2], trace]
        i = diagonal.index(max(diagonal))
        q = [0.0] * 4
        if i == 3:
            q = [m[2][1] - m[1][2], m[0][2] - m[2][0], m[1][0] - m[0][1], 1 + trace]
        else:
            j, k = (i + 1) % 3, (i + 2) % 3
            q[i] = 1 - trace + 2 * m[i][i]
            q[j] = m[j][i] + m[i][j]
            q[k] = m[k][i] + m[i][k]
            q[3] = m[k][j] - m[j][k]
        norm = math.sqrt(q[0] * q[0] + q[1] * q[1] + q[2] * q[2] + q[3] * q[3])
        return np.array([part / norm for part in q])


def _is_rotation(m: list[list[float]]) -> bool:
    (a, b, c), (d, e, f), (g, h, i) = m
    off = (
        a * a + b * b + c * c - 1, d * d + e * e + f * f - 1, g * g + h * h + i * i - 1,
        a * d + b * e + c * f, a * g + b * h + c * i, d * g + e * h + f * i,
    )  # fmt: skip
    right_handed = g * (b * f - c * e) + h * (c * d - a * f) + i * (a * e - b * d) > 0
    return right_handed and max(map(abs, off)) < CLOSE  # NaN is not


def _as_scipy() -> bool:
    """Whether this machine's scipy computes a few quaternions to the same bits: compilers may fuse products."""
    from scipy.spatial.transform import Rotation

    rng = np.random.default_rng(0)
    for quaternion in rng.standard_normal((8, 4)):
        matrix = Rotation.from_quat(quaternion).as_matrix()
        if not np.array_equal(QuickRotation(matrix).as_quat(), Rotation.from_matrix(matrix).as_quat()):
            return False
    return True
