"""What Stage 1 chooses from: the prior, AW-MLE's policy, cloned noises, constant latents."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dsrl_offpolicy.agents.noise_cloning import NoiseCloning, Noises, Snapshot
from dsrl_offpolicy.configs.jobs import Stage1Config
from dsrl_offpolicy.contracts import BasePolicy, LatentSource
from dsrl_offpolicy.envs.vector import make_vector_env
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.evaluation.choosing_start import choose_start
from dsrl_offpolicy.evaluation.episodes import EpisodeOutcome, run_episodes
from dsrl_offpolicy.models.latent_layout import LatentLayout
from dsrl_offpolicy.models.latent_policy import LatentPolicy, raw_log_sigma
from dsrl_offpolicy.models.latent_sources import policy_source
from dsrl_offpolicy.models.precision import use_precision
from dsrl_offpolicy.rollouts.base_env import base_env_spec
from dsrl_offpolicy.seeding import derive_seed, torch_generator
from dsrl_offpolicy.train.demonstrations import load_policy_windows
from dsrl_offpolicy.train.offline_data import NoiseDemonstrations, check_invertible, invert_demonstrations
from dsrl_offpolicy.train.run import TrainingRun
from dsrl_offpolicy.train.start import require_file, rewards_of

PRIOR = "prior"
"""The base policy as it is: the reference of every choice."""

ZERO = "w = 0"
"""The prior's mean, which needs nothing."""

CONSTANT_SIGMA = 0.5
"""Standard deviation, before the squash, with which Stage 2 explores around a constant."""


def demonstrations_path(config: Stage1Config) -> Path | None:
    """Return the file of demonstrations, which constants alone do without.

    Raises:
        InputError: it is needed and not given.
    """
    if config.method == "golden_ticket":
        return None
    return require_file(config.demo_path, "demo_path", "a file of demonstrations (dsrl demos writes one)")


def fresh_policy(
    base: BasePolicy, layout: LatentLayout, config: Stage1Config, device: torch.device
) -> LatentPolicy:
    """Return the latent policy that is the prior."""
    return LatentPolicy(base.info.feature_dim, config.actor_hidden_dims, layout).to(device)


def constant_policies(
    base: BasePolicy, layout: LatentLayout, config: Stage1Config, device: torch.device
) -> dict[str, LatentPolicy]:
    """Return a policy with ``mu(s) = c`` for each of ``config.constants`` draws c of the prior, by name."""
    generator = torch_generator(config.seed, "golden_tickets", device)
    found = {}
    for number in range(config.constants):
        noise = torch.randn((1, *base.info.latent_shape), generator=generator, device=device)
        policy = fresh_policy(base, layout, config, device)
        head = policy.net[-1]
        assert isinstance(head, nn.Linear)
        with torch.no_grad():
            head.bias[: layout.dim] = layout.select(noise)[0]
            head.bias[layout.dim :] = raw_log_sigma(CONSTANT_SIGMA)
        found[f"constant {number + 1}"] = policy
    return found


def noise_demonstrations(
    config: Stage1Config, path: Path, base: BasePolicy, layout: LatentLayout, device: torch.device
) -> NoiseDemonstrations:
    """Invert the demonstrations in ``path``.

    Raises:
        InputError: they do not fit the policy, or cannot be inverted.
    """
    rewards = replace(rewards_of(base).known(), reward_mode="sparse")  # nothing here reads them
    demos, windows = load_policy_windows(config, path, base, rewards)
    return invert_demonstrations(
        demos, windows, base, layout, tolerance=config.inversion_tolerance, seed=config.seed, device=device
    )


