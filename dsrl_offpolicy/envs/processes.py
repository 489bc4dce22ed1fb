"""Environments in processes of their own, of which one may die or hang without ending the run."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from gymnasium.vector.async_vector_env import AsyncState
from gymnasium.vector.utils import batch_space

from dsrl_offpolicy.envs.family import Capabilities, MacroVectorEnv
from dsrl_offpolicy.errors import InputError

BUILDING = 300.0
"""Seconds that a process may take to build its environment, or ``timeout`` where that is more."""
CLOSING = 10.0
DIED, SLOW = "died", "took more than"
MOST_LOSSES = 3
"""Losses of one slot in a row that end the run: a process that always fails is not an accident."""


class ProcessVectorEnv(MacroVectorEnv):
    """``num_envs`` environments that never reset by themselves, a process each, started by ``forkserver``.

    A process that dies, raises, or takes longer than ``timeout`` is ended and replaced. What it was doing is lost:
    ``step`` then tells ``info["lost"]`` for its slot, with zeros in every other entry, and the observation is the
    start of an episode of the new process. The caller drops that step and resets the slot.

    Args:
        make: builds one environment; picklable.
        num_envs: processes.
        timeout: seconds that one step or reset may take; a ``supervised_reset`` may take any.
        capabilities: those of the family. Where processes may not be killed, one that hangs ends the run and is
            left alone.
        probe: builds one in this process, for its spaces; by default ``make``.
    """

    def __init__(
        self,
        make: Callable[[], gym.Env],
        num_envs: int,
        timeout: float,
        capabilities: Capabilities = Capabilities(),  # noqa: B008  (frozen)
        probe: Callable[[], gym.Env] | None = None,
    ) -> None:
        one = (probe or make)()
        self.single_observation_space, self.single_action_space = one.observation_space, one.action_space
        one.close()
        self.num_envs = num_envs
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.metadata = {"autoreset_mode": AutoresetMode.DISABLED}
        self.timeout = timeout
        self._build_timeout = max(timeout, BUILDING)
        self.capabilities = capabilities
        self._make = _Worker(make, self.single_observation_space, self.single_action_space)
        self._obs: list[Any] = [None] * num_envs
        self._seeds: list[int | None] = [None] * num_envs
        self._unsent: list[str | None] = [None] * num_envs
        self._losses = [0] * num_envs
        self._blank: dict[str, np.ndarray] = {}
        self._slots: list[AsyncVectorEnv] = []
        with ThreadPoolExecutor(num_envs) as pool:  # a start waits until its environment stands
            self._slots += pool.map(self._start_first, range(num_envs))

    @property
    def processes(self) -> list[Any]:
        """The process of every slot."""
        return [slot.processes[0] for slot in self._slots]

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin episodes, in the slots of ``options["reset_mask"]`` or in all; the others stay as they are.

        Raises:
            InputError: a process that is lost several times in a row.
        """
        seeds = [None] * self.num_envs if seed is None else seed
        if isinstance(seeds, int):
            seeds = [seeds + i for i in range(self.num_envs)]
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, dtype=bool))
        chosen = np.flatnonzero(mask).tolist()
        for i in chosen:
            self._seeds[i] = seeds[i]
            self._send(i, "reset_async", seed=[self._seeds[i]])
        self._receive_resets(chosen)
        return self._observations(), {}

    def step_async(self, actions: np.ndarray) -> None:
        """Set every environment going."""
        for i in range(self.num_envs):
            self._send(i, "step_async", actions[i : i + 1])

    def step_wait(self) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Return what the environments came to; ``info["lost"]`` marks slots whose process was replaced.

        Raises:
            InputError: a process that is lost several times in a row.
        """
        reward = np.zeros(self.num_envs)
        terminated, truncated, lost = np.zeros((3, self.num_envs), dtype=bool)
        infos = [self._blank] * self.num_envs
        deadline = time.monotonic() + self.timeout
        for i in range(self.num_envs):
            result = self._wait(i, "step_wait", deadline)
            if isinstance(result, str):
                lost[i] = True
                self._replace(i, result, "its step is lost")
                self._receive_resets([i])
                continue
            self._losses[i] = 0
            obs, (reward[i],), (terminated[i],), (truncated[i],), infos[i] = result
            self._keep(i, obs, infos[i])
        info = {name: np.concatenate([found[name] for found in infos]) for name in self._blank}
        return self._observations(), reward, terminated, truncated, {**info, "lost": lost}

    def close_extras(self, **kwargs: Any) -> None:
        """Let every process close its environment; one that does not within ``CLOSING`` seconds is killed, or
        waited for where it may not be."""
        goodbyes = [threading.Thread(target=self._close, args=(slot,), daemon=True) for slot in self._slots]
        for goodbye in goodbyes:
            goodbye.start()
        deadline = time.monotonic() + min(CLOSING, self.timeout)
        for slot, goodbye in zip(self._slots, goodbyes, strict=True):
            goodbye.join(max(deadline - time.monotonic(), 0.0))
            if goodbye.is_alive() and not self.capabilities.killable:
                pid = slot.processes[0].pid
                print(f"note: waiting for environment process {pid}, which may not be killed", file=sys.stderr)
                goodbye.join()
            _kill(slot)

    def _close(self, slot: AsyncVectorEnv) -> None:
        with contextlib.suppress(Exception):  # a process that is not well cannot say goodbye
            if slot._state is not AsyncState.DEFAULT:
                getattr(slot, f"{slot._state.value}_wait")()
            slot.close()

    def _start_first(self, i: int) -> AsyncVectorEnv:
        for _ in range(MOST_LOSSES + 1):
            try:
                return self._start()
            except multiprocessing.TimeoutError as error:
                raise InputError(
                    f"environment: process {i} could not build its environment, it {error}"
                ) from error
            except (OSError, EOFError):  # it died while it built its environment
                continue
        raise InputError(
            f"environment: process {i} could not build its environment, it died {MOST_LOSSES + 1} times"
        )

    def _start(self) -> AsyncVectorEnv:
        return _Slot(self._make, self._build_timeout, self.capabilities.killable)

    def _send(self, i: int, call: str, *args: Any, **kwargs: Any) -> None:
        self._unsent[i] = None
        try:
            getattr(self._slots[i], call)(*args, **kwargs)
        except (OSError, EOFError):
            self._unsent[i] = DIED

    def _wait(self, i: int, call: str, deadline: float) -> Any:
        """The result of a call that was sent, or why there is none."""
        if self._unsent[i] is not None:
            return self._unsent[i]
        left = max(deadline - time.monotonic(), 0.0)
        slot = self._slots[i]
        state = slot._state
        try:
            return getattr(slot, call)(timeout=left if math.isfinite(left) else None)
        except multiprocessing.TimeoutError:
            slot._state = state  # the answer is still on its way, and would be taken for the next call's
            return f"{SLOW} {self.timeout:g} s"
        except (EOFError, OSError):
            return DIED
        except Exception as error:  # whatever the simulator raised
            return f"raised {type(error).__name__}: {' '.join(str(error).split())}"

    def _receive_resets(self, chosen: Iterable[int]) -> None:
        """Wait for resets; a process that is lost meanwhile is replaced and reset again with the same seed."""
        allowed = math.inf if self.capabilities.supervised_reset else self.timeout
        deadline = time.monotonic() + allowed
        for i in chosen:
            while isinstance(result := self._wait(i, "reset_wait", deadline), str):
                self._replace(i, result, "its episode starts over")
                deadline = time.monotonic() + allowed
            self._keep(i, *result)

    def _replace(self, i: int, reason: str, consequence: str) -> None:
        """A new process for slot ``i``, with a reset on its way."""
        process = self.processes[i]
        if not self.capabilities.killable:
            process.join(0.0 if reason.startswith(SLOW) else CLOSING)  # one that raised is closing its environment
            if process.is_alive():
                raise _not_killed(process, reason)
        _kill(self._slots[i])
        if reason == DIED:
            reason += f" (exit code {process.exitcode})"
        self._losses[i] += 1
        if self._losses[i] > MOST_LOSSES:
            raise InputError(f"environment: process {i} was lost {self._losses[i]} times in a row: {reason}")
        print(f"note: environment process {i} {reason}; it is replaced, {consequence}", file=sys.stderr)
        try:
            self._slots[i] = self._start()
        except multiprocessing.TimeoutError as error:
            self._unsent[i] = str(error)
        except (OSError, EOFError):  # it died while it built its environment
            self._unsent[i] = DIED
        else:
            self._send(i, "reset_async", seed=[self._seeds[i]])

    def _keep(self, i: int, obs: Any, info: dict[str, np.ndarray]) -> None:
        """Note an observation, and which entries an info has."""
        self._obs[i] = _only(obs)
        self._blank = {name: np.zeros_like(value) for name, value in info.items() if not name.startswith("_")}

    def _observations(self) -> Any:
        return _batch(self._obs)


def _only(obs: Any) -> Any:
    """The observation in a batch of one."""
    return {name: _only(part) for name, part in obs.items()} if isinstance(obs, Mapping) else obs[0]


def _batch(observations: Sequence[Any]) -> Any:
    """Arrays stacked, mappings key by key, strings as a tuple."""
    first = observations[0]
    if isinstance(first, Mapping):
        return {name: _batch([obs[name] for obs in observations]) for name in first}
    return tuple(observations) if isinstance(first, str) else np.stack(observations)


class _Worker:
    """Builds the environment in the process that it is sent to; in this one it only tells the spaces, which is all
    that Gymnasium asks of it here."""

    def __init__(self, make: Callable[[], gym.Env], observation_space: gym.Space, action_space: gym.Space) -> None:
        self._make = make
        self._spaces: tuple[gym.Space, gym.Space] | None = (observation_space, action_space)

    def __getstate__(self) -> dict[str, Any]:
        return {"_make": self._make, "_spaces": None}

    def __call__(self) -> gym.Env:
        if self._spaces is None:
            return self._make()
        stand_in: gym.Env = gym.Env()
        stand_in.observation_space, stand_in.action_space = self._spaces
        return stand_in


def _has_text(space: gym.Space) -> bool:
    parts = space.values() if isinstance(space, gym.spaces.Dict) else [space]
    return any(isinstance(part, gym.spaces.Text) for part in parts)


class _Slot(AsyncVectorEnv):
    """One environment in a process, which may take only so long to build it.

    Raises:
        multiprocessing.TimeoutError: it took longer; the process is killed.
        InputError: it took longer and may not be killed.
        OSError, EOFError: it died meanwhile.
    """

    def __init__(self, make: _Worker, build_timeout: float, killable: bool) -> None:
        self._build_timeout, self._killable = build_timeout, killable
        super().__init__(
            [make],
            shared_memory=not _has_text(make().observation_space),  # Gymnasium reads no strings from it
            context="forkserver",
            autoreset_mode=AutoresetMode.DISABLED,
        )

    def _check_spaces(self) -> None:
        """Wait for the environment to stand, which Gymnasium's own check does without end."""
        [pipe] = self.parent_pipes
        spaces = (self.observation_mode, self.single_observation_space, self.single_action_space)
        pipe.send(("_check_spaces", spaces))
        if not pipe.poll(self._build_timeout):
            slow = f"{SLOW} {self._build_timeout:g} s to build its environment"
            if not self._killable:
                self.closed = True
                raise _not_killed(self.processes[0], slow)
            _kill(self)
            raise multiprocessing.TimeoutError(slow)
        same, succeeded = pipe.recv()
        self._raise_if_errors([succeeded])
        if not all(same):
            raise RuntimeError("the environment in the process has other spaces than the one built here")


def _not_killed(process: Any, reason: str) -> InputError:
    return InputError(
        f"environment: process {process.pid} {reason}; its family forbids killing it, so it is left alone"
    )


def _kill(slot: AsyncVectorEnv) -> None:
    for process in slot.processes:
        process.kill()
        process.join()
    for pipe in slot.parent_pipes:
        if pipe is not None:
            pipe.close()
    slot.closed = True
