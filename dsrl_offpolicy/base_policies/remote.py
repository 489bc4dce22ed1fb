"""A base policy that computes in another process, perhaps on another machine: ``--base remote:HOST:PORT``.

Speaks openpi's websocket protocol (see ``remote_wire``) to ``dsrl serve``, or to any server that says the same.
Imports websockets and msgpack: the extra ``remote``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dsrl_offpolicy.base_policies.contract import check_contract
from dsrl_offpolicy.base_policies.remote_connection import Address, Connection, RemoteCounts, seconds_above_0
from dsrl_offpolicy.base_policies.remote_wire import MOST_ROWS, RESERVED
from dsrl_offpolicy.contracts import BasePolicy, Encoding, Observation
from dsrl_offpolicy.errors import InputError

INVERTED_AT_ONCE = 64
"""Rows of one request to invert. A policy may take seconds for them, and must answer before the time-out."""

OVERHEAD = 4096
"""Bytes of a message besides its rows, at most."""


class RemotePolicy(BasePolicy):
    """Asks a server to encode, decode and invert. It has no critic, and no gradient flows through it.

    Encodings hold features, which are all that the server needs to decode; where its policy needs more (a VLA's
    prefix), the context is the observation itself, and the server encodes it again.

    Args:
        connection: to the server.
        device: where its tensors come to lie.
    """

    def __init__(self, connection: Connection, device: torch.device) -> None:
        self.connection, self.device = connection, device
        self.served = connection.served
        self.info = self.served.info

    @classmethod
    def load(cls, argument: str | None, device: torch.device, **options: Any) -> RemotePolicy:
        """Connect, and try the policy against the contract.

        Args:
            argument: ``HOST:PORT``, with ``?timeout=S&patience=S`` where wanted.
            device: where its tensors come to lie; the policy computes where it is served.
            options: ``timeout`` and ``patience`` in seconds; ``obs_horizon``, ``pred_horizon`` and ``act_horizon``
                may only repeat what the server says; ``flag`` is the setting to name in an error.

        Raises:
            InputError: nobody listens; not a server of ours, or of another version; a server that drops ``noise``;
                a policy that breaks the contract; an option that does not fit.
        """
        flag = options.pop("flag", "base")
        address = Address.parse(argument or "", flag)
        where = f"{flag}: {address.name}"
        address = replace(
            address,
            timeout=seconds_above_0(options.pop("timeout", address.timeout), f"{where}: timeout"),
            patience=seconds_above_0(options.pop("patience", address.patience), f"{where}: patience"),
        )
        policy = cls(Connection(address, where), device)
        info = policy.info
        held = {
            "obs_horizon": info.obs_horizon,
            "pred_horizon": info.action_shape[0],
            "act_horizon": info.act_horizon,
        }
        for name, given in options.items():
            if name not in held:
                raise InputError(f"{name}: is chosen where the policy is served (dsrl serve), got {given!r} here")
            if given != held[name]:
                raise InputError(f"{name}: expected {held[name]} as {address.name} says, got {given}")
        check_contract(policy, where, device)
        return policy

    @property
    def counts(self) -> RemoteCounts:
        """What asking has taken so far."""
        return self.connection.counts

    def encode(self, obs: Observation) -> Encoding:
        wire = self._wire_observation(obs)
        features = self._ask(wire, {"features": (self.info.feature_dim,)})["features"]
        context = (obs if isinstance(obs, Mapping) else {"state": obs}) if self.served.needs_observation else None
        return Encoding(features, context)

    def decode(self, encoding: Encoding, latent: Float[Tensor, "B T W"]) -> Float[Tensor, "B T A"]:
        wire = self._wire_source(encoding) | {"noise": _array(latent)}
        return self._ask(wire, {"actions": self.info.action_shape})["actions"]

    def invert(
        self, encoding: Encoding, actions: Float[Tensor, "B T A"]
    ) -> tuple[Float[Tensor, "B T W"], Float[Tensor, " B"]]:
        if not self.served.invertible:
            raise NotImplementedError(f"the policy of {self.connection.address.name} cannot be inverted")
        wire = self._wire_source(encoding) | {"actions": _array(actions)}
        found = self._ask(wire, {"noise": self.info.latent_shape, "error": ()}, INVERTED_AT_ONCE)
        return found["noise"], found["error"]

    def example_observation(self, batch: int) -> Observation:
        if not self.served.example:
            return super().example_observation(batch)
        return {
            name: torch.from_numpy(np.repeat(part, batch, axis=0))
            if isinstance(part, np.ndarray)
            else part * batch
            for name, part in self.served.example.items()
        }

    def fingerprint(self) -> str:
        return self.served.fingerprint

    def _wire_source(self, encoding: Encoding) -> dict[str, Any]:
        if not self.served.needs_observation:
            return {"features": _array(encoding.features)}
        if encoding.context is None:
            raise InputError(f"{self.connection.where}: decodes from the observation, and features alone came")
        return self._wire_observation(encoding.context)

    def _wire_observation(self, obs: Observation) -> dict[str, Any]:
        if isinstance(obs, Tensor):
            obs = {"state": obs}
        for name in RESERVED:
            if name in obs:
                raise InputError(f"{self.connection.where}: no part of an observation can be called {name!r}")
        return {name: _array(part) if isinstance(part, Tensor) else list(part) for name, part in obs.items()}

    def _ask(
        self, wire: dict[str, Any], shapes: Mapping[str, tuple[int, ...]], at_once: int = MOST_ROWS
    ) -> dict[str, Tensor]:
        """Ask in as many requests as the server's limits ask for. ``shapes`` are those of a row of the answer."""
        rows = len(next(iter(wire.values())))
        row = max(1, sum(_bytes(part) for part in wire.values()) // max(1, rows))
        most = max(1, min(at_once, (self.served.max_message_bytes - OVERHEAD) // row))
        parts = [
            self._ask_part({name: part[i : i + most] for name, part in wire.items()}, shapes)
            for i in range(0, max(rows, 1), most)
        ]
        return {
            name: torch.from_numpy(np.concatenate([p[name] for p in parts])).to(self.device) for name in shapes
        }

    def _ask_part(self, wire: dict[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
        reply, where = self.connection.ask(wire), self.connection.where
        rows = len(next(iter(wire.values())))
        for name, shape in shapes.items():
            got = reply.get(name)
            if not isinstance(got, np.ndarray) or got.shape != (rows, *shape) or got.dtype != np.float32:
                came = f"{list(got.shape)} of {got.dtype}" if isinstance(got, np.ndarray) else "none"
                raise InputError(f"{where}: answer: {name}: expected {[rows, *shape]} of float32, got {came}")
        if "noise" in wire:
            heard = reply.get("noise")
            if not isinstance(heard, np.ndarray) or heard.tobytes() != wire["noise"].tobytes():
                raise InputError(
                    f"{where}: the server drops `noise`: its answer does not repeat it, so the policy cannot be "
                    "steered; serve it with `dsrl serve`, or have the server pass noise on to its policy"
                )
        return reply


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


def _bytes(part: Any) -> int:
    if isinstance(part, np.ndarray):
        return part.nbytes
    return sum(len(text.encode()) + 5 for text in part)