def cloned_policies(
    noise: NoiseDemonstrations, base: BasePolicy, layout: LatentLayout, config: Stage1Config, device: torch.device
) -> list[Snapshot]:
    """Clone the noises of successful episodes; returns the policies after an eighth, a quarter, a half and all of
    ``config.cloning_iters`` gradient steps."""
    rows = noise.transitions
    episodes = noise.episode[noise.successful].unique()
    if not len(episodes):
        raise InputError("demo_path: expected a window of a demonstration that succeeds, all of them are left out")
    held = min(max(1, round(len(episodes) * config.held_out_fraction)), len(episodes) - 1)
    is_held = torch.isin(noise.episode, episodes[len(episodes) - held :])
    noises = Noises(rows.obs_features, rows.latent)
    learner = NoiseCloning(
        base.info.feature_dim, layout,
        hidden_dims=config.actor_hidden_dims, lr=config.cloning_lr, batch_size=config.batch_size,
        generator=torch_generator(config.seed, "noise_cloning", device), device=device,
    )  # fmt: skip
    use_precision(learner.policy, config.precision)
    steps = sorted({max(1, config.cloning_iters // part) for part in (8, 4, 2, 1)})
    kept = noise.successful
    return list(learner.snapshots(noises.select(kept & ~is_held), noises.select(kept & is_held), steps))


class StartChoice:
    """The candidates of ``--method``, and the evaluation that chooses among them and the prior.

    Args:
        config: of the job; its method is not ``aw_mle``.
        base: the policy.
        layout: which part of the noise is steered.
        device: where it computes.

    Raises:
        InputError: noises to be cloned of a policy that cannot be inverted, or Q^W to be distilled without Q^A.
    """

    def __init__(self, config: Stage1Config, base: BasePolicy, layout: LatentLayout, device: torch.device) -> None:
        self.config, self.base, self.layout, self.device = config, base, layout, device
        if config.distill_q and (config.method != "auto" or base.critic is None):
            raise InputError("distill_q: expected method aw_mle or auto and a base policy with Q^A, to distil it")
        if config.keep_aw_mle and config.method != "auto":
            raise InputError(f"keep_aw_mle: expected method auto, which has other starts too, got {config.method}")
        self.states: Tensor | None = None
        self.clones = config.method == "noise_cloning" or (config.method == "auto" and not config.keep_aw_mle)
        if self.clones:
            with self._optional():
                check_invertible(base, layout, device, flag="method", instead="golden_ticket works without")

    @contextmanager
    def _optional(self) -> Iterator[None]:
        """Inside, what keeps noises from being cloned is told, and only ends a job that asks for nothing else."""
        try:
            yield
        except InputError as error:
            if self.config.method == "noise_cloning":
                raise
            self.clones = False
            print(f"note: auto does without noise cloning: {error}", file=sys.stderr)

    def candidates(self, trained: LatentPolicy | None) -> tuple[dict[str, LatentPolicy], dict[str, Any]]:
        """Return the policies by name, the prior first, and what is to be told of those that are cloned.

        Args:
            trained: AW-MLE's policy.
        """
        config = self.config
        prior = fresh_policy(self.base, self.layout, config, self.device)
        found, told = {PRIOR: prior, ZERO: prior}, dict[str, Any]()
        if trained is not None:
            found["aw_mle"] = trained
        if self.clones:
            with self._optional():
                assert config.demo_path is not None
                path = config.demo_path.expanduser()
                noise = noise_demonstrations(config, path, self.base, self.layout, self.device)
                self.states = noise.transitions.obs_features
                snapshots = cloned_policies(noise, self.base, self.layout, config, self.device)
                found |= {f"noise_cloning, {s.steps} steps": s.policy for s in snapshots}
                likelihoods = {s.steps: s.held_out_nll for s in snapshots if math.isfinite(s.held_out_nll)}
                told = {"inversion": noise.report, "held_out_nll": likelihoods}
        if config.method in ("golden_ticket", "auto"):
            found |= constant_policies(self.base, self.layout, config, self.device)
        return found, told

    def choose(
        self, run: TrainingRun, trained: LatentPolicy | None, step: int
    ) -> tuple[LatentPolicy, dict[str, Any]]:
        """Evaluate the candidates and return the best one, with what the summary tells of the choice.

        The prior is judged as it samples, everything else by its mean.

        A signal ends the run, which chooses anew when it resumes.
        """
        config = self.config
        with torch.random.fork_rng(devices=[]):  # a run that is stopped while it chooses draws them again
            torch.manual_seed(derive_seed(config.seed, "starts"))
            policies, told = self.candidates(trained)
        run.end_if_stopped()
        sources = {name: policy_source(policy, deterministic=name != PRIOR) for name, policy in policies.items()}
        spec = base_env_spec(self.base.info, rewards_of(self.base), config, end_on_success=True)
        with closing(make_vector_env(spec, config.num_envs)) as env:

            def evaluate(source: LatentSource, seeds: Sequence[int]) -> list[EpisodeOutcome]:
                return run_episodes(env, self.base, run.listening(source), seeds, self.device)

            choice = choose_start(
                sources, PRIOR, evaluate, first=config.screening_episodes, last=config.choosing_episodes,
                kept="aw_mle" if config.keep_aw_mle else None,
            )  # fmt: skip
        trials = choice.rows()
        for name in dict.fromkeys((PRIOR, choice.name)):
            row = trials[name]
            low, high = 100 * row["success_once_low"], 100 * row["success_once_high"]
            print(
                f"stage1: {name}: {100 * row['success_once']:.0f} % [{low:.0f}, {high:.0f}] "
                f"of {row['episodes']:.0f} episodes",
                file=sys.stderr,
            )
        print(f"stage1: starts from {choice.name}; choosing took {choice.env_steps} env steps", file=sys.stderr)
        numbers = {f"inversion_{name}": value for name, value in told.get("inversion", {}).items()}
        axes = {"gradient_steps": step}
        run.tracker.log("diag", {**numbers, "choosing_env_steps": choice.env_steps}, axes)
        found = {"chosen": choice.name, "env_steps": choice.env_steps, "trials": trials, **told}
        return policies[choice.name], found
