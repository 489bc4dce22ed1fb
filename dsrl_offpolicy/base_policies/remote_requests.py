"""What a client asks of a served base policy, checked before it is computed, and what it is answered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dsrl_offpolicy.base_policies.remote_wire import MARK, MOST_ROWS, RESERVED, VERSION, ServedPolicy
from dsrl_offpolicy.contracts import PolicyInfo
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.files.plain import shown


@dataclass(frozen=True)
class Ask:
    """A request, every part with a batch axis.

    Attributes:
        rows: B.
        obs: to encode; arrays and lists of text by name. None: ``features`` are given instead.
        features: ``[B, D]``.
        noise: ``[B, T, W]``, to decode; None: it asks for features alone, or for noise.
        actions: ``[B, T, A]``, to invert.
        single: of openpi's kind: one observation without a batch axis, answered by the rows to execute.
    """

    rows: int
    obs: Mapping[str, Any] | None = None
    features: np.ndarray | None = None
    noise: np.ndarray | None = None
    actions: np.ndarray | None = None
    single: bool = False

    @property
    def kind(self) -> tuple[Any, ...]:
        """What it asks for: requests of equal kinds can share a batch."""
        parts = sorted((self.obs or {}).items())
        shapes = [(n, p.dtype.str, p.shape[1:]) if isinstance(p, np.ndarray) else (n, "text") for n, p in parts]
        return (self.features is None, self.noise is None, self.actions is None, *shapes)

    def reply(self, found: Mapping[str, np.ndarray], info: PolicyInfo) -> dict[str, Any]:
        """Return the answer. It repeats the noise that was decoded, so that the client knows that it was heard."""
        answer = dict(found) if self.noise is None else {**found, "noise": self.noise}
        if self.single:
            answer = {name: value[0] for name, value in answer.items()}
            answer["actions"] = answer["actions"][info.executed_rows]
        return answer


def read_request(message: Mapping[str, Any], served: ServedPolicy, bare: bool, generator: torch.Generator) -> Ask:
    """Check a request.

    Args:
        message: as it came.
        served: what the policy is.
        bare: the policy takes states alone as a tensor.
        generator: of the noise of a request of openpi's kind that brings none.

    Raises:
        InputError: something is missing, or of another type or shape.
    """
    if MARK not in message:
        return _single(message, served, generator)
    mark = message[MARK]
    version = mark.get("version") if isinstance(mark, Mapping) else None
    if version != VERSION:
        raise InputError(f"request: expected version {VERSION} of the protocol, got {shown(version)}")
    info = served.info
    obs = {name: part for name, part in message.items() if name not in RESERVED}
    if ("features" in message) == bool(obs):
        raise InputError("request: expected either an observation or its features")
    if served.needs_observation and not obs:
        raise InputError("request: this policy decodes from more than features; send the observation")
    features = None
    if obs:
        rows = _check_observation(obs, info)
    else:
        features = _floats(message, "features", (info.feature_dim,))
        rows = len(features)
    noise = _floats(message, "noise", info.latent_shape) if "noise" in message else None
    actions = _floats(message, "actions", info.action_shape) if "actions" in message else None
    for name, part in (("noise", noise), ("actions", actions)):
        if part is not None and len(part) != rows:
            raise InputError(f"request: {name}: expected {rows} rows as the observation has, got {len(part)}")
    if features is not None and (noise is None) == (actions is None):
        raise InputError("request: expected either noise to decode or actions to invert beside features")
    if actions is not None and (features is None or not served.invertible):
        raise InputError("request: expected features beside actions, of a policy that can be inverted")
    return Ask(rows, obs or None, features, noise, actions)


def _single(message: Mapping[str, Any], served: ServedPolicy, generator: torch.Generator) -> Ask:
    """One observation without a batch axis, as openpi's clients send it; the noise is drawn where none comes."""
    info = served.info
    obs: dict[str, Any] = {}
    for name, part in message.items():
        if name in RESERVED:
            continue
        obs[name] = part[None] if isinstance(part, np.ndarray) else [part] if isinstance(part, str) else part
    state = obs.get("state")
    if isinstance(state, np.ndarray) and state.ndim == 2 and info.obs_horizon == 1:
        obs = {n: p[:, None] if n in ("state", "rgb") and isinstance(p, np.ndarray) else p for n, p in obs.items()}
    _check_observation(obs, info)
    given = message.get("noise")
    if given is None:
        noise = torch.randn((1, *info.latent_shape), generator=generator).numpy()
    else:
        given = given[None] if isinstance(given, np.ndarray) else given
        noise = _floats({"noise": given}, "noise", info.latent_shape)
    return Ask(1, obs, noise=noise, single=True)


def _check_observation(obs: Mapping[str, Any], info: PolicyInfo) -> int:
    """Hold an observation against what the policy reads; returns its rows."""
    rows, frames = None, info.obs_horizon
    for name, part in obs.items():
        is_array = isinstance(part, np.ndarray) and part.ndim >= 1
        is_text = isinstance(part, list) and bool(part) and all(isinstance(text, str) for text in part)
        if not is_array and not is_text:
            raise InputError(f"request: {name}: expected an array, or a text per row, got {type(part).__name__}")
        rows = len(part) if rows is None else rows
        if len(part) != rows or not 1 <= rows <= MOST_ROWS:
            raise InputError(
                f"request: {name}: expected 1 to {MOST_ROWS} rows, as many in all parts, got {len(part)}"
            )
    state = obs.get("state")
    expected = f"[B, {frames}, {info.state_dim}]"
    if not isinstance(state, np.ndarray) or state.shape[1:] != (frames, info.state_dim):
        got = list(state.shape) if isinstance(state, np.ndarray) else "none"
        raise InputError(f"request: state: expected {expected}, got {got}")
    if info.image_channels:
        rgb = obs.get("rgb")
        height, width = info.image_size or (None, None)
        expected = f"[B, {frames}, {height or 'H'}, {width or 'W'}, {info.image_channels}] of uint8"
        fits = (
            isinstance(rgb, np.ndarray)
            and rgb.dtype == np.uint8
            and rgb.ndim == 5
            and (rgb.shape[1], rgb.shape[4]) == (frames, info.image_channels)
            and (info.image_size is None or rgb.shape[2:4] == info.image_size)
        )
        if not fits:
            got = f"{list(rgb.shape)} of {rgb.dtype}" if isinstance(rgb, np.ndarray) else "none"
            raise InputError(f"request: rgb: expected {expected}, got {got}")
    assert rows is not None
    return rows


def _floats(message: Mapping[str, Any], name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A part of a request, as float32 of the shape that it must have."""
    value = message[name]
    if (
        not isinstance(value, np.ndarray)
        or value.dtype.kind != "f"
        or value.shape[1:] != shape
        or not 1 <= len(value) <= MOST_ROWS
    ):
        got = f"{list(value.shape)} of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
        expected = ", ".join(map(str, ("B", *shape)))
        raise InputError(f"request: {name}: expected [{expected}] of float, B at most {MOST_ROWS}, got {got}")
    return value.astype(np.float32, copy=False)
