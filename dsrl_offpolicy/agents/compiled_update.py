"""The update of Stage 2 as one graph for the compiler of torch: losses, gradients, Adam and target networks.

``DSRLSACAgent.update`` is the same step written for reading, and the reference for this one (a test holds them
together). What the compiler removes is everything between the matrix products: passes over memory, autograd's
bookkeeping, the optimisers' Python. Shapes are static, noise is drawn outside, nothing waits for the host.

The step is traced once, to a graph of all the tensors that it reads and changes, and the graph goes to inductor.
``torch.compile`` would look before every call whether anything that its graph depends on has changed (its guards);
here that is known, and two comparisons do. On CUDA the kernels of a step are recorded once and launched together.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch._inductor
from torch import Tensor, nn
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call, grad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._pytree import tree_flatten, tree_unflatten

from dsrl_offpolicy.agents.dsrl_sac_agent import DSRLSACAgent, Networks
from dsrl_offpolicy.agents.onednn_products import faster_here, use_onednn
from dsrl_offpolicy.agents.steering_agent import Metrics
from dsrl_offpolicy.contracts import MacroBatch
from dsrl_offpolicy.errors import one_line

Weights = dict[str, Tensor]
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
"""Adam's, as ``torch.optim`` has them by default."""


class Moments(NamedTuple):
    """What Adam keeps of some parameters, and their learning rate: tensors that the graph changes in place."""

    exp_avg: list[Tensor]
    exp_avg_sq: list[Tensor]
    step: list[Tensor]
    lr: Tensor


class TrainingTensors(NamedTuple):
    """What an update reads and changes: views of an agent's weights and of its optimisers' state."""

    actor: Weights
    online: Weights
    target: Weights
    anchor: Weights
    """Empty where KL is measured to the prior."""
    log_alpha: Tensor
    actor_moments: Moments
    critic_moments: Moments
    temperature_moments: tuple[Moments, ...]
    """One where the temperature is learned, else none."""


class CompiledUpdate:
    """Takes an agent's gradient steps in its place: ``update(batch, update_actor=...)``.

    Args:
        agent: trained in place; its optimisers' state and learning rates are read and kept up to date.
        batch_size: of the batches to come. One of another size gets the plain update.

    Raises:
        RuntimeError: the compiler does not work here; the agent is as it was.
    """

    def __init__(self, agent: DSRLSACAgent, batch_size: int) -> None:
        self.agent = agent
        self._size = batch_size
        self._has_anchor = agent.anchor is not None
        self._tensors, self._leaves = _bind(agent, copies=True)
        self._bound: Tensor | None = None
        self._replays: dict[bool, _Replay] = {}
        try:
            # on copies: nothing of the agent changes
            self._graphs = {with_actor: self._compile(with_actor) for with_actor in (True, False)}
        except Exception as error:  # whatever a compiler raises
            raise RuntimeError(one_line(error)) from error

    def _compile(self, update_actor: bool) -> Callable[..., Metrics]:
        """The graph of one step: ``(*leaves of TrainingTensors, *batch, *noise) -> metrics``."""
        agent, device = self.agent, self.agent.log_alpha.device
        latent = torch.zeros(self._size, agent.layout.dim, device=device)
        features = torch.zeros(self._size, agent.feature_dim, device=device)
        scalar = torch.zeros(self._size, device=device)
        inputs: list[Any] = [
            features,
            latent,
            scalar,
            scalar.clone(),
            features.clone(),
            latent.clone(),
            latent.clone(),
        ]
        inputs = [*self._leaves, *inputs[: 7 if update_actor else 6]]
        _, structure = tree_flatten(self._tensors)
        step, names = _Step(agent), list[str]()

        def flat_step(*tensors: Tensor) -> list[Tensor]:
            count = len(self._leaves)
            state = tree_unflatten(list(tensors[:count]), structure)
            metrics = step(state, MacroBatch(*tensors[count : count + 5]), tensors[count + 5 :], update_actor)
            names[:] = metrics
            return list(metrics.values())

        # On CUDA the reordering of loops dies of an assertion in torch 2.11; the CPU's kernels gain from it.
        options: Any = None if device.type == "cpu" else {"loop_ordering_after_fusion": False}
        traced = make_fx(flat_step, tracing_mode="fake")(*inputs)
        if device.type == "cpu" and faster_here(torch.cpu.get_capabilities()):
            use_onednn(traced)
        with tracing(TracingContext(FakeTensorMode(shape_env=ShapeEnv()))):  # without, nothing is kept on disk
            graph = torch._inductor.compile(traced, inputs, options=options)
        graph(*inputs)  # what cannot be loaded fails here
        if device.type == "cuda":
            _check_recording(graph, self._leaves, inputs[len(self._leaves) :])

        def run(*tensors: Tensor) -> Metrics:
            return dict(zip(names, graph(*tensors), strict=True))

        def run_recorded(*tensors: Tensor) -> Metrics:
            count = len(self._leaves)
            if update_actor not in self._replays:
                self._replays[update_actor] = _Replay(graph, tensors[:count])
            return dict(zip(names, self._replays[update_actor](tensors[count:]), strict=True))

        return run_recorded if device.type == "cuda" else run

    def __call__(self, batch: MacroBatch, *, update_actor: bool = True) -> Metrics:
        """One gradient step; arguments and metrics are those of ``DSRLSACAgent.update``."""
        agent = self.agent
        if len(batch.reward) != self._size or (agent.anchor is not None) != self._has_anchor:
            return agent.update(batch, update_actor=update_actor)
        bound = self._first_moment()
        if bound is None or bound is not self._bound:  # the first step, or the optimisers' state was loaded anew
            self._tensors, self._leaves = _bind(agent, copies=False)
            self._bound = self._first_moment()
            self._replays.clear()  # they write to the tensors of before
        tensors = self._tensors
        tensors.actor_moments.lr.fill_(agent.actor_optimizer.param_groups[0]["lr"])
        tensors.critic_moments.lr.fill_(agent.critic_optimizer.param_groups[0]["lr"])
        noise = [agent.draw_noise(batch) for _ in range(2 if update_actor else 1)]
        fields = (batch.obs_features, batch.latent, batch.reward, batch.discount, batch.next_obs_features)
        inputs = (field.contiguous() for field in fields)
        return self._graphs[update_actor](*self._leaves, *inputs, *noise)

    def _first_moment(self) -> Tensor | None:
        optimizer = self.agent.critic_optimizer
        moment: Tensor | None = optimizer.state[optimizer.param_groups[0]["params"][0]].get("exp_avg")
        return moment


