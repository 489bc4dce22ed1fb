"""TD targets and updates of Stage 2 in bf16 against those in fp32."""

from __future__ import annotations

import pytest
import torch
from test_compiled_update import golden

from dsrl_offpolicy.agents.compiled_update import CompiledUpdate
from dsrl_offpolicy.agents.dsrl_sac_agent import DSRLSACAgent
from dsrl_offpolicy.models.precision import use_precision


def trained(regularizer: str) -> DSRLSACAgent:
    agent = golden.make_agent(regularizer)
    for step in range(golden.STEPS):
        agent.update(golden.make_batch(step))
    return agent


@pytest.mark.parametrize("regularizer", golden.REGULARIZERS)
def test_td_targets_are_within_one_percent_of_those_in_fp32(regularizer: str) -> None:
    agent, errors, sizes = trained(regularizer), [], []
    for step in range(20):
        batch = golden.make_batch(1000 + step)
        noise = agent.draw_noise(batch)
        use_precision(agent, "fp32")
        exact = agent.td_target(batch, noise, agent.networks)
        use_precision(agent, "bf16")
        rounded = agent.td_target(batch, noise, agent.networks)
        assert rounded.dtype == torch.float32
        errors.append(rounded - exact)
        sizes.append(exact)
    error, size = (torch.cat(part).square().mean().sqrt() for part in (errors, sizes))
    assert 0 < error < 0.01 * size


@pytest.mark.parametrize(
    "regularizer", ["kl", pytest.param("entropy", marks=pytest.mark.slow)]
)  # one graph is enough
def test_the_compiled_update_computes_in_bf16_what_the_plain_one_does(regularizer: str) -> None:
    plain, compiled, exact = (trained(regularizer) for _ in range(3))
    for agent in (plain, compiled):
        use_precision(agent, "bf16")
    update = CompiledUpdate(compiled, golden.BATCH)
    for step in range(6):
        batch, options = golden.make_batch(step), {"update_actor": golden.update_actor(step)}
        found, wanted, fp32 = (
            update(batch, **options),
            plain.update(batch, **options),
            exact.update(batch, **options),
        )
        for name, value in found.items():
            assert value.dtype == torch.float32
            assert value.item() == pytest.approx(wanted[name].item(), rel=0.02, abs=0.01), (step, name)
        assert found["critic_loss"].item() != pytest.approx(fp32["critic_loss"].item(), rel=1e-6)
    for got, wanted in zip(compiled.state_dict().values(), plain.state_dict().values(), strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, wanted, rtol=0, atol=0.02)  # 6 steps of at most 3e-3
