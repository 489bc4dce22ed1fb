"""``dsrl probe``: does a base policy depend on its noise at all, and how much is there to gain?"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from dsrl_offpolicy.analysis.expectations import Expectation, expectations
from dsrl_offpolicy.base_policies.inversion import invert_windows
from dsrl_offpolicy.configs.jobs import ProbeConfig
from dsrl_offpolicy.contracts import BasePolicy, LatentSource
from dsrl_offpolicy.envs.family import MacroVectorEnv
from dsrl_offpolicy.envs.vector import make_vector_env
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.evaluation.episodes import EpisodeOutcome, probing_seeds, run_episodes
from dsrl_offpolicy.evaluation.noise_effect import NoiseEffect, ObservationKeeper, measure_noise_effect
from dsrl_offpolicy.evaluation.paired_looks import STANDINGS, Compared, compare_paired
from dsrl_offpolicy.models.latent_layout import LatentLayout
from dsrl_offpolicy.models.latent_sources import constant_source, drawn_constants, prior_source
from dsrl_offpolicy.rollouts.base_env import base_env_spec, check_fit
from dsrl_offpolicy.seeding import derive_seed, torch_generator
from dsrl_offpolicy.tracking.progress import ProgressReport
from dsrl_offpolicy.train.command import command
from dsrl_offpolicy.train.demonstrations import encode_windows, load_policy_windows
from dsrl_offpolicy.train.offline_data import check_invertible
from dsrl_offpolicy.train.start import load_base, note_other_task, rewards_of, start_torch

PRIOR = "base (prior noise)"


@dataclass(frozen=True)
class Probe:
    """What was found.

    Attributes:
        effect: of noise on actions.
        prior: the base policy's episodes.
        rows: those of w = 0 and constants.
        inversion: its report, or why there is none; None without demonstrations.
    """

    effect: NoiseEffect
    prior: Compared
    rows: Mapping[str, Compared]
    inversion: dict[str, float] | str | None

    @property
    def env_steps(self) -> int:
        """Of all episodes."""
        return sum(row.env_steps for row in (self.prior, *self.rows.values()))

    @property
    def page(self) -> list[Expectation]:
        """What to expect from steering."""
        return expectations(self.effect, self.prior, self.rows, self.inversion)

    def plain(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "noise_effect": asdict(self.effect),
            "success": {name: _plain(row) for name, row in {PRIOR: self.prior, **self.rows}.items()},
            "env_steps": self.env_steps,
            "inversion": self.inversion,
            "expect": [asdict(sentence) for sentence in self.page],
        }


def run(config: ProbeConfig) -> Probe:
    """Probe and print what was found. Returns it.

    Raises:
        InputError: what cannot be loaded or does not fit together; a policy that is not deterministic.
    """
    device = start_torch(config)
    base = load_base(config, device)
    env_spec = base_env_spec(base.info, rewards_of(base), config, end_on_success=True)
    check_fit(base.info, env_spec)
    note_other_task(base.info, config.env_id)
    inversion = _invert(config, base, device) if config.demo_path is not None else None
    env = make_vector_env(env_spec, config.num_envs)
    try:
        found = _probe(config, base, env, inversion, device)
    finally:
        env.close()
    if config.json:
        print(json.dumps({"env_id": config.env_id, **found.plain()}, indent=2))
    else:
        _print(config, found)
    return found


def _invert(config: ProbeConfig, base: BasePolicy, device: torch.device) -> dict[str, float] | str:
    """The inversion's numbers, or why there are none."""
    assert config.demo_path is not None
    rows, width = base.info.latent_shape
    layout = LatentLayout("full", rows, width, base.info.executed_rows, config.action_magnitude)
    rewards = replace(rewards_of(base), reward_mode="sparse")  # those of the file are not asked for
    demos, windows = load_policy_windows(config, config.demo_path.expanduser(), base, rewards)
    try:
        check_invertible(base, layout, device, flag="demo_path", instead="Stage 2 works without them")
    except InputError as error:
        return str(error).removeprefix("demo_path: ")
    features = encode_windows(demos, windows.rows, base, device)
    chunks = torch.as_tensor(windows.chunks, dtype=torch.float32, device=device)
    generator = torch_generator(config.seed, "inversion", device)
    found = invert_windows(base, features, chunks, layout, config.inversion_tolerance, generator)
    if not bool(found.error.isfinite().any()):
        return "the inversion diverges on every window"
    return found.report()


