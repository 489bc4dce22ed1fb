"""Run a policy for N episodes with a seed each: the same seeds are the same starts for every policy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from dsrl_offpolicy.contracts import BasePolicy, Encoding, LatentSource, observation_tensors
from dsrl_offpolicy.envs.family import MacroVectorEnv
from dsrl_offpolicy.errors import NonFiniteError
from dsrl_offpolicy.evaluation.intervals import Interval, mean_interval, wilson_interval
from dsrl_offpolicy.seeding import (
    FIRST_CHOOSING_SEED,
    FIRST_EVALUATION_SEED,
    FIRST_PROBING_SEED,
    FIRST_STARTING_SEED,
)


@dataclass(frozen=True)
class EpisodeOutcome:
    """What one episode came to; ``episode_return`` is undiscounted, ``length`` counts env steps."""

    seed: int
    success_once: bool
    success_at_end: bool
    episode_return: float
    length: int


@dataclass(frozen=True)
class EvaluationSummary:
    """A policy's outcomes with 95 % intervals: Wilson for the rates, Student's t for the means."""

    episodes: int
    success_once: Interval
    success_at_end: Interval
    episode_return: Interval
    length: Interval

    def numbers(self) -> dict[str, float | None]:
        """Return every rate and mean by name, and its interval as ``_low`` and ``_high``: None for none."""
        named = {
            "success_once": self.success_once, "success_at_end": self.success_at_end,
            "return": self.episode_return, "length": self.length,
        }  # fmt: skip
        return {name: value for name, interval in named.items() for name, value in interval.named(name).items()}

    def row(self) -> dict[str, float]:
        """Return the evaluation as a row of metrics, which holds numbers only."""
        return {name: value for name, value in self.numbers().items() if value is not None}


def evaluation_seeds(episodes: int) -> list[int]:
    """Return the starts on which results are reported: the same for every policy."""
    return list(range(FIRST_EVALUATION_SEED, FIRST_EVALUATION_SEED + episodes))


def choosing_seeds(episodes: int) -> list[int]:
    """Return the starts on which a checkpoint or a constant is chosen: none of them is reported on."""
    return list(range(FIRST_CHOOSING_SEED, FIRST_CHOOSING_SEED + episodes))


def starting_seeds(episodes: int) -> list[int]:
    """Return the starts on which Stage 1 chooses its policy: nothing else is chosen or reported on them."""
    return list(range(FIRST_STARTING_SEED, FIRST_STARTING_SEED + episodes))


def probing_seeds(episodes: int) -> list[int]:
    """Return the starts on which a probe compares: nothing else is chosen or reported on them."""
    return list(range(FIRST_PROBING_SEED, FIRST_PROBING_SEED + episodes))


def summarise(outcomes: Sequence[EpisodeOutcome]) -> EvaluationSummary:
    """Turn outcomes into rates and means with intervals."""
    n = len(outcomes)
    return EvaluationSummary(
        episodes=n,
        success_once=wilson_interval(sum(o.success_once for o in outcomes), n),
        success_at_end=wilson_interval(sum(o.success_at_end for o in outcomes), n),
        episode_return=mean_interval(np.array([o.episode_return for o in outcomes])),
        length=mean_interval(np.array([o.length for o in outcomes])),
    )


class NoiseStreams:
    """Standard-normal noise with a stream for every episode, so that an episode's noise depends on its seed
    alone: not on how many environments run beside it, nor on which policy consumes it."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self._shape = shape
        self._generators: dict[int, torch.Generator] = {}

    def start(self, slot: int, seed: int) -> None:
        """Begin the stream of the episode that now runs in ``slot``."""
        self._generators[slot] = torch.Generator().manual_seed(seed)

    def draw(self, slots: int) -> torch.Tensor:
        """Return ``[slots, T, A]``."""
        return torch.stack([torch.randn(self._shape, generator=self._generators[slot]) for slot in range(slots)])


def _act(base_policy: BasePolicy, encoding: Encoding, latent: torch.Tensor) -> torch.Tensor:
    """The rows to execute, ``[B, H, A]``."""
    chunk = base_policy.decode(encoding, latent)[:, base_policy.info.executed_rows]
    if not bool(chunk.isfinite().all()):
        evidence = {"features": encoding.features, "latent": latent, "chunk": chunk}
        raise NonFiniteError("evaluation: expected finite actions, got NaN or infinity", evidence)
    return chunk


def _outcome(seed: int, slot: int, info: Mapping[str, Any]) -> EpisodeOutcome:
    episode_return = float(info["episode_return"][slot])
    if not math.isfinite(episode_return):
        raise NonFiniteError(f"evaluation: expected a finite return, got {episode_return}", {"seed": seed})
    return EpisodeOutcome(
        seed=seed,
        success_once=bool(info["success_once"][slot]),
        success_at_end=bool(info["success"][slot]),
        episode_return=episode_return,
        length=int(info["episode_length"][slot]),
    )


@dataclass(frozen=True)
class Episode:
    """An episode to run.

    Attributes:
        index: what its queue knows it by.
        source: chooses the latents.
        seed: of the start and of the noise.
    """

    index: int
    source: LatentSource
    seed: int


