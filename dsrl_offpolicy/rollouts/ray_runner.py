"""A group of environments in a Ray actor, stepped when the learner permits it. Free of torch, as every process of
environments."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

import dsrl_offpolicy
from dsrl_offpolicy.envs.family import MacroVectorEnv
from dsrl_offpolicy.envs.macro_step import read_news
from dsrl_offpolicy.errors import InputError

SERVER_TIMEOUT = 600.0
"""Seconds that a runner waits for a policy server that was lost to come back."""
SERVER_RETRY = 0.2


@dataclass(frozen=True)
class Published:
    """Who chooses latents, as the learner put it into Ray's object store.

    Attributes:
        number: counts publications of a run; a higher one is newer.
        version: gradient steps that the learner had taken.
        where: ``[ObjectRef]`` of the latent source; in a list, because Ray resolves a bare one.
    """

    number: int
    version: int
    where: Sequence[Any]


@dataclass(frozen=True)
class Permit:
    """The learner's leave for one macro-step.

    Attributes:
        life: of the runner, as in :meth:`EnvRunner.begin`; one of an earlier life is refused.
        seq: counts the permits of a life, from 0.
        noise: ``[E, T, W]`` standard normal.
        policy: the newest when the permit was given.
    """

    life: int
    seq: int
    noise: np.ndarray
    policy: Published


@dataclass(frozen=True)
class Chosen:
    """A policy server's answer: what the environments execute, and the latents that decode to it.

    Attributes:
        latent: ``[E, L]``, the steered part.
        chunk: ``[E, H, A]``, executed rows.
        version: gradient steps behind the latent policy that chose.
    """

    latent: np.ndarray
    chunk: np.ndarray
    version: int


@dataclass(frozen=True)
class Happened:
    """What one permitted macro-step brought: arrays of ``rollouts.collector.Collected``, and where it belongs.

    Attributes:
        columns: the fields of ``MacroTransitions``, a row per macro-step that is kept.
        finished: of each episode that ended: (success_once, return, env steps).
        lost: macro-steps dropped because their environment process died or hung.
        intervened: macro-steps dropped because somebody else than the policy chose an action.
        life, seq: those of the permit.
        version: gradient steps behind the latent policy that acted.
        server_losses: how often the policy server had to be asked again.
        waited: seconds before this macro-step in which the runner had no permit.
        took: seconds of this macro-step.
    """

    columns: dict[str, np.ndarray]
    finished: list[tuple[bool, float, int]]
    lost: int
    intervened: int
    life: int
    seq: int
    version: int
    server_losses: int
    waited: float
    took: float


@dataclass(frozen=True)
class RunnerFacts:
    """What a runner tells when it begins: where it is, and what the learner holds against its own."""

    host: str
    pid: int
    version: str
    state_shape: tuple[int, ...]
    action_shape: tuple[int, ...]


class EnvRunner:
    """Environments that act with a policy server's chunks.

    Args:
        index: its number in the run.
        make_env: builds the environments of runner ``index``.
        seeds_below: bound of the episodes' seeds.
    """

    def __init__(self, index: int, make_env: Callable[[int], MacroVectorEnv], seeds_below: int) -> None:
        # Processes of environments would run Ray's worker script again, as they do the main file of a program.
        vars(sys.modules["__main__"]).pop("__file__", None)
        self._index, self._make_env = index, make_env
        self._seeds_below = seeds_below
        self._env: MacroVectorEnv | None = None
        self._life: int | None = None
        self._seq = 0
        self._server_losses = 0

    def begin(self, life: int, seed: int, server: Any) -> RunnerFacts:
        """Begin episodes in every environment, with starts from ``seed``.

        Args:
            life: names the time from here to the next ``begin``, in the whole run.
            seed: of the generator of the episodes' seeds.
            server: handle of the policy server.

        Raises:
            InputError: environments that cannot be built or reset.
        """
        if self._env is None:
            self._env = self._make_env(self._index)
        env = self._env
        space, actions = env.single_observation_space, env.single_action_space
        assert space is not None and actions is not None
        state: gym.Space = getattr(space, "spaces", {}).get("state", space)
        facts = RunnerFacts(
            platform.node(),
            os.getpid(),
            dsrl_offpolicy.__version__,
            tuple(state.shape or ()),
            tuple(actions.shape or ()),
        )
        self._life, self._seq, self._server = life, 0, server
        self._starts = np.random.default_rng(seed)
        self._obs, _ = env.reset(seed=self._draw_seeds())
        self._features: np.ndarray | None = None
        self._ended_at = time.monotonic()
        return facts

    def step(self, permit: Permit) -> Happened:
        """Do the macro-step of a permit.

        Raises:
            InputError: a permit of another life or out of its order, which is never acted on; observations or
                actions that are not finite; an environment process that is lost again and again.
        """
        expected = (self._life, self._seq)
        if self._env is None or (permit.life, permit.seq) != expected:
            raise InputError(f"runner {self._index}: expected permit {expected}, got {(permit.life, permit.seq)}")
        self._seq += 1
        began = time.monotonic()
        self._server_losses = 0
        env = self._env
        if self._features is None:
            self._features = self._encode(self._obs)
        features, chosen = self._features, self._act(permit)
        env.step_async(chosen.chunk)
        obs, reward, terminated, truncated, info = env.step_wait()
        ended = terminated | truncated
        news = read_news(info, ended)
        kept, over = np.flatnonzero(news.kept), ended | news.lost
        self._obs, fresh = obs, None
        if over.any():
            fresh, _ = env.reset(seed=self._draw_seeds(), options={"reset_mask": over})
            self._obs = fresh
        next_features = self._encode(obs, fresh)
        columns = {
            "obs_features": features[kept],
            "latent": chosen.latent[kept],
            "reward": np.asarray(reward)[kept].astype(np.float32),
            "next_obs_features": next_features[kept],
            "terminated": np.asarray(terminated)[kept].astype(bool),
            "truncated": np.asarray(truncated)[kept].astype(bool),
            "n_steps": np.asarray(info["n_steps"])[kept].astype(np.int32),
        }
        waited, self._ended_at = began - self._ended_at, time.monotonic()
        return Happened(
            columns,
            news.finished,
            int(news.lost.sum()),
            int(news.intervened.sum()),
            permit.life,
            permit.seq,
            chosen.version,
            self._server_losses,
            waited,
            self._ended_at - began,
        )

    def _encode(self, obs: Any, fresh: Any = None) -> np.ndarray:
        """Features of ``obs``; those of ``fresh``, where episodes began, are kept for the next macro-step. The
        server keeps the rest of the newest encoding."""
        last, now = self._ask(lambda: self._server.encode.remote(self._index, obs, fresh))
        self._features = now
        return last

    def _act(self, permit: Permit) -> Chosen:
        while True:
            chosen = self._ask(lambda: self._server.act.remote(self._index, permit.noise, permit.policy))
            if chosen is not None:
                return chosen
            self._encode(self._obs)  # a server that was replaced knows nothing of this runner

    def _ask(self, call: Callable[[], Any]) -> Any:
        """The server's answer. Its answers depend on the question alone, so one that was lost is asked again."""
        import ray

        deadline = time.monotonic() + SERVER_TIMEOUT
        while True:
            try:
                return ray.get(call())
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, InputError):
                    raise error.cause from None
                raise
            except ray.exceptions.RayError as error:
                if time.monotonic() > deadline:
                    raise InputError(
                        f"policy server: lost for {SERVER_TIMEOUT:.0f} s: {type(error).__name__}"
                    ) from None
                self._server_losses += 1
                time.sleep(SERVER_RETRY)

    def _draw_seeds(self) -> list[int]:
        assert self._env is not None
        return [int(s) for s in self._starts.integers(self._seeds_below, size=(self._env.num_envs,))]
