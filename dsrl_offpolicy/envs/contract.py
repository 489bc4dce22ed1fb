"""Hold an environment that somebody's family made against the contract. Free of torch."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from dsrl_offpolicy.errors import InputError

CONTRACT = (
    "an environment observes a vector of float32, or a mapping with it under 'state' and, of k cameras, uint8 "
    "images [H, W, 3k] under 'rgb', and takes a vector of actions in [-1, 1]"
)


def check_spaces(env: Any, where: str) -> gym.Env:
    """Return the environment, once its spaces are what they must be.

    Raises:
        InputError: something else than an environment, or spaces of other shapes, types or bounds.
    """
    if not isinstance(env, gym.Env):
        raise InputError(f"{where}: expected make to return a gymnasium.Env, got {type(env).__name__}; {CONTRACT}")
    parts = _parts(env.observation_space)
    state, images, actions = parts.get("state"), parts.get("rgb"), env.action_space
    if not (isinstance(state, gym.spaces.Box) and len(state.shape) == 1 and state.dtype.kind == "f"):
        raise InputError(f"{where}: expected a state vector, got {state}; {CONTRACT}")
    if images is not None and not (
        isinstance(images, gym.spaces.Box) and len(images.shape) == 3 and images.dtype == np.uint8
    ):
        raise InputError(f"{where}: expected images under 'rgb', got {images}; {CONTRACT}")
    if not (isinstance(actions, gym.spaces.Box) and len(actions.shape) == 1):
        raise InputError(f"{where}: expected a vector of actions, got {actions}; {CONTRACT}")
    if not (np.all(actions.low == -1) and np.all(actions.high == 1)):
        raise InputError(f"{where}: expected actions in [-1, 1], got {actions}; {CONTRACT}")
    return env


def check_observation(obs: Any, space: gym.Space, where: str) -> None:
    """Refuse an observation that has not the keys and shapes of its space.

    Raises:
        InputError: naming the key.
    """
    expected, found = _parts(space), obs if isinstance(obs, dict) else {"state": obs}
    if isinstance(obs, dict) != isinstance(space, gym.spaces.Dict) or set(found) != set(expected):
        got = ", ".join(map(repr, found)) if isinstance(obs, dict) else type(obs).__name__
        raise InputError(f"{where}: expected an observation of its space, {space}, got {got}")
    for name, part in expected.items():
        shape = np.shape(found[name])
        if part.shape is not None and shape != part.shape:
            raise InputError(
                f"{where}: expected {list(part.shape)} under {name!r}, as its space says, got {list(shape)}"
            )


def _parts(space: gym.Space) -> dict[str, gym.Space]:
    return dict(space.spaces) if isinstance(space, gym.spaces.Dict) else {"state": space}
