"""The frozen base policy and the newest latent policy in a Ray actor, which answer all runners in batches."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsrl_offpolicy.contracts import BasePolicy, Encoding, LatentSource
from dsrl_offpolicy.models.latent_layout import LatentLayout
from dsrl_offpolicy.models.latent_sources import PolicySource
from dsrl_offpolicy.rollouts.acting import encode, executed_chunk
from dsrl_offpolicy.rollouts.ray_runner import Chosen, Published

BATCH_WAIT = 0.002
"""Seconds that a first request waits for others, unless every environment has already asked."""


class PolicyServer:
    """Encodes observations, chooses latents with the newest policy it was told of, decodes them.

    Nothing that it keeps is missed when it is replaced: a runner whose encoding is unknown sends its observation
    again, and every request names the policy.

    Args:
        make_base: loads the base policy and returns it with the device it computes on.
        layout: which part of the noise is returned as the latent.
        num_envs: environments of all runners; a batch of so many waits for nobody.
    """

    def __init__(
        self, make_base: Callable[[], tuple[BasePolicy, torch.device]], layout: LatentLayout, num_envs: int
    ) -> None:
        self._make_base, self._layout = make_base, layout
        self._loaded: tuple[BasePolicy, torch.device] | None = None
        self._newest = -1
        self._version = 0
        self._source: LatentSource
        self._encodings: dict[int, Encoding] = {}
        self._encode = _Batches(self._encode_all, num_envs)
        self._act = _Batches(self._act_all, num_envs)

    async def fingerprint(self) -> str:
        """Return the base policy's fingerprint, once it is loaded.

        Raises:
            InputError: it cannot be loaded here.
        """
        return self._base[0].fingerprint()

    async def pid(self) -> int:
        """Return the server's process id."""
        return os.getpid()

    async def encode(self, runner: int, last: Any, fresh: Any) -> tuple[np.ndarray, np.ndarray]:
        """Encode what a runner's environments observe, and keep the newest encoding for ``act``.

        Args:
            runner: its number.
            last: observations that macro-steps ended with.
            fresh: those with ended episodes begun anew; None where none ended.

        Returns:
            Features of ``last`` and of ``fresh``, ``[E, D]`` each.
        """
        return await self._encode.ask((runner, last, fresh), _rows_of(last))

    async def act(self, runner: int, noise: np.ndarray, policy: Published) -> Chosen | None:
        """Choose latents for the runner's newest observations and decode them; None if this server has none.

        Args:
            runner: its number.
            noise: ``[E, T, W]`` standard normal.
            policy: the newest that the learner had when it permitted the macro-step.
        """
        if runner not in self._encodings:
            return None
        if policy.number > self._newest:
            source = await policy.where[0]
            if policy.number > self._newest:  # another request may have brought a newer one meanwhile
                device = self._base[1]
                self._source = source.copied(device) if isinstance(source, PolicySource) else source
                self._newest, self._version = policy.number, policy.version
        return await self._act.ask((runner, noise), len(noise))

    @property
    def _base(self) -> tuple[BasePolicy, torch.device]:
        if self._loaded is None:
            self._loaded = self._make_base()
        return self._loaded

    def _encode_all(self, requests: Sequence[tuple[int, Any, Any]]) -> list[tuple[np.ndarray, np.ndarray]]:
        lasts = self._encode_batch([last for _, last, _ in requests])
        begun = [i for i, (_, _, fresh) in enumerate(requests) if fresh is not None]
        now = dict(enumerate(lasts))
        if begun:
            now |= dict(zip(begun, self._encode_batch([requests[i][2] for i in begun]), strict=True))
        answers = []
        for i, (runner, _, _) in enumerate(requests):
            self._encodings[runner] = now[i]
            answers.append((lasts[i].features.cpu().numpy(), now[i].features.cpu().numpy()))
        return answers

    def _encode_batch(self, observations: Sequence[Any]) -> list[Encoding]:
        base, device = self._base
        if len(observations) == 1:
            return [encode(base, observations[0], device)]
        whole = encode(base, _joined(observations), device)
        if not _divides(whole.context):
            return [encode(base, obs, device) for obs in observations]
        ends = np.cumsum([_rows_of(obs) for obs in observations])
        spans = zip([0, *ends[:-1]], ends, strict=True)
        return [Encoding(whole.features[a:b], _part(whole.context, a, b)) for a, b in spans]

    @torch.no_grad()
    def _act_all(self, requests: Sequence[tuple[int, np.ndarray]]) -> list[Chosen]:
        base, device = self._base
        encodings = [self._encodings[runner] for runner, _ in requests]
        if len(encodings) > 1 and not all(_divides(encoding.context) for encoding in encodings):
            return [self._act_all([request])[0] for request in requests]
        noise = torch.as_tensor(np.concatenate([noise for _, noise in requests])).to(device)
        encoding = encodings[0]
        if len(encodings) > 1:
            features = torch.cat([one.features for one in encodings])
            encoding = Encoding(features, _joined([one.context for one in encodings]))
        full = self._source(encoding.features, noise)
        latent = self._layout.select(full).cpu().numpy()
        chunk = executed_chunk(base, encoding, full).cpu().numpy()
        ends = np.cumsum([len(noise) for _, noise in requests])
        spans = zip([0, *ends[:-1]], ends, strict=True)
        return [Chosen(latent[a:b], chunk[a:b], self._version) for a, b in spans]


