"""Act, step the environments, and turn what happened into macro-transitions.

Environments run while the learner learns: ``launch`` sends the next chunks, ``collect`` waits for them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsrl_offpolicy.contracts import BasePolicy, Encoding, LatentSource, MacroTransitions
from dsrl_offpolicy.envs.family import MacroVectorEnv
from dsrl_offpolicy.envs.macro_step import read_news
from dsrl_offpolicy.models.latent_layout import LatentLayout
from dsrl_offpolicy.rollouts.acting import encode, executed_chunk, send
from dsrl_offpolicy.seeding import FIRST_EVALUATION_SEED


@dataclass(frozen=True)
class Collected(MacroTransitions):
    """What one vector macro-step brought: a macro-transition per environment that was not lost, and its news.

    Attributes:
        finished: for each episode that ended: (success_once, return, env steps).
        lost: macro-steps dropped because their environment process died or hung.
        intervened: macro-steps dropped because somebody else than the policy chose an action.
    """

    finished: list[tuple[bool, float, int]]
    lost: int
    intervened: int

    def __len__(self) -> int:
        return len(self.reward)

    @property
    def env_steps(self) -> int:
        """Primitive steps, summed over environments."""
        return int(self.n_steps.sum())


@dataclass
class Episode:
    """An episode in flight: what it takes to play it again."""

    seed: int
    chunks: list[Tensor]
    """Actions sent since the reset, ``[H, A]`` each."""


class Collector:
    """Act in vectorised macro-step environments and return what happened.

    Args:
        env: does not reset by itself; every ended episode is reset here, explicitly, after its true last
            observation was encoded.
        base_policy: encodes observations and decodes latents.
        layout: which part of the noise is returned as the latent.
        noise: generator of the standard-normal noise, on ``device``.
        starts: generator of the episodes' seeds.
        device: where the policies compute.
    """

    def __init__(
        self,
        env: MacroVectorEnv,
        base_policy: BasePolicy,
        layout: LatentLayout,
        *,
        noise: torch.Generator,
        starts: np.random.Generator,
        device: torch.device | str = "cpu",
    ) -> None:
        self.env = env
        self.base_policy = base_policy
        self.layout = layout
        self.noise = noise
        self.starts = starts
        self.device = torch.device(device)
        self._lent: dict[str, Any] | None = None
        self._latent: Tensor | None = None
        self._episodes: list[Episode] = []
        self._encoding: Encoding
        self._begin_anew()

    def launch(self, source: LatentSource) -> None:
        """Choose latents for the current observations and set the environments going.

        Raises:
            NonFiniteError: actions that are not finite; none is sent.
        """
        with torch.no_grad():
            shape = (self.env.num_envs, *self.base_policy.info.latent_shape)
            noise = torch.randn(shape, generator=self.noise, device=self.device)
            full = source(self._encoding.features, noise)
            self._latent = self.layout.select(full)
        chunk = executed_chunk(self.base_policy, self._encoding, full)
        for episode, actions in zip(self._episodes, chunk.cpu(), strict=True):
            episode.chunks.append(actions)
        send(self.env, chunk, self.device)

    def collect(self) -> Collected:
        """Wait for the environments, reset the ended and the lost episodes, return what happened.

        Raises:
            NonFiniteError: observations that are not finite.
            InputError: an environment process that is lost again and again.
        """
        assert self._latent is not None, "collect() follows launch()"
        obs, reward, terminated, truncated, info = self.env.step_wait()
        encoding = encode(self.base_policy, obs, self.device)
        ended = self._tensor(terminated | truncated, torch.bool).cpu().numpy()
        news = read_news(info, ended)
        kept = self._tensor(np.flatnonzero(news.kept), torch.int64)
        happened = (
            self._encoding.features[kept],
            self._latent[kept],
            self._tensor(reward, torch.float32)[kept],
            encoding.features[kept],
            self._tensor(terminated, torch.bool)[kept],
            self._tensor(truncated, torch.bool)[kept],
            self._tensor(info["n_steps"], torch.int32)[kept],
        )
        over = ended | news.lost
        if over.any():
            seeds = self._draw_seeds()
            obs, _ = self.env.reset(seed=seeds, options={"reset_mask": over})
            for i in np.flatnonzero(over):
                self._episodes[i] = Episode(seeds[i], [])
            encoding = encode(self.base_policy, obs, self.device)
        self._encoding = encoding
        self._latent = None
        return Collected(*happened, news.finished, int(news.lost.sum()), int(news.intervened.sum()))

    def state_dict(self) -> dict[str, Any]:
        """Return what brings a new collector to this point, between launch and collect."""
        if self._lent is not None:
            return self._lent
        assert self._latent is not None, "state_dict() follows launch()"
        return {
            "episodes": [{"seed": e.seed, "chunks": torch.stack(e.chunks)} for e in self._episodes],
            "features": self._encoding.features,
            "latent": self._latent,
            "noise": self.noise.get_state(),
            "starts": json.dumps(self.starts.bit_generator.state),
        }

    def load_state_dict(self, state: dict[str, Any]) -> bool:
        """Replay the episodes in flight, from their seeds and actions, and send the chunk that was on its way.

        Returns:
            Whether the replayed observations are, to the bit, those of the saved run. They are where the simulator
            is deterministic. Elsewhere the episodes in flight are given up: new ones begin; ``launch`` is next.
            Where the family is not ``replayable``, or ``exclusive``, nothing is sent: those that began with this
            collector go on.
        """
        if not self.env.capabilities.replayable or self.env.capabilities.exclusive:
            self._set_generators(state)
            return False
        episodes = [Episode(e["seed"], list(e["chunks"])) for e in state["episodes"]]
        before = [len(e.chunks) - 1 for e in episodes]  # the last chunk is on its way
        longest, seeds = max(before), [e.seed for e in episodes]
        obs, _ = self.env.reset(seed=seeds)
        idle = torch.zeros_like(episodes[0].chunks[0])
        for t in range(longest + 1):
            starting = np.array([longest - count == t for count in before])
            if t > 0 and starting.any():  # shorter episodes start later, so that all end together
                obs, _ = self.env.reset(seed=seeds, options={"reset_mask": starting})
            if t < longest:
                begun = [t - (longest - count) for count in before]
                chunks = [e.chunks[i] if i >= 0 else idle for e, i in zip(episodes, begun, strict=True)]
                send(self.env, torch.stack(chunks), self.device)
                obs, *_ = self.env.step_wait()
        self._set_generators(state)
        self._encoding = encode(self.base_policy, obs, self.device)
        if not torch.equal(self._encoding.features, state["features"].to(self.device)):
            self._begin_anew()
            return False
        self._episodes = episodes
        self._latent = state["latent"].to(self.device)
        send(self.env, torch.stack([e.chunks[-1] for e in episodes]), self.device)
        return True

    def lend(self) -> Collected:
        """Finish the chunk on its way and leave the environments to an evaluation, until :meth:`take_back`;
        ``state_dict`` stays meanwhile what it was."""
        self._lent = self.state_dict()
        return self.collect()

    def take_back(self) -> None:
        """Begin new episodes in the environments that were lent; ``launch`` is next."""
        self._lent = None
        self._begin_anew()

    def metrics(self) -> dict[str, float]:
        """Return what a row of metrics tells of acting: nothing, where acting and learning take turns."""
        return {}

    def _begin_anew(self) -> None:
        seeds = self._draw_seeds()
        obs, _ = self.env.reset(seed=seeds)
        self._episodes = [Episode(seed, []) for seed in seeds]
        self._encoding = encode(self.base_policy, obs, self.device)
        self._latent = None

    def _set_generators(self, state: dict[str, Any]) -> None:
        self.noise.set_state(state["noise"])
        self.starts.bit_generator.state = json.loads(state["starts"])

    def _tensor(self, values: Any, dtype: torch.dtype) -> Tensor:
        return torch.as_tensor(values).to(dtype).to(self.device)  # a device may have no doubles

    def _draw_seeds(self) -> list[int]:
        return [int(s) for s in self.starts.integers(FIRST_EVALUATION_SEED, size=(self.env.num_envs,))]
