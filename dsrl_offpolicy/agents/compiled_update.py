"""The update of Stage 2 as one graph for the compiler of torch: losses, gradients, Adam and target networks.

``DSRLSACAgent.update`` is the same step written for reading, and the reference for this one (a test holds them
together). What the compiler removes is everything between the matrix products: passes over memory, autograd's
bookkeeping, the optimisers' Python. Shapes are static, noise is drawn outside, nothing waits for the host: on CUDA
the graph can be captured.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch
import torch._dynamo.config
from torch import Tensor, nn
from torch.func import functional_call, grad

from dsrl_offpolicy.agents.dsrl_sac_agent import DSRLSACAgent, Networks
from dsrl_offpolicy.agents.steering_agent import Metrics
from dsrl_offpolicy.contracts import MacroBatch

Weights = dict[str, Tensor]
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
"""Adam's, as ``torch.optim`` has them by default."""


@dataclass
class Moments:
    """What Adam keeps of some parameters, and their learning rate: tensors that the graph changes in place."""

    exp_avg: list[Tensor]
    exp_avg_sq: list[Tensor]
    step: list[Tensor]
    lr: Tensor


@dataclass
class TrainingTensors:
    """Everything that an update changes: views of an agent's weights and of its optimisers' state."""

    actor: Weights
    online: Weights
    target: Weights
    log_alpha: Tensor
    actor_moments: Moments
    critic_moments: Moments
    temperature_moments: Moments | None


class CompiledUpdate:
    """Takes an agent's gradient steps in its place: ``update(batch, update_actor=...)``.

    Args:
        agent: trained in place; its optimisers' state and learning rates are read and kept up to date.
        batch_size: of all batches to come.

    Raises:
        RuntimeError: the compiler does not work here; the agent is as it was.
    """

    def __init__(self, agent: DSRLSACAgent, batch_size: int) -> None:
        self.agent = agent
        # On CUDA the reordering of loops dies of an assertion in torch 2.11; the CPU's kernels gain from it.
        options: Any = None if agent.log_alpha.device.type == "cpu" else {"loop_ordering_after_fusion": False}
        self._graph: Any = torch.compile(_Step(agent), dynamic=False, options=options)
        self._tensors = _tensors_of(agent, copies=True)
        self._bound: Tensor | None = None
        zeros = torch.zeros(batch_size, agent.layout.dim, device=agent.log_alpha.device)
        features = torch.zeros(batch_size, agent.feature_dim, device=zeros.device)
        batch = MacroBatch(features, zeros, zeros[:, 0].clone(), zeros[:, 0].clone(), features.clone())
        noise = [torch.zeros_like(zeros), torch.zeros_like(zeros)]
        # Beyond its limits torch runs further learners uncompiled and says nothing.
        no_limits = {"recompile_limit": sys.maxsize, "accumulated_recompile_limit": sys.maxsize}
        try:
            with torch._dynamo.config.patch(no_limits):
                for update_actor in (True, False):  # on copies: nothing of the agent changes
                    self._graph(self._tensors, batch, noise, update_actor)
        except (RuntimeError, OSError, NotImplementedError) as error:
            raise RuntimeError(" ".join(str(error).split())) from error

    def __call__(self, batch: MacroBatch, *, update_actor: bool = True) -> Metrics:
        """One gradient step; arguments and metrics are those of ``DSRLSACAgent.update``."""
        agent = self.agent
        bound = self._first_moment()
        if bound is None or bound is not self._bound:  # the first step, or the optimisers' state was loaded anew
            self._tensors = _tensors_of(agent, copies=False)
            self._bound = self._first_moment()
        tensors = self._tensors
        tensors.actor_moments.lr.fill_(agent.actor_optimizer.param_groups[0]["lr"])
        tensors.critic_moments.lr.fill_(agent.critic_optimizer.param_groups[0]["lr"])
        noise = [agent.draw_noise(batch)]
        noise.append(agent.draw_noise(batch) if update_actor else torch.zeros_like(noise[0]))
        metrics: Metrics = self._graph(tensors, batch, noise, update_actor)
        return metrics

    def _first_moment(self) -> Tensor | None:
        optimizer = self.agent.critic_optimizer
        moment: Tensor | None = optimizer.state[optimizer.param_groups[0]["params"][0]].get("exp_avg")
        return moment