def _probe(
    config: ProbeConfig,
    base: BasePolicy,
    env: MacroVectorEnv,
    inversion: dict[str, float] | str | None,
    device: torch.device,
) -> Probe:
    candidates = _constants(config, base, device)
    most = config.episodes * (1 + len(candidates))
    with ProgressReport("probe", most, "episodes at most") as progress:
        keeper = ObservationKeeper(base, config.states, derive_seed(config.seed, "states"))
        starts = probing_seeds(config.episodes)
        prior = Compared(run_episodes(env, keeper, prior_source(), starts, device))
        done = prior.episodes
        progress.report(done, {PRIOR: prior.success.value})
        generator = torch_generator(config.seed, "noises")
        effect = measure_noise_effect(base, keeper.kept, config.noises, generator, device)

        def evaluate(source: LatentSource, seeds: Sequence[int]) -> list[EpisodeOutcome]:
            nonlocal done
            done += len(seeds)
            return run_episodes(env, base, source, seeds, device)

        def told(name: str, row: Compared) -> None:
            progress.report(done, {name: row.success.value})

        probe = Probe(effect, prior, {}, inversion)
        if probe.page[0].rule == "ignores_noise":  # every latent is the prior
            return probe
        rows = compare_paired(prior.outcomes, candidates, evaluate, told=told)
    return Probe(effect, prior, rows, inversion)


def _constants(config: ProbeConfig, base: BasePolicy, device: torch.device) -> dict[str, LatentSource]:
    """w = 0, and the constants that ``dsrl eval`` draws from the same seed."""
    shape = base.info.latent_shape
    drawn = drawn_constants(shape, config.constants, config.seed, device)
    zero = constant_source(torch.zeros(shape, device=device))
    return {"w = 0": zero, **{f"constant {i + 1}": source for i, source in enumerate(drawn)}}


def _plain(row: Compared) -> dict[str, Any]:
    return {
        "episodes": row.episodes,
        "successes": row.successes,
        **row.success.named("success_once"),
        "wins": row.wins,
        "losses": row.losses,
        "standing": row.standing,
        "env_steps": row.env_steps,
    }


def _print(config: ProbeConfig, found: Probe) -> None:
    console = Console(width=None if sys.stdout.isatty() else 115, markup=False, highlight=False)
    facts = Table(
        title=f"{config.env_id}: what the noise does to actions", show_header=False, title_justify="left"
    )
    for name, text in _facts(found):
        facts.add_row(name, text)
    success = Table(title="Success once, 95 % intervals, on the same starts", title_justify="left")
    success.add_column("noise")
    for heading in ("n", "success", "won", "lost", "against the prior", "env steps"):
        success.add_column(heading, justify="right")
    for name, row in {PRIOR: found.prior, **found.rows}.items():
        rate = row.success
        assert rate.low is not None and rate.high is not None
        cell = f"{100 * rate.value:.0f} % [{100 * rate.low:.0f}, {100 * rate.high:.0f}]"
        against = ("", "", "") if name == PRIOR else (str(row.wins), str(row.losses), STANDINGS[row.standing])
        success.add_row(name, str(row.episodes), cell, *against, f"{row.env_steps:,}")
    console.print(facts)
    console.print(success)
    console.print(
        "won, lost: starts on which this noise alone succeeds, or the prior alone. A row ends once it is decided."
    )
    console.print(f"\nWhat to expect from steering ({found.env_steps:,} env steps were spent on this)")
    for sentence in found.page:
        console.print(f"- {sentence.text}")


def _facts(found: Probe) -> list[tuple[str, str]]:
    effect = found.effect
    twice = "equal to the bit" if effect.repeated == 0 else f"up to {effect.repeated:.1e} apart"
    facts = [
        ("measured on", f"{effect.states} observations of the prior's episodes, {effect.noises} noises each"),
        ("same noise twice", twice),
        ("a batch against one by one", f"up to {effect.batch_against_single:.1e} apart"),
        ("standard deviation over noises", f"{_per_cent(effect.spread)} of the actions' range"),
        ("by action dimension", ", ".join(map(_per_cent, effect.spread_by_dimension))),
        ("moved by all rows of the noise", f"{_per_cent(effect.all_rows)} (root mean square)"),
        ("by each row alone", ", ".join(map(_per_cent, effect.by_row))),
    ]
    if effect.other_rows is not None:
        facts.append(("by rows that are not executed", _per_cent(effect.other_rows)))
    if isinstance(found.inversion, dict):
        held = found.inversion
        facts += [
            ("inversion error, median", f"{held['error_median']:.1e}"),
            ("inversion error, 90th percentile", f"{held['error_p90']:.1e}"),
            ("windows left out", f"{held['left_out']:.0f} of {held['windows']:.0f}"),
            ("noise beyond the magnitude", _per_cent(held["beyond_magnitude"])),
        ]
    return facts


def _per_cent(share: float) -> str:
    return f"{100 * share:.2g} %"


main = command(ProbeConfig, "probe.yaml", "dsrl probe")(run)

if __name__ == "__main__":
    sys.exit(main())
