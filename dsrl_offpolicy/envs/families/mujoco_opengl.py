"""Find what draws MuJoCo's scenes on this machine, with or without a screen."""

from __future__ import annotations

import os
import subprocess
import sys

TO_DRAW = (
    "MuJoCo draws through EGL or OSMesa: on Debian and Ubuntu `apt-get install libegl1 libegl-mesa0` "
    "(scripts/setup_software_rendering.sh does) or `apt-get install libosmesa6`; MUJOCO_GL=egl or osmesa chooses"
)
BACKENDS = ("egl", "osmesa", "glfw")
"""In the order in which they are tried; glfw needs a screen."""

_TRY = """
import os, mujoco
context = mujoco.GLContext(8, 8)
context.make_current()
mujoco.MjrContext(mujoco.MjModel.from_xml_string("<mujoco/>"), mujoco.mjtFontScale.mjFONTSCALE_50)
os._exit(0)
"""


def find_opengl() -> str | None:
    """Set ``MUJOCO_GL`` of this process to the first backend that works, unless it is set; return it, or None.

    Each is tried in a process of its own (about a second): a driver may crash, and only one can be loaded.
    """
    chosen = os.environ.get("MUJOCO_GL")
    if chosen:
        return chosen
    for backend in BACKENDS:
        if _works(backend):
            os.environ["MUJOCO_GL"] = backend
            return backend
    return None


def _works(backend: str) -> bool:
    environ = {**os.environ, "MUJOCO_GL": backend}
    environ.pop("PYOPENGL_PLATFORM", None)
    try:
        done = subprocess.run(
            [sys.executable, "-c", _TRY], env=environ, capture_output=True, timeout=120, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0
