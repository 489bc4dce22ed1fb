"""Whether a run is healthy: the seed document's debugging checklist as verdicts (docs/run_health.md)."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from dsrl_offpolicy.analysis.run_folder import StageConfig
from dsrl_offpolicy.analysis.stage2_health import MOVED_KL, check_stage2
from dsrl_offpolicy.analysis.verdict import (
    ENOUGH_ROWS,
    Q_SLACK,
    Row,
    Verdict,
    judge,
    number,
    quarters,
    range_of_returns,
    too_early,
)
from dsrl_offpolicy.configs.jobs import PPOConfig, Stage0Config, Stage1Config, Stage2LoopConfig
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.files.metrics import rows_of
from dsrl_offpolicy.files.plain import is_finite_number

LEAST_EFFECTIVE = 0.1
"""Share of the candidates below which the weights have collapsed onto a few."""
NLL_RISE = 0.05
"""Share by which the likelihood loss may rise."""

STAGE0_METRICS = ("q_mean", "flow_loss")
STAGE1_METRICS = ("eff_num", "corr_A_logprob", "nll_loss", "kl_loss")


def check_run(config: StageConfig, rows: Sequence[Row], summary: Mapping[str, Any]) -> list[Verdict]:
    """The verdicts on a run of any stage.

    Args:
        config: its settings.
        rows: of ``metrics.jsonl``, so far.
        summary: ``summary.json``; empty while the run is not at its end.

    Raises:
        InputError: a run of PPO, for which there are no checks.
    """
    if isinstance(config, PPOConfig):
        raise InputError("RUN_DIR: expected a run of Stage 0, 1 or 2, there are no checks for one of PPO")
    if isinstance(config, Stage2LoopConfig):
        return check_stage2(config, rows)
    if isinstance(config, Stage1Config):
        return check_stage1(config, rows, summary)
    return check_stage0(config, rows, summary)


def check_stage0(config: Stage0Config, rows: Sequence[Row], summary: Mapping[str, Any]) -> list[Verdict]:
    """Demonstrations that succeed, a flow that fits them, a critic within the range of returns."""
    rows = rows_of(rows, "stage0", STAGE0_METRICS)
    return [_demonstrations(config, summary), _flow_loss(rows), _stage0_q(config, rows)]


def check_stage1(config: Stage1Config, rows: Sequence[Row], summary: Mapping[str, Any]) -> list[Verdict]:
    """The seed's check of E[Q], and what training it shows."""
    chosen = [_start(config, summary)] if config.method != "aw_mle" else []
    rows = rows_of(rows, "stage1", STAGE1_METRICS)
    if config.method in ("noise_cloning", "golden_ticket") or _chosen(summary) not in (None, "aw_mle"):
        return chosen  # AW-MLE's policy is not what was handed over
    return [
        *chosen,
        _policy_above_prior(summary),
        _eff_num(config, rows),
        _corr(rows),
        _nll_loss(rows),
        _policy_moves(rows),
    ]


def _demonstrations(config: Stage0Config, summary: Mapping[str, Any]) -> Verdict:
    expected = "some that succeed, where rewards are sparse: they teach Q^A nothing else"
    share: Any = summary.get("demonstration_success")
    if not is_finite_number(share):
        return Verdict("demonstrations", None, "not enough data yet: no summary.json", expected)
    text = f"{100 * share:.0f} % succeed"
    ok = share > 0 or config.reward_mode != "sparse"
    return judge("demonstrations", ok, text, expected, "record demonstrations that succeed", success=share)


def _chosen(summary: Mapping[str, Any]) -> Any:
    choice = summary.get("choice")
    return choice.get("chosen") if isinstance(choice, Mapping) else None


def _start(config: Stage1Config, summary: Mapping[str, Any]) -> Verdict:
    """What was handed over, against the prior on the starts that both have seen."""
    expected = "at least as good as the prior on the starts of the choice"
    try:
        choice = summary["choice"]
        name, rates = choice["chosen"], {n: float(t["success_once"]) for n, t in choice["trials"].items()}
        best, prior = rates[name], rates["prior"]
    except (KeyError, TypeError, AttributeError, ValueError):
        return Verdict("start", None, "not enough data yet: no choice in summary.json", expected)
    text = f"{name}: {100 * best:.0f} % against {100 * prior:.0f} %"
    remedy = "raise choosing_episodes, or give more demonstrations that succeed"
    return judge("start", best >= prior, text, expected, remedy, chosen=best, prior=prior)


