"""Serve a base policy over openpi's websocket protocol, several clients' requests in one batch.

Imports websockets and msgpack: the extra ``remote``.
"""

from __future__ import annotations

import asyncio
import http
import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request as HttpRequest
from websockets.http11 import Response as HttpResponse

from dsrl_offpolicy.base_policies.remote_requests import Ask, read_request
from dsrl_offpolicy.base_policies.remote_wire import VERSION, ServedPolicy, pack, unpack
from dsrl_offpolicy.contracts import BasePolicy, Encoding, Observation, observation_tensors
from dsrl_offpolicy.errors import InputError, one_line

QUIET = logging.getLogger("dsrl_offpolicy.remote_server")
"""The library's own messages, tracebacks of broken handshakes among them. What users need to know is printed."""
QUIET.setLevel(logging.CRITICAL)


@dataclass
class Counts:
    """What a server has done.

    Attributes:
        clients: that have connected, one that reconnects each time.
        requests: answered by numbers.
        batches: calls of the policy that these took.
        rows: observations in them.
        refused: requests answered by an error.
        undelivered: requests whose client was gone before the answer.
    """

    clients: int = 0
    requests: int = 0
    batches: int = 0
    rows: int = 0
    refused: int = 0
    undelivered: int = 0

    def __str__(self) -> str:
        return (
            f"{self.requests} requests of {self.clients} connections answered in {self.batches} batches "
            f"({self.rows} rows); {self.refused} refused, {self.undelivered} undelivered"
        )


def describe_policy(policy: BasePolicy, device: torch.device, max_message_bytes: int) -> ServedPolicy:
    """Return what a server says of a policy, tried on one example."""
    example = policy.example_observation(1)
    with torch.no_grad():
        encoding = policy.encode(observation_tensors(example, device))
    named: Mapping[str, Any] = example if isinstance(example, Mapping) else {}
    return ServedPolicy(
        version=VERSION,
        info=policy.info,
        fingerprint=policy.fingerprint(),
        needs_observation=encoding.context is not None,
        invertible=type(policy).invert is not BasePolicy.invert and encoding.context is None,
        max_message_bytes=max_message_bytes,
        example={
            name: part.cpu().numpy() if isinstance(part, Tensor) else list(part) for name, part in named.items()
        },
    )


@dataclass
class _Waiting:
    """A request in the queue."""

    ask: Ask
    answer: asyncio.Future[dict[str, Any]]


