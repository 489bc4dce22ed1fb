"""The learner of Stage 1, the Q^A that it needs, and the pool of candidates that it draws from."""

from __future__ import annotations

import torch

from dsrl_offpolicy.agents.aw_mle import AWMLEAgent
from dsrl_offpolicy.configs.jobs import Stage1Config
from dsrl_offpolicy.contracts import ActionCritic, BasePolicy
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.models.latent_q_network import LatentCritic
from dsrl_offpolicy.seeding import torch_generator
from dsrl_offpolicy.train.start import build_layout

POOL_BYTES = 2**30
"""Memory that ``candidate_pool=auto`` takes at most."""


def critic_of(base: BasePolicy) -> ActionCritic:
    """Return the Q^A that AW-MLE scores candidates with.

    Raises:
        InputError: the base policy has none.
    """
    if base.critic is None:
        raise InputError(
            "base: Stage 1 scores candidates with an action critic Q^A, and this policy has none; "
            "dsrl stage2 starts from the prior without one"
        )
    return base.critic


def build_agent(config: Stage1Config, base: BasePolicy, device: torch.device) -> AWMLEAgent:
    """Build the learner of Stage 1.

    Raises:
        InputError: settings that do not fit the base policy or each other.
    """
    layout = build_layout(base.info, config)
    if config.candidate_pool != "auto" and 0 < config.candidate_pool < config.num_candidates:
        raise InputError(
            f"candidate_pool: expected 0 or at least num_candidates {config.num_candidates}, "
            f"got {config.candidate_pool}"
        )
    if config.distill_q and config.num_critics != critic_of(base).heads:
        raise InputError(
            f"num_critics: expected {critic_of(base).heads} as in Q^A (distilled head by head), "
            f"got {config.num_critics}"
        )
    critic = (
        LatentCritic(
            base.info.feature_dim,
            layout.dim,
            config.critic_hidden_dims,
            config.num_critics,
            layer_norm=config.critic_layer_norm,
        )
        if config.distill_q
        else None
    )
    return AWMLEAgent(
        base,
        layout,
        hidden_dims=config.actor_hidden_dims,
        lr=config.lr,
        num_candidates=config.num_candidates,
        kappa=config.kappa,
        baseline_temperature=config.tau,
        beta_latent=config.beta_latent,
        advantage_clip=config.advantage_clip,
        kl_coef=config.kl_coef,
        max_decode=config.max_decode,
        critic=critic,
        critic_lr=config.critic_lr,
        distill_chunks=config.distill_chunks,
        generator=torch_generator(config.seed, "stage1", device),
        device=device,
    )


def pool_size(config: Stage1Config, states: int, floats: int) -> int:
    """Return candidates per state to decode once; 0 for fresh ones at every gradient step.

    Args:
        config: its ``candidate_pool``, and what training would decode without a pool.
        states: N.
        floats: kept of one candidate, L + K.
    """
    if config.candidate_pool != "auto":
        return config.candidate_pool
    most = 4 * config.num_candidates
    fits = POOL_BYTES // (4 * floats * states)
    pays = config.total_iters * config.batch_size * config.num_candidates // (2 * states)
    size = min(most, fits, pays)
    return size if size >= 2 * config.num_candidates else 0