class _Batches:
    """Requests that are answered together: as soon as there are ``most`` rows, or after ``BATCH_WAIT``.

    Args:
        work: answers a list of requests.
        most: rows.
    """

    def __init__(self, work: Callable[[Sequence[Any]], list[Any]], most: int) -> None:
        self._work, self._most = work, most
        self._waiting: list[tuple[Any, asyncio.Future]] = []
        self._rows = 0
        self._timer: asyncio.TimerHandle | None = None

    async def ask(self, request: Any, rows: int) -> Any:
        """Return the answer to a request of so many rows."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future = loop.create_future()
        self._waiting.append((request, answer))
        self._rows += rows
        if self._rows >= self._most:
            self._answer()
        elif self._timer is None:
            self._timer = loop.call_later(BATCH_WAIT, self._answer)
        return await answer

    def _answer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        waiting, self._waiting, self._rows, self._timer = self._waiting, [], 0, None
        try:
            answers = self._work([request for request, _ in waiting])
        except Exception as error:  # belongs to whoever asked
            for _, answer in waiting:
                answer.set_exception(error)
            return
        for (_, answer), result in zip(waiting, answers, strict=True):
            answer.set_result(result)


def _rows_of(obs: Any) -> int:
    return len(next(iter(obs.values()))) if isinstance(obs, Mapping) else len(obs)


def _divides(context: Any) -> bool:
    """Whether a context is made of tensors, batch first, or there is none."""
    if isinstance(context, Mapping):
        return all(map(_divides, context.values()))
    if isinstance(context, list | tuple) and not hasattr(context, "_fields"):
        return all(map(_divides, context))
    return context is None or (isinstance(context, Tensor) and context.ndim > 0)


def _joined(parts: Sequence[Any]) -> Any:
    """Batches put one after the other: mappings key by key, strings as one sequence."""
    first = parts[0]
    if first is None:
        return None
    if isinstance(first, Mapping):
        return {name: _joined([part[name] for part in parts]) for name in first}
    if isinstance(first, Tensor):
        return torch.cat(list(parts))
    if isinstance(first, np.ndarray):
        return np.concatenate(parts)
    if first and isinstance(first[0], str):
        return tuple(text for part in parts for text in part)
    return type(first)(_joined(same) for same in zip(*parts, strict=True))


def _part(context: Any, start: int, end: int) -> Any:
    if isinstance(context, Mapping):
        return {name: _part(part, start, end) for name, part in context.items()}
    if isinstance(context, list | tuple):
        return type(context)(_part(part, start, end) for part in context)
    return None if context is None else context[start:end]
