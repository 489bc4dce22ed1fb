"""What bf16 does inside a learner's networks, and what it leaves in float32."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_agents import layout, random_batch, sac
from torch import nn

from dsrl_offpolicy.models.action_q_network import ActionQNetwork
from dsrl_offpolicy.models.latent_policy import LatentPolicy
from dsrl_offpolicy.models.latent_q_network import LatentQNetwork
from dsrl_offpolicy.models.layers import Layers, mlp
from dsrl_offpolicy.models.precision import Product, hidden_products, use_precision

BF16, FP32 = torch.bfloat16, torch.float32


def types_inside(layers: Layers, x: torch.Tensor) -> list[tuple[str, torch.dtype, torch.dtype]]:
    """What goes into and comes out of every layer."""
    found, hooks = [], []
    for layer in layers:

        def note(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
            found.append((type(module).__name__, inputs[0].dtype, output.dtype))

        hooks.append(layer.register_forward_hook(note))
    layers(x)
    for hook in hooks:
        hook.remove()
    return found


def test_products_are_bf16_and_normalisations_and_the_last_layer_are_not() -> None:
    net = mlp(3, (8, 8), 2, nn.ReLU, layer_norm=True)
    use_precision(net, "bf16")
    assert types_inside(net, torch.randn(4, 3)) == [
        ("Linear", FP32, BF16), ("LayerNorm", FP32, FP32), ("ReLU", FP32, FP32),
        ("Linear", FP32, BF16), ("LayerNorm", FP32, FP32), ("ReLU", FP32, FP32),
        ("Linear", FP32, FP32),
    ]  # fmt: skip
    bare = mlp(3, (8, 8), 2, nn.ReLU, layer_norm=False)
    use_precision(bare, "bf16")
    assert types_inside(bare, torch.randn(4, 3))[1:4] == [
        ("ReLU", BF16, BF16), ("Linear", BF16, BF16), ("ReLU", BF16, BF16)
    ]  # fmt: skip


def test_a_bf16_product_is_that_of_rounded_numbers_summed_in_float32() -> None:
    # The gradient of a weight adds up 1000 rows of 1 * 1. In float32 that is 1000, which bf16 has (250 * 4); a sum
    # in bf16 would get stuck at 256, since 256 + 1 is rounded to 256.
    net = mlp(1, (1,), 1, nn.ReLU, layer_norm=False)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(1.0)
    use_precision(net, "bf16")
    net(torch.ones(1000, 1)).sum().backward()
    gradient = net[0].weight.grad
    assert gradient is not None and gradient.dtype == FP32
    assert gradient.item() == 1000.0
    # 1 + 2^-9 is no bf16: the weight is rounded to 1 for the product, and stays itself.
    with torch.no_grad():
        net[0].weight.fill_(1 + 2**-9)
    assert net(torch.ones(1, 1)).item() == 3.0  # (1 * 1 + 1) * 1 + 1
    assert net[0].weight.item() == 1 + 2**-9
    use_precision(net, "fp32")
    assert net(torch.ones(1, 1)).item() == 3.0 + 2**-9


@pytest.mark.parametrize("layer_norm", [True, False])
def test_outputs_are_float32_and_near_those_of_fp32(layer_norm: bool) -> None:
    torch.manual_seed(0)
    steered = layout(2, 2, magnitude=2.0)
    features, latent = torch.randn(64, 5), torch.randn(64, 4)
    policy, critic = LatentPolicy(5, (32, 32), steered), LatentQNetwork(5, 4, (32, 32), 3, layer_norm=layer_norm)
    nn.init.normal_(policy.net[-1].weight, std=0.1)
    action_critic = ActionQNetwork(5, 2, 2, (32, 32), 2)
    for net, inputs in (
        (policy, (features,)), (critic, (features, latent)), (action_critic, (features, latent.view(64, 2, 2)))
    ):  # fmt: skip
        exact = copy.deepcopy(net)
        use_precision(net, "bf16")
        found, wanted = net(*inputs), exact(*inputs)
        for one, other in zip(found, wanted, strict=True):
            assert one.dtype == FP32
            # 8 bits: errors of 2^-9 of each number, of which many are summed up.
            assert 0 < (one - other).abs().max() < 0.05 * other.abs().max()
    # what acts is what is saved
    noise = torch.randn(64, 2, 2)
    use_precision(policy, "fp32")
    before = policy.act(features, noise)
    use_precision(policy, "bf16")
    assert torch.equal(policy.act(features, noise), before)


def test_an_update_keeps_weights_gradients_and_optimisers_in_float32() -> None:
    agent = sac(layout(1, 2, magnitude=1.5), 2, actor_hidden_dims=(16,), critic_hidden_dims=(16,), critic_lr=1e-5)
    exact = copy.deepcopy(agent)
    use_precision(agent, "bf16")
    for step in range(3):
        metrics = agent.update(random_batch(16, 2, 2, seed=step))
        assert all(value.dtype == FP32 for value in metrics.values())
    for optimizer in (agent.actor_optimizer, agent.critic_optimizer):
        for weight, state in optimizer.state.items():
            assert weight.dtype == weight.grad.dtype == state["exp_avg"].dtype == FP32
    # Steps of 1e-5 on weights near 0.5, where bf16 numbers are 2e-3 apart: only master weights take them.
    for got, start in zip(agent.critic.online.parameters(), exact.critic.online.parameters(), strict=True):
        assert 0 < (got - start).abs().max() < 1e-4


def test_hidden_products_are_those_of_learning_networks() -> None:
    agent = sac(layout(1, 2), 3, actor_hidden_dims=(8, 4), critic_hidden_dims=(6,), num_critics=5)
    critic = Product(5, 5, 6)  # 3 features and 2 latents
    assert hidden_products(agent) == [Product(1, 3, 8), Product(1, 8, 4), critic, critic]