def _flow_loss(rows: Sequence[Row]) -> Verdict:
    expected = "last quarter below the first"
    if len(rows) < ENOUGH_ROWS:
        return too_early("flow_loss", expected, len(rows))
    course = quarters(rows, "flow_loss")
    text = f"{number(course[0])} -> {number(course[3])}"
    return judge(
        "flow_loss", course[3] < course[0], text, expected, "reduce lr, increase total_iters",
        first=course[0], last=course[3],
    )  # fmt: skip


def _stage0_q(config: Stage0Config, rows: Sequence[Row]) -> Verdict:
    bounds = range_of_returns(config.reward_mode, config.reward_scale, config.gamma)
    if bounds is None:
        return Verdict("q_bounded", None, "no bound is known for these rewards", "within the range of returns")
    slack = Q_SLACK * (bounds[1] - bounds[0])
    low, high = bounds[0] - slack, bounds[1] + slack
    expected = f"between {number(low)} and {number(high)}, as rewards allow"
    if not rows:
        return too_early("q_bounded", expected, 0, 1)
    q = float(rows[-1]["q_mean"])
    remedy = "reduce lr or critic_tau"
    return judge(
        "q_bounded", low <= q <= high, f"q_mean {number(q)}", expected, remedy, q_mean=q, low=low, high=high
    )


def _policy_above_prior(summary: Mapping[str, Any]) -> Verdict:
    expected = "E[Q] under the policy above the prior's, the 95 % interval of the difference above 0"
    found = summary.get("verification")
    names = ("q_prior", "q_policy", "difference", "difference_low", "difference_high")
    if not isinstance(found, dict) or not all(is_finite_number(found.get(name)) for name in names):
        what = "no interval of the difference" if isinstance(found, dict) else "no verification"
        return Verdict("policy_above_prior", None, f"not enough data: {what} in summary.json", expected)
    if found.get("states") == 1:  # of an earlier version, which gave one state an interval without width
        return Verdict("policy_above_prior", None, "not enough data: one held-out state", expected)
    values = {name: float(found[name]) for name in names}
    text = (
        f"{number(values['q_policy'])} against {number(values['q_prior'])}, difference "
        f"{number(values['difference'])} [{number(values['difference_low'])}, {number(values['difference_high'])}]"
    )
    remedy = "increase total_iters or lr; reduce kl_coef or beta_latent; check Q^A (dsrl doctor on Stage 0)"
    return judge("policy_above_prior", found["difference_low"] > 0, text, expected, remedy, **values)


def _eff_num(config: Stage1Config, rows: Sequence[Row]) -> Verdict:
    least = max(LEAST_EFFECTIVE * config.num_candidates, 1.5)
    expected = f"above {number(least)} of {config.num_candidates} candidates"
    if len(rows) < ENOUGH_ROWS:
        return too_early("eff_num", expected, len(rows))
    last = quarters(rows, "eff_num")[3]
    return judge(
        "eff_num", last > least, number(last), expected, "increase beta_latent or num_candidates", last=last
    )


def _corr(rows: Sequence[Row]) -> Verdict:
    expected = "above 0"
    if len(rows) < ENOUGH_ROWS:
        return too_early("corr_A_logprob", expected, len(rows))
    half = statistics.fmean(row["corr_A_logprob"] for row in rows[len(rows) // 2 :])
    remedy = "increase total_iters or lr; reduce kl_coef"
    return judge(
        "corr_A_logprob", half > 0, f"mean {number(half)} over the last half", expected, remedy, mean=half
    )


def _nll_loss(rows: Sequence[Row]) -> Verdict:
    expected = "does not rise"
    if len(rows) < ENOUGH_ROWS:
        return too_early("nll_loss", expected, len(rows))
    course = quarters(rows, "nll_loss")
    ok = course[3] <= course[0] + NLL_RISE * abs(course[0])
    text = f"{number(course[0])} -> {number(course[3])} nats"
    return judge("nll_loss", ok, text, expected, "reduce lr, increase batch_size", first=course[0], last=course[3])


def _policy_moves(rows: Sequence[Row]) -> Verdict:
    expected = f"kl_loss above {MOVED_KL:g} nats"
    if len(rows) < ENOUGH_ROWS:
        return too_early("policy_moves", expected, len(rows))
    last = quarters(rows, "kl_loss")[3]
    remedy = "check lr and kl_coef; the policy is still the prior"
    return judge(
        "policy_moves", last > MOVED_KL, f"{number(last)} nats from the prior", expected, remedy, last=last
    )
