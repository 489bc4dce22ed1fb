"""An arm with an operator beside it, as an environment."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np

from dsrl_offpolicy.envs.robot.limits import Limits
from dsrl_offpolicy.envs.robot.operators import Label, Operator, OperatorGone
from dsrl_offpolicy.envs.robot.recording import Recording
from dsrl_offpolicy.envs.success import SUCCESS_KEYS, is_success


class RobotSetup(ABC):
    """One robot, in a file of yours; ``--env_id robot:my_arm:MyArm`` names the class.

    Attributes:
        limits: what may be sent, and where the hand may be.
        hz: actions per second; None where the environment's ``step`` itself keeps the time.
        record_to: a folder; every session is recorded to a new file in it. None records nothing.
    """

    limits: ClassVar[Limits] = Limits()
    hz: ClassVar[float | None] = None
    record_to: ClassVar[Path | None] = None

    @abstractmethod
    def make_env(self) -> gym.Env:
        """Build the arm as a Gymnasium environment of single actions, bounded, with a method ``stop()``.

        ``stop()`` makes it hold still at once; it is called from any thread, also while ``step`` runs, and more
        than once. Observations are a vector, or a mapping with ``"state"`` and ``"rgb"`` (``[H, W, 3k]`` uint8).
        ``reset`` moves to the start. Several may be built, one after another: connect in ``reset``, not before.
        """

    @abstractmethod
    def make_operator(self) -> Operator:
        """Build what stands for the person beside the robot."""

    def hold(self, width: int) -> np.ndarray:
        """Return the action ``[width]`` that holds still, in [-1, 1] as the policy's are; by default zeros."""
        return np.zeros(width, np.float32)


class OperatedEnv(gym.Wrapper):
    """Sends actions of the policy or the operator, within limits, until an episode ends or the arm is stopped.

    ``info`` has ``success``, and ``intervened``: the operator chose the action, the arm was stopped, or the
    episode is discarded. No noise of the policy explains such a step. A stop ends the episode as truncated, and
    nothing is sent until the operator is ready for a reset.

    Args:
        env: single actions in [-1, 1]; its unwrapped environment has ``stop()``.
        setup: of this robot.
        recording: of the session, or None.
    """

    def __init__(self, env: gym.Env, setup: RobotSetup, recording: Recording | None) -> None:
        super().__init__(env)
        assert env.action_space.shape is not None
        self._setup, self._recording = setup, recording
        self._hold = setup.hold(env.action_space.shape[0]).astype(np.float32)
        self._operator: Operator | None = None
        self._sending = threading.Lock()
        self._stopped = ""
        self._obs: Any = None
        self._before = self._hold
        self._due: float | None = None
        self._why = "a new session"
        self._counts = {"intervened_rows": 0, "limited_rows": 0, "late_rows": 0}

    def stop(self, reason: str) -> None:
        """Stop the arm at once, from any thread; it stays stopped until the next reset.

        An action that is being sent at this moment is followed by a second ``stop()`` of the arm.
        """
        first, self._stopped = not self._stopped, self._stopped or reason
        self._halt()
        with self._sending:
            self._halt()
        if first:
            print(f"robot: stopped: {reason}", file=sys.stderr, flush=True)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Wait until the operator is ready, then let the arm move to its start.

        Raises:
            OperatorGone: nobody stands beside it.
        """
        with self._attended():
            if self._operator is None:
                operator = self._setup.make_operator()
                operator.start(self.stop)
                self._operator = operator
            self._wait_until_ready(self._operator)
        self._due, self._before = None, self._hold
        self._counts = dict.fromkeys(self._counts, 0)
        self._obs, info = self.env.reset(seed=seed, options=options)
        if self._recording is not None:
            self._recording.begin(self._obs)
        return self._obs, info

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Send one action.

        Raises:
            OperatorGone: nobody stands beside the arm, which is stopped.
        """
        assert self._operator is not None, "step() follows reset()"
        if not self._stopped:
            self._keep_time()
        proposed = np.asarray(action, np.float32)
        with self._attended():
            taken = self._operator.takeover(self._obs, proposed)
        wanted = proposed if taken is None else np.asarray(taken, np.float32)
        if not np.isfinite(wanted).all():
            self.stop("an action that is not finite")
            wanted = self._before
        sent = self._setup.limits.clipped(wanted, self._before)
        with self._sending:
            if self._stopped:
                return self._held()
            self._obs, reward, terminated, truncated, info = self.env.step(sent)
        self._before = sent
        self._counts["intervened_rows"] += taken is not None
        self._counts["limited_rows"] += not np.array_equal(sent, wanted)
        if problem := self._setup.limits.outside(info.get("ee_pos")):
            self.stop(problem)
        return self._judged(float(reward), terminated, truncated, info, proposed, sent, taken is not None)

    def close(self) -> None:
        """Stop the arm, write the episode that is not over, and leave."""
        if self._operator is not None:
            self._halt()
            self._operator.close()
            if self._recording is not None:
                self._recording.end(self._counts)
        super().close()

    def _judged(
        self, reward: float, terminated: bool, truncated: bool, info: Mapping[str, Any],
        proposed: np.ndarray, sent: np.ndarray, intervened: bool,
    ) -> tuple[Any, float, bool, bool, dict[str, Any]]:  # fmt: skip
        """What the operator and the environment say of the step that was sent."""
        assert self._operator is not None
        with self._attended():
            label: Label | None = self._operator.label()
        success = label == "success" or any(is_success(info[key]) for key in SUCCESS_KEYS if key in info)
        terminated = terminated or label in ("success", "failure")
        truncated = truncated or bool(self._stopped) or label == "discard"
        if self._recording is not None:
            step = (sent, proposed, intervened, success, terminated, truncated, reward)
            self._recording.see(self._obs, *step)
            if (terminated or truncated) and label != "discard":
                self._recording.end(self._counts)
        if terminated or truncated:
            why = label or self._stopped or ("success" if success else "its own end")
            self._why = f"the episode ended: {why}"
        unexplained = intervened or bool(self._stopped) or label == "discard"
        told = {**info, "success": success, "intervened": unexplained}
        return self._obs, reward, terminated, truncated, told

    @contextlib.contextmanager
    def _attended(self) -> Iterator[None]:
        """Inside, the arm is stopped once nobody stands beside it."""
        try:
            yield
        except OperatorGone as gone:
            self.stop(str(gone))
            raise

    def _wait_until_ready(self, operator: Operator) -> None:
        """Forget the last stop, but none that comes while the operator is asked: it asks again."""
        while True:
            self._stopped = ""
            operator.ready(self._why)
            if not self._stopped:
                return
            self._why = f"the arm was stopped: {self._stopped}"

    def _held(self) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """The result of a step of which nothing was sent."""
        self._why = f"the arm was stopped: {self._stopped}"
        if self._recording is not None:
            self._recording.end(self._counts)
        return self._obs, 0.0, False, True, {"success": False, "intervened": True}

    def _halt(self) -> None:
        self.env.unwrapped.stop()

    def _keep_time(self) -> None:
        """Wait for the tick of this action. One that comes more than a tick late is counted, and the clock goes on
        from there: late actions are not hurried."""
        if self._setup.hz is None:
            return
        tick, now = 1.0 / self._setup.hz, time.monotonic()
        if self._due is None:
            self._due = now
        elif now < self._due:
            time.sleep(self._due - now)
        elif now - self._due > tick:
            self._counts["late_rows"] += 1
            self._due = now
        self._due += tick