class _Replay:
    """Launches all kernels of a compiled step at once, as recorded (CUDA graphs): a step of small networks is
    otherwise as long as the host needs to launch them.

    Args:
        graph: ``(*state, *inputs) -> metrics``; changes ``state`` in place.
        state: tensors that it is recorded with; they keep their addresses.
    """

    def __init__(self, graph: Callable[..., Sequence[Tensor]], state: Sequence[Tensor]) -> None:
        self._graph, self._state = graph, state
        self._recording: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensor] = []
        self._metrics = torch.empty(0)

    def __call__(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """Take one step. The first one is not recorded: it allocates what stays."""
        if not self._inputs:
            self._inputs = [tensor.clone() for tensor in inputs]
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                metrics = self._graph(*self._state, *self._inputs)
            torch.cuda.current_stream().wait_stream(stream)
            return metrics
        for own, tensor in zip(self._inputs, inputs, strict=True):
            own.copy_(tensor)
        if self._recording is None:
            self._recording = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._recording):  # records and computes nothing
                self._metrics = torch.stack(list(self._graph(*self._state, *self._inputs)))
        self._recording.replay()
        return self._metrics.clone().unbind()  # the next replay writes over them


def _check_recording(
    graph: Callable[..., Sequence[Tensor]], state: Sequence[Tensor], inputs: list[Tensor]
) -> None:
    """Raise RuntimeError where recorded kernels compute something else than the graph. Changes ``state``."""
    apart = [tensor.clone() for tensor in state]
    replay = _Replay(graph, state)
    for _ in range(3):  # one step before the recording, two replays of it
        found, expected = replay(inputs), graph(*apart, *inputs)
        pairs = zip((*found, *state), (*expected, *apart), strict=True)
        if not all(torch.allclose(got, wanted, rtol=1e-3, atol=1e-4) for got, wanted in pairs):
            raise RuntimeError("the kernels recorded for CUDA compute something else than the step they record")


class _Step:
    """The function that is compiled. Its networks are copies, which only say what is computed: while it is traced
    others stand in the place of their weights, and the agent may be saved at any moment."""

    def __init__(self, agent: DSRLSACAgent) -> None:
        self.agent = copy.copy(agent)
        self.agent._modules = {name: copy.deepcopy(module) for name, module in agent._modules.items()}

    def __call__(
        self, tensors: TrainingTensors, batch: MacroBatch, noise: Sequence[Tensor], update_actor: bool
    ) -> Metrics:
        agent = self.agent
        alpha, anchor = tensors.log_alpha.exp(), agent.anchor

        def networks(actor: Weights, online: Weights) -> Networks:
            return Networks(
                lambda s: functional_call(agent.actor, actor, (s,)),
                lambda s, w: functional_call(agent.critic.online, online, (s, w)),
                lambda s, w: functional_call(agent.critic.target, tensors.target, (s, w)),
                alpha,
                (lambda s: functional_call(anchor, tensors.anchor, (s,))) if anchor is not None else None,
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
            for moments in tensors.temperature_moments:
                slope = agent.cost_target - cost.mean()  # of temperature_loss
                _adam_step({"": tensors.log_alpha}, {"": slope}, moments)
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


def _bind(agent: DSRLSACAgent, *, copies: bool) -> tuple[TrainingTensors, list[Tensor]]:
    """The agent's own tensors, without gradients, or copies of them; and the same as the graph takes them."""

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

    tensors = TrainingTensors(
        weights(agent.actor),
        weights(agent.critic.online),
        weights(agent.critic.target),
        weights(agent.anchor) if agent.anchor is not None else {},
        own(agent.log_alpha),
        moments(agent.actor_optimizer, 0),
        moments(agent.critic_optimizer, 0),
        (moments(agent.actor_optimizer, 1),) if agent.log_alpha.requires_grad else (),
    )
    return tensors, tree_flatten(tensors)[0]


def _adam_state(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Any]:
    """The state of one parameter, made as Adam makes it before its first step where there is none."""
    state: dict[str, Any] = optimizer.state[parameter]
    if not state:
        state["step"] = torch.zeros((), device=parameter.device)
        state["exp_avg"] = torch.zeros_like(parameter)
        state["exp_avg_sq"] = torch.zeros_like(parameter)
    return state
