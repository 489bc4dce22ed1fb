"""Servers of base policies in processes of their own, servers that misbehave, and what they serve."""

from __future__ import annotations

import contextlib
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import warm_start
from tiny_worlds import HalvingPolicy
from torch import Tensor
from websockets.sync.server import ServerConnection, serve

from dsrl_offpolicy.base_policies.remote_wire import VERSION, ServedPolicy, pack, unpack
from dsrl_offpolicy.contracts import BasePolicy, Encoding, PolicyInfo


class Leaning(HalvingPolicy):
    """Walks towards the goal by a share of the noise, ``remote_worlds:Leaning:0.5``; another is another policy."""

    def __init__(self, share: str = "0.5") -> None:
        super().__init__()
        self.share = float(share)

    def decode(self, encoding: Encoding, latent: Tensor) -> Tensor:
        return encoding.features[:, -1:, None] * self.share * latent

    def fingerprint(self) -> str:
        return f"leaning by {self.share}"


class Slow(HalvingPolicy):
    """Takes a tenth of a second for a decode, whatever the batch."""

    def decode(self, encoding: Encoding, latent: Tensor) -> Tensor:
        time.sleep(0.1)
        return 0.5 * latent


class Touchy(HalvingPolicy):
    """Fails where a feature is 13, and with it whatever is in the same batch."""

    def decode(self, encoding: Encoding, latent: Tensor) -> Tensor:
        time.sleep(0.05)
        if bool((encoding.features == 13).any()):
            raise ArithmeticError("an unlucky number")
        return 0.5 * latent


class Worded(BasePolicy):
    """Reads images and a text as well, and decodes from a context that is not in its features, as a VLA does."""

    info = PolicyInfo(
        obs_horizon=1, state_dim=2, feature_dim=3, latent_shape=(4, 2), action_shape=(4, 1),
        executed_rows=slice(1, 3), image_channels=3, image_size=(4, 5),
    )  # fmt: skip

    def encode(self, obs: Any) -> Encoding:
        bright = obs["rgb"].float().mean((1, 2, 3, 4))
        words = torch.tensor([float(len(text)) for text in obs["instruction"]])
        return Encoding(torch.cat((obs["state"][:, -1], bright[:, None]), 1), words)

    def decode(self, encoding: Encoding, latent: Tensor) -> Tensor:
        moved = encoding.features.sum(1) / 100 + encoding.context
        return (latent.mean(2, keepdim=True) * moved[:, None, None] / 100).tanh()

    def example_observation(self, batch: int) -> Any:
        return {**super().example_observation(batch), "instruction": ["go left"] * batch}


class Served:
    """``dsrl serve`` in a process of its own; ``port`` once clients can connect."""

    def __init__(self, base: object, *flags: object, port: int = 0) -> None:
        self._process = warm_start.start(
            "dsrl_offpolicy.cli:run",
            ["serve", "--base", base, "--port", port, "--device", "cpu", *flags],
            path=[path for path in sys.path if path], stdout=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        self.line = self._process.stdout.readline()
        found = re.search(r"remote:127\.0\.0\.1:(\d+)\)", self.line)
        if found is None:
            raise AssertionError(f"no server: {self.line} {self.stop()[1]}")
        self.port = int(found[1])

    @property
    def spec(self) -> str:
        """What ``--base`` takes."""
        return f"remote:127.0.0.1:{self.port}"

    def kill(self) -> None:
        """End it as a crash does."""
        self._process.kill()
        self._process.communicate(timeout=60)

    def suspend(self) -> None:
        """Let it hang."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> tuple[int, str]:
        """End it as a user does; its exit status and what it said on standard error."""
        self._process.terminate()
        _, said = self._process.communicate(timeout=60)
        return self._process.returncode, said

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *error: object) -> None:
        if self._process.poll() is None:
            self.kill()


def counts(said: str) -> dict[str, int]:
    """The numbers with which a server leaves."""
    found = re.search(
        r"(\d+) requests of (\d+) connections answered in (\d+) batches \((\d+) rows\); (\d+) refused, "
        r"(\d+) undelivered", said,
    )  # fmt: skip
    assert found, said
    names = ("requests", "connections", "batches", "rows", "refused", "undelivered")
    return dict(zip(names, map(int, found.groups()), strict=True))


def halving_facts(**changes: Any) -> ServedPolicy:
    """What a server says of a :class:`HalvingPolicy`."""
    values: dict[str, Any] = {
        "version": VERSION, "info": HalvingPolicy().info, "fingerprint": "halving", "needs_observation": False,
        "invertible": False, "max_message_bytes": 2**20, "example": {},
    }  # fmt: skip
    return ServedPolicy(**values | changes)


@contextlib.contextmanager
def strange_server(
    answer: Callable[[Mapping[str, Any]], Mapping[str, Any] | str | bytes | None], first: Any = None
) -> Iterator[int]:
    """A server whose answers a test makes up; None hangs up. Gives its port."""

    def talk(connection: ServerConnection) -> None:
        opening = halving_facts().metadata() if first is None else first
        connection.send(opening if isinstance(opening, str | bytes) else pack(opening))
        for data in connection:
            said = answer(unpack(data, "request"))
            if said is None:
                return
            connection.send(said if isinstance(said, str | bytes) else pack(said))

    with serve(talk, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.socket.getsockname()[1]
        finally:
            server.shutdown()
            thread.join()


def honest(message: Mapping[str, Any]) -> dict[str, Any]:
    """Answer as a server of a :class:`HalvingPolicy` does."""
    if "noise" in message:
        return {"actions": 0.5 * message["noise"], "noise": message["noise"]}
    return {"features": message["state"].reshape(len(message["state"]), -1)}