class _Step:
    """The function that is compiled."""

    def __init__(self, agent: DSRLSACAgent) -> None:
        self.agent = agent

    def __call__(
        self, tensors: TrainingTensors, batch: MacroBatch, noise: list[Tensor], update_actor: bool
    ) -> Metrics:
        agent = self.agent
        alpha = tensors.log_alpha.exp()

        def networks(actor: Weights, online: Weights) -> Networks:
            return Networks(
                lambda s: functional_call(agent.actor, actor, (s,)),
                lambda s, w: functional_call(agent.critic.online, online, (s, w)),
                lambda s, w: functional_call(agent.critic.target, tensors.target, (s, w)),
                alpha,
                agent.anchor,
            )

        def critic_loss(online: Weights) -> tuple[Tensor, Metrics]:
            return agent.critic_terms(batch, noise[0], networks(tensors.actor, online))

        def actor_loss(actor: Weights) -> tuple[Tensor, tuple[Metrics, Tensor]]:
            loss, metrics, cost = agent.actor_terms(batch, noise[1], networks(actor, tensors.online))
            return loss, (metrics, cost)

        gradient, metrics = grad(critic_loss, has_aux=True)(tensors.online)
        _adam_step(tensors.online, gradient, tensors.critic_moments)
        targets, sources = list(tensors.target.values()), list(tensors.online.values())
        torch._foreach_lerp_(targets, sources, agent.polyak_tau)
        if update_actor:
            gradient, (actor_metrics, cost) = grad(actor_loss, has_aux=True)(tensors.actor)
            metrics = {**metrics, **actor_metrics}
            _adam_step(tensors.actor, gradient, tensors.actor_moments)
            if tensors.temperature_moments is not None:
                slope = agent.cost_target - cost.mean()  # of temperature_loss
                _adam_step({"": tensors.log_alpha}, {"": slope}, tensors.temperature_moments)
        return metrics


def _adam_step(weights: Weights, gradient: Weights, moments: Moments) -> None:
    """Adam (Kingma and Ba, 2015, algorithm 1) as ``torch.optim`` takes it, which the compiler cannot look into."""
    parameters, gradients = list(weights.values()), [gradient[name] for name in weights]
    torch._foreach_add_(moments.step, 1)
    torch._foreach_lerp_(moments.exp_avg, gradients, 1 - BETA1)
    torch._foreach_mul_(moments.exp_avg_sq, BETA2)
    torch._foreach_addcmul_(moments.exp_avg_sq, gradients, gradients, 1 - BETA2)
    step = moments.step[0].double()
    step_size = moments.lr / (1 - BETA1**step)
    correction = (1 - BETA2**step).sqrt()
    for parameter, first, second in zip(parameters, moments.exp_avg, moments.exp_avg_sq, strict=True):
        denominator = second.sqrt() / correction.to(second.dtype) + EPSILON
        parameter.sub_(step_size.to(first.dtype) * first / denominator)


def _tensors_of(agent: DSRLSACAgent, *, copies: bool) -> TrainingTensors:
    """The agent's own tensors, without gradients, or copies of them."""

    def own(tensor: Tensor) -> Tensor:
        return tensor.detach().clone() if copies else tensor.detach()

    def weights(module: nn.Module) -> Weights:
        return {name: own(p) for name, p in module.named_parameters()}

    def moments(optimizer: torch.optim.Optimizer, group: int) -> Moments:
        parameters = optimizer.param_groups[group]["params"]
        states = [_adam_state(optimizer, p) for p in parameters]
        lr = torch.tensor(optimizer.param_groups[group]["lr"], device=parameters[0].device)
        exp_avg, exp_avg_sq, step = ([own(s[key]) for s in states] for key in ("exp_avg", "exp_avg_sq", "step"))
        return Moments(exp_avg, exp_avg_sq, step, lr)

    return TrainingTensors(
        weights(agent.actor),
        weights(agent.critic.online),
        weights(agent.critic.target),
        own(agent.log_alpha),
        moments(agent.actor_optimizer, 0),
        moments(agent.critic_optimizer, 0),
        moments(agent.actor_optimizer, 1) if agent.log_alpha.requires_grad else None,
    )


def _adam_state(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Any]:
    """The state of one parameter, made as Adam makes it before its first step where there is none."""
    state: dict[str, Any] = optimizer.state[parameter]
    if not state:
        state["step"] = torch.zeros((), device=parameter.device)
        state["exp_avg"] = torch.zeros_like(parameter)
        state["exp_avg_sq"] = torch.zeros_like(parameter)
    return state
