"""What to expect from steering a base policy: sentences that follow from a probe's numbers by fixed rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dsrl_offpolicy.evaluation.noise_effect import NoiseEffect
from dsrl_offpolicy.evaluation.paired_looks import ERROR_RATE, Compared

STILL = 1e-6
"""Share of the actions' range below which nothing moves."""
HARDLY = 0.005
"""The same, below which a movement is small: half a per cent."""
LITTLE = 0.05
"""Share of the movement by all rows of the noise that may come from rows that are not executed, to be little."""
CEILING = 0.95
"""Success of the prior from which on little is left to gain."""
UNEVEN = 1e-3
"""Difference between a batch and one by one above which results depend on the number of environments."""


@dataclass(frozen=True)
class Expectation:
    """A sentence or two, and the name of the rule that wrote them."""

    rule: str
    text: str


def expectations(
    effect: NoiseEffect,
    prior: Compared,
    rows: Mapping[str, Compared],
    inversion: Mapping[str, float] | str | None = None,
) -> list[Expectation]:
    """Return what the numbers of a probe say about steering, most important first.

    Args:
        effect: of noise on actions.
        prior: the base policy on all starts.
        rows: other latents by name, compared with it.
        inversion: ``Inversion.report()``, or why there is none, or None where nobody asked.
    """
    if effect.all_rows < STILL:
        text = (
            f"Noise moves nothing that is executed: over {effect.states} observations and {effect.noises} "
            "noises the actions were the same. Steering cannot help; check that the policy starts from the "
            "noise it is given."
        )
        return [Expectation("ignores_noise", text)]
    found = [_success(prior, rows)]
    if effect.spread < HARDLY:
        text = (
            f"Noise hardly moves the actions: by {100 * effect.spread:.2g} % of their range. There is little to "
            "choose from."
        )
        found.append(Expectation("hardly_moves", text))
    found += _rows(effect)
    if effect.batch_against_single > UNEVEN:
        text = (
            f"A batch and single observations decode up to {effect.batch_against_single:.2g} apart: success "
            "depends on num_envs, so keep it the same wherever numbers are compared."
        )
        found.append(Expectation("uneven_batches", text))
    if inversion is not None:
        found.append(_inversion(inversion))
    return found


def _success(prior: Compared, rows: Mapping[str, Compared]) -> Expectation:
    n, rate = prior.episodes, prior.success
    assert rate.low is not None and rate.high is not None
    above = {name: row for name, row in rows.items() if row.standing == "above"}
    below = [name for name, row in rows.items() if row.standing == "below"]
    if not any(row.successes for row in (prior, *rows.values())):
        text = (
            f"Nothing succeeded: the prior in none of {n} episodes (its rate may be up to {100 * rate.high:.0f} "
            f"%), and none of {len(rows)} constant noises tried. Stage 2 with sparse rewards learns nothing "
            "before it meets a success; no noise tried here brings one. Collect better demonstrations, or "
            "train the base for longer; with a dense reward Stage 2 has something to learn from."
        )
        return Expectation("never_succeeds", text)
    if above:
        name = max(above, key=lambda name: above[name].success.value)
        best = above[name]
        text = (
            f"A constant noise alone is better than the prior: {name} succeeds in {best.successes} of "
            f"{best.episodes} episodes, the prior in {prior.successes} of {n}, on the same starts (with at most "
            f"{100 * ERROR_RATE:.0f} % of being wrong in this). `dsrl stage1 --method golden_ticket` gives that "
            "without learning, so Stage 2 should pass it to be worth its cost. The rate of a constant that was "
            "found by looking flatters it; `dsrl eval --constants` reports on other starts than it chooses on."
        )
        return Expectation("constant_above", text)
    if rate.value >= CEILING:
        text = (
            f"The base succeeds in {prior.successes} of {n} episodes: there is little to gain, by its interval "
            f"at most {100 * (1 - rate.low):.0f} points."
        )
        return Expectation("near_ceiling", text)
    if below:
        verb = "is" if len(below) == 1 else "are"
        text = (
            f"Success depends on the noise: {', '.join(below)} {verb} worse than the prior, and no constant is "
            "shown to be better. Whether choosing the noise in each state gains anything is what Stage 2 finds "
            "out; these numbers do not promise it."
        )
        return Expectation("constant_below", text)
    text = (
        f"No constant noise is shown to be better or worse than the prior ({prior.successes} of {n}). That "
        "promises nothing and rules nothing out: Stage 2 chooses the noise in each state, which no constant "
        "does. More `--episodes` and `--constants` find smaller differences."
    )
    return Expectation("nothing_shown", text)


def _rows(effect: NoiseEffect) -> list[Expectation]:
    if effect.other_rows is None:
        return []
    share = effect.other_rows / effect.all_rows
    if effect.other_rows < STILL:
        text = "Noise rows that are not executed do not move what is: `--steer_mode act_horizon` loses nothing."
        return [Expectation("other_rows_idle", text)]
    if share <= LITTLE:
        text = (
            f"Noise rows that are not executed move what is by {100 * share:.1f} % of what all rows do: "
            "`--steer_mode act_horizon` loses little."
        )
        return [Expectation("other_rows_little", text)]
    text = (
        f"Noise rows that are not executed move what is by {100 * share:.0f} % of what all rows do: "
        "`--steer_mode act_horizon` leaves that to chance, `full` (the default) steers it."
    )
    return [Expectation("other_rows_matter", text)]


def _inversion(inversion: Mapping[str, float] | str) -> Expectation:
    if isinstance(inversion, str):
        return Expectation("no_inversion", f"Demonstrations cannot serve as noise: {inversion}.")
    windows, left_out = int(inversion["windows"]), int(inversion["left_out"])
    inverted = f"{windows - left_out} of {windows} windows of the demonstrations invert to noise"
    if 2 * left_out > windows:
        text = (
            f"Only {inverted}: the policy does not make what was demonstrated. Check that it was trained on "
            "such demonstrations, or raise `--inversion_tolerance`."
        )
        return Expectation("inverts_badly", text)
    text = f"{inverted[0].upper()}{inverted[1:]}: they can serve Stage 2 (`--demo_path`)."
    return Expectation("inverts", text)
