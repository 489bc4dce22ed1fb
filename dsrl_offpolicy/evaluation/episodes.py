"""Run a policy for N episodes with a seed each: the same seeds are the same starts for every policy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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


@torch.no_grad()
def run_episodes(
    env: MacroVectorEnv,
    base_policy: BasePolicy,
    latent_source: LatentSource,
    seeds: Sequence[int],
    device: torch.device | str = "cpu",
) -> list[EpisodeOutcome]:
    """Run one episode per seed, in that order. An episode whose environment process is lost starts over.

    Args:
        env: macro-step environments that do not reset by themselves (``envs.make_vector_env``). Those with
            ``batched`` (one simulation) start their next episodes only when all have ended.
        base_policy: decodes latents to chunks, of which it tells the executed rows.
        latent_source: chooses the latents.
        seeds: start of each episode, and seed of its noise.
        device: where policies compute.

    Raises:
        NonFiniteError: actions or returns that are not finite, as observations and rewards make them.
    """
    slots = env.num_envs
    batched = env.capabilities.batched
    noise = NoiseStreams(base_policy.info.latent_shape)
    outcomes: dict[int, EpisodeOutcome] = {}
    waiting = list(enumerate(seeds))[::-1]
    running: dict[int, int] = {}

    def start(free: list[int]) -> Any:
        assigned = {slot: waiting.pop() for slot in free if waiting}
        running.update({slot: index for slot, (index, _) in assigned.items()})
        for slot, (_, seed) in assigned.items():
            noise.start(slot, seed)
        mask = np.array([slot in assigned for slot in range(slots)])
        slot_seeds = [assigned[s][1] if s in assigned else None for s in range(slots)]
        obs, _ = env.reset(seed=slot_seeds, options={"reset_mask": mask})
        return obs

    if len(seeds) < slots:  # slots without an episode still need a first observation
        env.reset(seed=[int(seeds[0])] * slots)
        for slot in range(slots):
            noise.start(slot, int(seeds[0]))
    obs = start(list(range(slots)))
    while running:
        encoding = base_policy.encode(observation_tensors(obs, device))
        chunk = _act(base_policy, encoding, latent_source(encoding.features, noise.draw(slots).to(device)))
        obs, _, terminated, truncated, info = env.step(chunk if batched else chunk.cpu().numpy())
        over = torch.as_tensor(terminated | truncated).tolist()
        lost = [slot for slot in list(running) if info.get("lost", [False] * slots)[slot]]
        for slot in lost:  # its process was replaced: the episode begins again
            index = running.pop(slot)
            waiting.append((index, seeds[index]))
        ended = [slot for slot in list(running) if over[slot]]
        for slot in ended:
            index = running.pop(slot)
            outcomes[index] = _outcome(int(seeds[index]), slot, info)
        if (ended or lost) and waiting and not (batched and running):
            obs = start(list(range(slots)) if batched else ended + lost)
    return [outcomes[index] for index in range(len(seeds))]
