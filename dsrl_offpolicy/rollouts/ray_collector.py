"""The collector whose environments and acting policy are Ray actors: ``launch`` permits, ``collect`` receives."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

import dsrl_offpolicy
from dsrl_offpolicy.contracts import BasePolicy, LatentSource, MacroTransitions, PolicyInfo
from dsrl_offpolicy.envs.family import MacroVectorEnv
from dsrl_offpolicy.envs.processes import MOST_LOSSES
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.models.latent_layout import LatentLayout
from dsrl_offpolicy.models.latent_sources import PolicySource
from dsrl_offpolicy.rollouts.collector import Collected
from dsrl_offpolicy.rollouts.ray_runner import EnvRunner, Happened, Permit, Published, RunnerFacts
from dsrl_offpolicy.rollouts.ray_server import PolicyServer
from dsrl_offpolicy.seeding import FIRST_EVALUATION_SEED

STARTING = 600.0
"""Seconds that actors may take to start, and to build their environments or load their policy."""
LOOKING = 1.0
"""Seconds between two looks at signals and at runners that hang."""


@dataclass(frozen=True)
class RayPlan:
    """What a :class:`RayCollector` is made of.

    Attributes:
        make_env: builds the environments of a runner, given its number; picklable, called where the runner is.
        envs: environments of each runner.
        make_base: loads the base policy where the policy server is; picklable.
        start_seed: the seed of the episodes' starts for a life of a runner; life 0 is that of the local collector.
        clock: gradient steps taken so far.
        max_lag: macro-steps that a runner may do ahead, beyond the one on its way.
        runner_timeout: seconds that one may take.
        server_gpus: GPUs that the policy server asks Ray for.
        listen: called while runners are waited for; may raise.
    """

    make_env: Callable[[int], MacroVectorEnv]
    envs: Sequence[int]
    make_base: Callable[[], tuple[BasePolicy, torch.device]]
    start_seed: Callable[[int], int]
    clock: Callable[[], int]
    max_lag: int = 0
    runner_timeout: float = 900.0
    server_gpus: float = 0.0
    listen: Callable[[], None] = lambda: None


@dataclass
class _Runner:
    """A runner as the learner knows it."""

    index: int
    envs: int
    actor: Any
    life: int = -1
    given: int = 0
    """Permits of this life."""
    beginning: Any = None
    """Reference of the ``begin`` on its way."""
    begun_at: float = 0.0
    try_again: float | None = None
    steps: deque[tuple[Permit, Any]] = field(default_factory=deque)
    """Permits that are out, oldest first, with their references."""
    since: float = 0.0
    """When the oldest of them became the oldest."""
    losses: int = 0


class RayCollector:
    """Collect from runners that act with a policy server, one runner's macro-step at a time.

    A runner has ``1 + max_lag`` permits. With one runner and ``max_lag`` 0 every number is that of ``Collector``
    (on the CPU; the noise is the learner's). A runner that dies, hangs or cannot be reached loses the macro-step
    that it was doing: it is counted, never done again, and its episodes begin anew, in another life with starts of
    its own.

    Args:
        ray: the library, initialised.
        plan: what to make.
        info, fingerprint: of the learner's base policy; the actors' are held against them.
        layout: which part of the noise is returned as the latent.
        noise: generator of the standard-normal noise, on ``device``.
        device: where the learner stores transitions.
    """

    env = None
    """No environment is here to be lent."""

    def __init__(
        self,
        ray: Any,
        plan: RayPlan,
        info: PolicyInfo,
        fingerprint: str,
        layout: LatentLayout,
        *,
        noise: torch.Generator,
        device: torch.device | str = "cpu",
    ) -> None:
        self._ray, self._plan, self._info, self._fingerprint = ray, plan, info, fingerprint
        self.layout, self.noise, self.device = layout, noise, torch.device(device)
        forever = {"max_restarts": -1, "max_task_retries": 0, "num_cpus": 1}
        server, runner = ray.remote(**forever)(PolicyServer), ray.remote(**forever)(EnvRunner)
        self.server = server.options(num_gpus=plan.server_gpus).remote(plan.make_base, layout, sum(plan.envs))
        self.runners = [
            _Runner(i, envs, runner.remote(i, plan.make_env, FIRST_EVALUATION_SEED))
            for i, envs in enumerate(plan.envs)
        ]
        self._turns = list(self.runners)
        self.facts: dict[int, RunnerFacts] = {}
        self._lives = 0
        self._started = False
        self._published = Published(-1, -1, [])
        self._kind: Any = None
        self._begin_measuring()

    def launch(self, source: LatentSource) -> None:
        """Tell the runners who chooses latents, and give every one the permits that it may have."""
        if not self._started:
            self._start()
        version, kind = self._plan.clock(), (type(source), getattr(source, "deterministic", None))
        if (version, kind) != (self._published.version, self._kind):
            copied = source.copied("cpu") if isinstance(source, PolicySource) else source
            self._kind = kind
            self._published = Published(self._published.number + 1, version, [self._ray.put(copied)])
        for runner in self.runners:
            self._permit(runner)

    def collect(self) -> Collected:
        """Wait for any runner's macro-step and return what happened, or that it is lost.

        Raises:
            NonFiniteError: observations or actions that are not finite.
            InputError: a runner that is lost again and again, cannot begin, or has other dimensions.
        """
        asked = time.monotonic()
        while True:
            self._plan.listen()
            runner = self._ready()
            collected = self._receive(runner) if runner is not None else None
            if collected is not None:
                self._waiting += time.monotonic() - asked
                return collected

    def state_dict(self) -> dict[str, Any]:
        """Return what a new collector goes on from. Episodes in flight are not in it."""
        return {"noise": self.noise.get_state(), "lives": self._lives}

    def load_state_dict(self, state: Mapping[str, Any]) -> bool:
        """Go on with the noise, and with lives that no runner of the saved run had. Returns False: all episodes
        begin anew, and ``launch`` is next."""
        self.noise.set_state(state["noise"].cpu())
        self._lives = state["lives"]
        return False

    def lend(self) -> Collected:
        """Refuse: evaluations have environments of their own."""
        raise NotImplementedError("environments in actors are not lent")

    take_back = lend

    def metrics(self) -> dict[str, float]:
        """Return what happened since the last call: the staleness of what was stored, in gradient steps, and who
        waited for whom, as shares of the time."""
        elapsed = max(time.monotonic() - self._measured_from, 1e-9)
        busy = max(self._runners_waited + self._runners_took, 1e-9)
        found = {
            "staleness_mean": sum(self._staleness) / max(len(self._staleness), 1),
            "staleness_max": float(max(self._staleness, default=0)),
            "learner_waiting": min(self._waiting / elapsed, 1.0),
            "runners_waiting": self._runners_waited / busy,
            "policy_server_lost": float(self._server_losses),
        }
        self._begin_measuring()
        return found

    def close(self) -> None:
        """End the actors."""
        for actor in (*(runner.actor for runner in self.runners), self.server):
            self._ray.kill(actor)

    def _begin_measuring(self) -> None:
        self._measured_from = time.monotonic()
        self._staleness: list[int] = []
        self._waiting = self._runners_waited = self._runners_took = 0.0
        self._server_losses = 0

    def _start(self) -> None:
        """Wait until the policy server and every runner stand."""
        fingerprint = self._first_answer(self.server.fingerprint.remote(), "the policy server")
        if fingerprint != self._fingerprint:
            raise InputError("policy server: its base policy is not the learner's; give every node the same files")
        for runner in self.runners:
            self._begin(runner)
        for runner in self.runners:
            self._greet(runner, self._first_answer(runner.beginning, f"runner {runner.index}"))
        self._started = True

    def _first_answer(self, reference: Any, who: str) -> Any:
        ray = self._ray
        try:
            return ray.get(reference, timeout=STARTING)
        except ray.exceptions.GetTimeoutError:
            total, free = ray.cluster_resources(), ray.available_resources()
            raise InputError(
                f"ray: {who} did not start within {STARTING:.0f} s: the cluster has {total.get('CPU', 0):g} CPUs "
                f"({free.get('CPU', 0):g} free) and {total.get('GPU', 0):g} GPUs; every actor takes a CPU"
            ) from None
        except ray.exceptions.RayError as error:
            raise self._told(error, who) from error

    def _told(self, error: Any, who: str) -> InputError:
        """What an actor's code raised, as an error of one line."""
        cause = getattr(error, "cause", None)
        if isinstance(cause, InputError):
            return cause
        said = " ".join(str(cause if cause is not None else error).split())[:300]
        return InputError(f"ray: {who}: {type(cause if cause is not None else error).__name__}: {said}")

    def _begin(self, runner: _Runner) -> None:
        """Begin another life of a runner; its permits are void."""
        runner.life, self._lives = self._lives, self._lives + 1
        runner.given = 0
        runner.steps.clear()
        runner.try_again = None
        runner.begun_at = time.monotonic()
        self._send_begin(runner)

    def _send_begin(self, runner: _Runner) -> None:
        runner.try_again = None
        seed = self._plan.start_seed(runner.life)
        runner.beginning = runner.actor.begin.remote(runner.life, seed, self.server)

    def _greet(self, runner: _Runner, facts: RunnerFacts) -> None:
        """Hold what a runner tells against the base policy and this package."""
        info, who = self._info, f"runner {runner.index} on {facts.host}"
        if facts.version != dsrl_offpolicy.__version__:
            raise InputError(
                f"{who}: expected dsrl_offpolicy {dsrl_offpolicy.__version__} as the learner has, got "
                f"{facts.version}"
            )
        for what, expected, found in (
            ("observations", (info.obs_horizon, info.state_dim), facts.state_shape),
            ("chunks", (info.act_horizon, info.action_dim), facts.action_shape),
        ):
            if expected != found:
                raise InputError(f"{who}: expected {what} {expected} as the base policy has, got {found}")
        self.facts[runner.index] = facts
        runner.beginning = None

    def _permit(self, runner: _Runner) -> None:
        """Give a runner the permits that it may have."""
        if runner.beginning is not None or runner.try_again is not None:
            return
        while len(runner.steps) <= self._plan.max_lag:
            shape = (runner.envs, *self._info.latent_shape)
            noise = torch.randn(shape, generator=self.noise, device=self.device).cpu().numpy()
            permit = Permit(runner.life, runner.given, noise, self._published)
            if not runner.steps:
                runner.since = time.monotonic()
            runner.steps.append((permit, runner.actor.step.remote(permit)))
            runner.given += 1

    def _ready(self) -> _Runner | None:
        """The runner that has something to tell and was heard longest ago; None for a while without one."""
        by_reference, now = {}, time.monotonic()
        for runner in self._turns:
            if runner.try_again is not None and now >= runner.try_again:
                self._send_begin(runner)
            self._end_if_hanging(runner, now)
            reference = runner.beginning or (runner.steps[0][1] if runner.steps else None)
            if reference is not None:
                by_reference[reference] = runner
        if not by_reference:
            time.sleep(0.05)
            return None
        ready, _ = self._ray.wait(list(by_reference), num_returns=1, timeout=LOOKING)
        if not ready:
            return None
        runner = by_reference[ready[0]]
        self._turns.remove(runner)
        self._turns.append(runner)
        return runner

    def _end_if_hanging(self, runner: _Runner, now: float) -> None:
        if runner.beginning is not None or not runner.steps or now - runner.since <= self._plan.runner_timeout:
            return
        answered, _ = self._ray.wait([runner.steps[0][1]], timeout=0)
        if not answered:  # and not only unheard, because the learner was busy
            print(
                f"note: runner {runner.index} took more than {self._plan.runner_timeout:g} s; it is ended",
                file=sys.stderr,
            )
            runner.since = now
            self._ray.kill(runner.actor, no_restart=False)

    def _receive(self, runner: _Runner) -> Collected | None:
        """What a runner has to tell; None if it has only begun."""
        errors = self._ray.exceptions
        if runner.beginning is not None:
            self._receive_beginning(runner)
            return None
        permit, reference = runner.steps[0]
        try:
            happened: Happened = self._ray.get(reference)
        except errors.RayTaskError as error:
            raise self._told(error, f"runner {runner.index}") from error
        except errors.RayError as error:
            return self._lost(runner, type(error).__name__)
        assert (happened.life, happened.seq) == (permit.life, permit.seq), "a runner answers its permits in order"
        runner.steps.popleft()
        runner.since, runner.losses = time.monotonic(), 0
        self._staleness.append(self._plan.clock() - happened.version)
        self._runners_waited += happened.waited
        self._runners_took += happened.took
        self._server_losses += happened.server_losses
        columns = {name: torch.tensor(value, device=self.device) for name, value in happened.columns.items()}
        return Collected(finished=happened.finished, lost=happened.lost, intervened=happened.intervened, **columns)

    def _receive_beginning(self, runner: _Runner) -> None:
        errors = self._ray.exceptions
        try:
            facts = self._ray.get(runner.beginning)
        except errors.RayTaskError as error:
            raise self._told(error, f"runner {runner.index}") from error
        except errors.RayError as error:
            if time.monotonic() - runner.begun_at > STARTING:
                raise InputError(
                    f"ray: runner {runner.index} was lost and did not come back within {STARTING:.0f} s"
                ) from error
            runner.beginning, runner.try_again = None, time.monotonic() + 0.5
            return
        self._greet(runner, facts)
        self._permit(runner)

    def _lost(self, runner: _Runner, reason: str) -> Collected:
        """Count the macro-step that a runner was doing, and let it begin anew."""
        runner.losses += 1
        if runner.losses > MOST_LOSSES:
            raise InputError(f"ray: runner {runner.index} was lost {runner.losses} times in a row: {reason}")
        print(
            f"note: runner {runner.index} is lost ({reason}); it begins anew, {runner.envs} macro-steps are lost",
            file=sys.stderr,
        )
        self._begin(runner)
        return Collected(**self._no_transitions(), finished=[], lost=runner.envs, intervened=0)

    def _no_transitions(self) -> dict[str, Tensor]:
        info, layout = self._info, self.layout
        feature = (info.feature_dim,)
        width = {"obs_features": feature, "next_obs_features": feature, "latent": (layout.dim,)}
        kinds = {"terminated": torch.bool, "truncated": torch.bool, "n_steps": torch.int32}
        return {
            f.name: torch.zeros(
                (0, *width.get(f.name, ())), dtype=kinds.get(f.name, torch.float32), device=self.device
            )
            for f in fields(MacroTransitions)
        }