class PolicyServer:
    """A base policy that answers over websockets.

    The policy computes in one thread of its own, so that the server hears clients meanwhile. Requests that ask for
    the same are answered in one batch: once ``max_batch`` rows wait, once every client waits, or after
    ``batch_wait`` seconds. A request that fails in a batch is repeated alone, so nobody hears of the mistakes of
    others.

    Args:
        policy: computes.
        device: where.
        max_batch: rows per call of the policy; a request of more is computed by itself. With 1 no request ever
            shares a call, so answers do not depend on who else asks.
        batch_wait: seconds.
        max_message_bytes: largest message that is read.
        seed: of the noise of requests that bring none (openpi's clients).
    """

    def __init__(
        self,
        policy: BasePolicy,
        device: torch.device,
        *,
        max_batch: int,
        batch_wait: float,
        max_message_bytes: int,
        seed: int,
    ) -> None:
        self.policy, self.device = policy, device
        self.max_batch, self.batch_wait = max_batch, batch_wait
        self.served = describe_policy(policy, device, max_message_bytes)
        self.counts = Counts()
        self._generator = torch.Generator().manual_seed(seed)
        self._bare = isinstance(policy.example_observation(1), Tensor)
        self._queue: deque[_Waiting] = deque()
        self._changed = asyncio.Event()
        self._open = 0

    async def run(self, host: str, port: int, stop: asyncio.Event, ready: Callable[[int], None]) -> None:
        """Serve until ``stop`` is set. Requests that were taken are answered, or their clients told to go.

        Args:
            host: address to listen on.
            port: 0 for any that is free.
            stop: ends it.
            ready: told the port, once clients can connect.

        Raises:
            OSError: the address or port cannot be had.
        """
        with ThreadPoolExecutor(1, "policy") as thread:
            limits = {"max_size": self.served.max_message_bytes, "compression": None}
            async with serve(self._client, host, port, process_request=_health, logger=QUIET, **limits) as server:  # type: ignore[arg-type]
                worker = asyncio.create_task(self._work(thread))
                ready(next(iter(server.sockets)).getsockname()[1])
                stopped = asyncio.create_task(stop.wait())
                await asyncio.wait((worker, stopped), return_when=asyncio.FIRST_COMPLETED)
            worker.cancel()
            stopped.cancel()
            if worker.done() and not worker.cancelled():
                worker.result()  # raises what ended it

    async def _client(self, connection: ServerConnection) -> None:
        """Answer one client until it goes."""
        self.counts.clients += 1
        self._open += 1
        told = False
        gone = asyncio.ensure_future(connection.wait_closed())
        try:
            await connection.send(pack(self.served.metadata()))
            async for data in connection:
                try:
                    reply: str | bytes | None = await self._answer(data, gone)
                except InputError as error:
                    reply = str(error)
                    self.counts.refused += 1
                    if not told:  # once per connection
                        peer = connection.remote_address
                        print(f"serve: refused a request of {peer[0]}:{peer[1]}: {error}", file=sys.stderr)
                        told = True
                if reply is None:
                    self.counts.undelivered += 1
                    return
                await connection.send(reply)
                self.counts.requests += isinstance(reply, bytes)
        except ConnectionClosed:
            pass
        finally:
            self._open -= 1
            self._changed.set()

    async def _answer(self, data: str | bytes, gone: asyncio.Future[None]) -> bytes | None:
        """Return the answer to a request; None where its client is gone, and then nothing is computed for it."""
        began = time.perf_counter()
        ask = read_request(unpack(data, "request"), self.served, self._bare, self._generator)
        waiting = _Waiting(ask, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        self._changed.set()
        await asyncio.wait((waiting.answer, gone), return_when=asyncio.FIRST_COMPLETED)
        if gone.done():
            if not waiting.answer.cancel():
                waiting.answer.exception()  # which nobody is there to hear
            return None
        milliseconds = 1000 * (time.perf_counter() - began)
        return pack({**waiting.answer.result(), "server_timing": {"infer_ms": milliseconds}})

    async def _work(self, thread: ThreadPoolExecutor) -> None:
        """Answer what waits, batch by batch, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            while not self._queue:
                self._changed.clear()
                await self._changed.wait()
            await self._let_others_join()
            self._queue = deque(waiting for waiting in self._queue if not waiting.answer.cancelled())
            if not self._queue:
                continue
            batch = self._take_batch()
            asks = [waiting.ask for waiting in batch]
            try:
                replies = await loop.run_in_executor(thread, self._compute_each, asks)
            except Exception as error:  # a defect of ours: nobody is left waiting
                replies = [InputError(f"the server failed: {one_line(error)}")] * len(batch)
            self.counts.batches += 1
            self.counts.rows += sum(ask.rows for ask in asks)
            for waiting, reply in zip(batch, replies, strict=True):
                if waiting.answer.cancelled():
                    continue
                if isinstance(reply, InputError):
                    waiting.answer.set_exception(reply)
                else:
                    waiting.answer.set_result(reply)

    async def _let_others_join(self) -> None:
        """Wait until the batch is full, every client waits, or it has taken too long."""
        deadline = time.monotonic() + self.batch_wait
        while len(self._queue) < self._open and sum(w.ask.rows for w in self._queue) < self.max_batch:
            left = deadline - time.monotonic()
            if left <= 0:
                return
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), left)
            except TimeoutError:
                return

    def _take_batch(self) -> list[_Waiting]:
        """Take the oldest request, and those that ask for the same and fit beside it."""
        first = self._queue.popleft()
        batch, rows, others = [first], first.ask.rows, []
        for waiting in self._queue:
            if waiting.ask.kind == first.ask.kind and rows + waiting.ask.rows <= self.max_batch:
                batch.append(waiting)
                rows += waiting.ask.rows
            else:
                others.append(waiting)
        self._queue = deque(others)
        return batch

    def _compute_each(self, asks: Sequence[Ask]) -> list[dict[str, Any] | InputError]:
        """Answer a batch; where it fails, each request by itself."""
        try:
            return list(self._compute(asks))
        except Exception as error:  # whatever a stranger's policy raises
            if len(asks) > 1:
                return [reply for ask in asks for reply in self._compute_each([ask])]
            if isinstance(error, InputError):
                return [error]
            print(f"serve: the policy failed: {one_line(error)}", file=sys.stderr)
            return [InputError(f"the policy failed on the server: {one_line(error)}")]

    @torch.no_grad()
    def _compute(self, asks: Sequence[Ask]) -> list[dict[str, Any]]:
        """Answer requests of one kind in one batch."""
        first, policy = asks[0], self.policy
        found: dict[str, Tensor] = {}
        if first.obs is not None:
            encoding = policy.encode(self._joined_observation([ask.obs for ask in asks if ask.obs is not None]))
            found["features"] = encoding.features
        else:
            encoding = Encoding(self._joined([ask.features for ask in asks]))
        if first.noise is not None:
            found["actions"] = policy.decode(encoding, self._joined([ask.noise for ask in asks]))
        if first.actions is not None:
            found["noise"], found["error"] = policy.invert(encoding, self._joined([ask.actions for ask in asks]))
        arrays = {name: tensor.float().cpu().numpy() for name, tensor in found.items()}
        rows = sum(ask.rows for ask in asks)
        for name, array in arrays.items():
            if len(array) != rows:
                raise InputError(f"the policy made {len(array)} rows of {name} from {rows}")
        replies, row = [], 0
        for ask in asks:
            part = slice(row, row + ask.rows)
            replies.append(ask.reply({name: array[part] for name, array in arrays.items()}, policy.info))
            row += ask.rows
        return replies

    def _joined(self, parts: Sequence[np.ndarray | None]) -> Tensor:
        return torch.from_numpy(np.concatenate([p for p in parts if p is not None])).to(self.device)

    def _joined_observation(self, parts: Sequence[Mapping[str, Any]]) -> Observation:
        """One observation of the rows of several. States alone are as the policy's own example has them."""
        joined = {
            name: np.concatenate([part[name] for part in parts])
            if isinstance(parts[0][name], np.ndarray)
            else [text for part in parts for text in part[name]]
            for name in parts[0]
        }
        obs = joined["state"] if self._bare and list(joined) == ["state"] else joined
        tensors: Observation = observation_tensors(obs, self.device)
        return tensors


async def _health(connection: ServerConnection, request: HttpRequest) -> HttpResponse | None:
    """Answer ``GET /healthz``, as openpi's server does."""
    return connection.respond(http.HTTPStatus.OK, "OK\n") if request.path == "/healthz" else None
