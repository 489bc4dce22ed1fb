"""Write stage2_updates.json: the metrics of 30 gradient steps of Stage 2, for test_compiled_update.py.

    python tests/golden/make_stage2_updates.py

Recorded before the learner was made fast (version 0.1.0, every loss with its own optimiser, nothing compiled).
Make it anew only where the algorithm changes on purpose.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from dsrl_offpolicy.agents.dsrl_sac_agent import DSRLSACAgent, Regularizer, SACConfig
from dsrl_offpolicy.contracts import MacroBatch
from dsrl_offpolicy.models.latent_layout import LatentLayout

FILE = Path(__file__).with_name("stage2_updates.json")
STEPS, BATCH, FEATURES = 30, 32, 6
LAYOUT = LatentLayout("act_horizon", 4, 3, slice(1, 3), 1.5)
REGULARIZERS: tuple[Regularizer, ...] = ("entropy", "kl")


def make_agent(regularizer: Regularizer, device: str = "cpu") -> DSRLSACAgent:
    """The learner at its start; the recorded losses are a CPU's, whose noise is another."""
    torch.manual_seed(0)
    config = SACConfig(
        actor_hidden_dims=(24, 24),
        critic_hidden_dims=(24, 24),
        num_critics=2,
        critic_layer_norm=True,
        actor_lr=1e-3,
        critic_lr=3e-3,
        temp_lr=1e-2,
        tau=0.05,
        regularizer=regularizer,
        init_temperature=0.5,
        learn_temperature=True,
        target_kl=0.5,
        backup_entropy=True,
    )
    return DSRLSACAgent(config, FEATURES, LAYOUT, generator=torch.Generator(device).manual_seed(1), device=device)


def make_batch(seed: int) -> MacroBatch:
    """A batch of noise, some of whose transitions end."""
    generator = torch.Generator().manual_seed(100 + seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    discount = 0.9 * (torch.rand(BATCH, generator=generator) > 0.2)
    latent = 1.5 * torch.tanh(normal(BATCH, LAYOUT.dim))
    return MacroBatch(normal(BATCH, FEATURES), latent, normal(BATCH), discount, normal(BATCH, FEATURES))


def update_actor(step: int) -> bool:
    """Every third step is the critics' alone."""
    return step % 3 != 2


def lr_scale(step: int) -> float:
    """Learning rates fall from step 20 on."""
    return 1.0 if step < 20 else 0.5


def main() -> None:
    """Record."""
    found = {}
    for regularizer in REGULARIZERS:
        agent, rows = make_agent(regularizer), []
        for step in range(STEPS):
            agent.scale_learning_rates(lr_scale(step))
            metrics = agent.update(make_batch(step), update_actor=update_actor(step))
            rows.append({name: value.item() for name, value in metrics.items()})
        found[regularizer] = rows
    FILE.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
