"""A base policy that breaks the contract is refused when it is loaded, in one line that says it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_worlds import HalvingPolicy

from dsrl_offpolicy import BasePolicy, Encoding, load_base_policy
from dsrl_offpolicy.errors import InputError

DETERMINISTIC = "(observation, latent) -> action chunk that is deterministic given the latent"


class Lean(BasePolicy):
    """What a newcomer must write, and no more: ``info``, ``encode``, ``decode``."""

    info = HalvingPolicy().info

    def encode(self, obs: Any) -> Encoding:
        return Encoding(obs.flatten(1))

    def decode(self, encoding: Encoding, latent: torch.Tensor) -> torch.Tensor:
        return latent.tanh()


class ScoredWrong(Lean):
    """Its critic says three heads and gives two."""

    class Critic:
        rows, heads = slice(1, 3), 3

        def q_values(self, features: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
            return actions.sum((1, 2)).expand(2, -1)

    critic = Critic()


class Settled(Lean):
    info = (2, 4)


class LongRows(Lean):
    info = replace(Lean.info, executed_rows=slice(1, 5))


class OpenRows(Lean):
    info = replace(Lean.info, executed_rows=slice(None, 2))


class Narrow(Lean):
    def encode(self, obs):
        return Encoding(obs[:, -1])


class Doubled(Lean):
    def encode(self, obs):
        return Encoding(obs.flatten(1).double())


class Infinite(Lean):
    def encode(self, obs):
        return Encoding(obs.flatten(1) / 0)


class Bare(Lean):
    def encode(self, obs):
        return obs.flatten(1)


class Short(Lean):
    def decode(self, encoding, latent):
        return latent[:, :2].tanh()


class Undefined(Lean):
    def decode(self, encoding, latent):
        return latent * float("nan")


class Stochastic(Lean):
    def decode(self, encoding, latent):
        return (latent + torch.randn_like(latent)).tanh()


class Deaf(Lean):
    def decode(self, encoding, latent):
        return torch.zeros_like(latent)


class Raising(Lean):
    def decode(self, encoding, latent):
        raise KeyError("noise\nnet")


def test_what_a_newcomer_must_write_is_enough() -> None:
    policy = load_base_policy(f"{__name__}:Lean")
    assert policy.critic is None and policy.info is Lean.info
    with pytest.raises(NotImplementedError, match="Lean cannot be inverted"):
        policy.invert(Encoding(torch.zeros(1, 4)), torch.zeros(1, 4, 1))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Settled, ["info", "PolicyInfo", DETERMINISTIC]),
        (Narrow, ["features of encode", "[2, 4]", "[2, 2]"]),
        (Doubled, ["features of encode", "float32", "float64"]),
        (Infinite, ["features of encode", "finite"]),
        (Bare, ["Encoding", "Tensor"]),
        (Short, ["actions of decode", "[2, 4, 1]", "[2, 2, 1]"]),
        (Undefined, ["actions of decode", "finite"]),
        (Stochastic, ["the same latent", DETERMINISTIC]),
        (Deaf, ["two different latents", "steered"]),
        (Raising, ["KeyError", "noise", "test_policy_contract.py, line"]),
        (LongRows, ["executed_rows", "a chunk of 4", "slice(1, 5"]),
        (OpenRows, ["executed_rows", "slice(None, 2"]),
        (ScoredWrong, ["values of critic.q_values", "[3, 2]", "[2, 2]"]),
    ],
)
def test_a_breach_is_refused_when_loaded(kind, words) -> None:
    spec = f"{__name__}:{kind.__name__}"
    with pytest.raises(InputError) as error:
        load_base_policy(spec)
    message = str(error.value)
    assert "\n" not in message and message.startswith(f"base: {spec}"), message
    assert all(word in message for word in words), message