@runtime_checkable
class EpisodeQueue(Protocol):
    """Which episodes to run, decided while others run."""

    def take(self) -> Episode | None:
        """Return the next one to begin; None where nothing is left, now and later."""

    def ended(self, episode: Episode, outcome: EpisodeOutcome) -> bool:
        """Hear what one came to; returns whether those that still run are wanted."""


class _InOrder:
    """One episode per seed of one policy."""

    def __init__(self, source: LatentSource, seeds: Sequence[int]) -> None:
        self._waiting = iter([Episode(index, source, int(seed)) for index, seed in enumerate(seeds)])
        self.outcomes: dict[int, EpisodeOutcome] = {}

    def take(self) -> Episode | None:
        return next(self._waiting, None)

    def ended(self, episode: Episode, outcome: EpisodeOutcome) -> bool:
        self.outcomes[episode.index] = outcome
        return True


def run_episodes(
    env: MacroVectorEnv,
    base_policy: BasePolicy,
    latent_source: LatentSource,
    seeds: Sequence[int],
    device: torch.device | str = "cpu",
) -> list[EpisodeOutcome]:
    """Run one episode per seed, in that order. An episode whose environment process is lost starts over.

    Args:
        env: see :func:`run_queue`.
        base_policy: decodes latents to chunks, of which it tells the executed rows.
        latent_source: chooses the latents.
        seeds: start of each episode, and seed of its noise.
        device: where policies compute.

    Raises:
        NonFiniteError: actions or returns that are not finite, as observations and rewards make them.
    """
    queue = _InOrder(latent_source, seeds)
    run_queue(env, base_policy, queue, device)
    return [queue.outcomes[index] for index in range(len(seeds))]


Seen = Callable[[Episode, int, Mapping[str, Any]], None]
"""Looks at the info of a step of an episode, in a slot."""


@torch.no_grad()
def run_queue(
    env: MacroVectorEnv,
    base_policy: BasePolicy,
    queue: EpisodeQueue,
    device: torch.device | str = "cpu",
    seen: Seen = lambda episode, slot, info: None,
) -> int:
    """Run the episodes of a queue, of several policies side by side. Returns the env steps that they took, those
    of episodes that were no longer wanted included. An episode whose environment process is lost starts over.

    Args:
        env: macro-step environments that do not reset by themselves (``envs.make_vector_env``). Those with
            ``batched`` (one simulation) start their next episodes only when all have ended.
        base_policy: decodes latents to chunks, of which it tells the executed rows.
        queue: tells what to run, in which order.
        device: where policies compute.
        seen: told of every step of every episode, before the queue hears of its end.

    Raises:
        NonFiniteError: actions or returns that are not finite, as observations and rewards make them.
    """
    slots = env.num_envs
    batched = env.capabilities.batched
    noise = NoiseStreams(base_policy.info.latent_shape)
    running: dict[int, Episode] = {}
    again: list[Episode] = []
    env_steps = 0

    def take() -> Episode | None:
        return again.pop() if again else queue.take()

    def reset(assigned: dict[int, Episode]) -> Any:
        running.update(assigned)
        for slot, episode in assigned.items():
            noise.start(slot, episode.seed)
            acting[slot] = episode.source
        mask = np.array([slot in assigned for slot in range(slots)])
        seeds = [assigned[s].seed if s in assigned else None for s in range(slots)]
        obs, _ = env.reset(seed=seeds, options={"reset_mask": mask})
        return obs

    def assign(free: list[int]) -> dict[int, Episode]:
        return {slot: episode for slot in free if (episode := take()) is not None}

    first = assign(list(range(slots)))
    if not first:
        return 0
    acting = [first[0].source] * slots
    if len(first) < slots:  # slots without an episode still need a first observation
        env.reset(seed=[first[0].seed] * slots)
        for slot in range(slots):
            noise.start(slot, first[0].seed)
    obs = reset(first)
    while running:
        encoding = base_policy.encode(observation_tensors(obs, device))
        chunk = _act(base_policy, encoding, _choose(acting, encoding.features, noise.draw(slots).to(device)))
        obs, _, terminated, truncated, info = env.step(chunk if batched else chunk.cpu().numpy())
        over = torch.as_tensor(terminated | truncated).tolist()
        lost = [slot for slot in list(running) if info.get("lost", [False] * slots)[slot]]
        again += [running.pop(slot) for slot in lost]  # its process was replaced: the episode begins again
        for slot, episode in running.items():
            seen(episode, slot, info)
        ended = [slot for slot in list(running) if over[slot]]
        wanted = True
        for slot in ended:
            episode = running.pop(slot)
            outcome = _outcome(episode.seed, slot, info)
            env_steps += outcome.length
            wanted &= queue.ended(episode, outcome)
        if not wanted:
            return env_steps + sum(int(info["episode_length"][slot]) for slot in running)
        if (ended or lost) and not (batched and running):
            assigned = assign(list(range(slots)) if batched else ended + lost)
            obs = reset(assigned) if assigned else obs
    return env_steps


def _choose(acting: Sequence[LatentSource], features: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """The latents of all slots, of which each has its own source: one call for each that there is."""
    latent = torch.empty_like(noise)
    for source in {id(source): source for source in acting}.values():
        rows = [slot for slot, one in enumerate(acting) if one is source]
        if len(rows) == len(acting):
            return source(features, noise)
        latent[rows] = source(features[rows], noise[rows])
    return latent
