"""The seed document's checklist for Stage 2, with the thresholds of docs/run_health.md."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from dsrl_offpolicy.agents.stage2_config import Stage2Config
from dsrl_offpolicy.analysis.run_folder import RATES
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
from dsrl_offpolicy.configs.jobs import Stage2LoopConfig
from dsrl_offpolicy.files.metrics import rows_of
from dsrl_offpolicy.models.latent_policy import LOG_SIGMA_MAX

EXPLODING_Q = "reduce critic_lr, increase tau"
NO_LEARNING = "increase warmup_steps, check that the buffer is filling"
UNSTABLE = "reduce utd_ratio, increase batch_size"
"""The remedies of the seed document, "Common Issues"."""

COSTLIEST_NAT = 0.1
"""Share of the range of returns that one nat of the regulariser may cost at most."""
MOST_KL, LEAST_ENTROPY = 3.0, -1.5
"""Nats per latent dimension, of a Gaussian as narrow as sigma = 0.05: hardly any noise is left to explore with."""
WIDEST_ENTROPY = 0.5 * math.log(2 * math.pi * math.e) + LOG_SIGMA_MAX
"""Nats per dimension of the widest Gaussian that the latent policy can be."""
STILL, PROGRESS, ALPHA_MOVED = 1.6, 0.05, 1.5
"""A policy is still whose KL changed by less than that factor and that share of the way to its target, though
alpha did by that other factor."""
NEAR = 0.3
"""Share of its target within which the regulariser's cost is at it."""
LARGEST_STEP = 0.1
"""Share of a weight's initial range that one step of Adam may be."""
LEAST_BATCHES = 10
"""Batches that a full buffer holds at least."""
RECENT = 4
"""Rows whose median stands for now."""
SETTLED = 3
"""Settling times from which on Q is held to have settled (95 %)."""
Q_FALL, Q_FLOOR = 0.15, 0.03
"""Shares of the range of returns: by which Q falls, and within which of the floor it is at it."""
TD_GROWTH = 3.0
"""Factor by which the TD error may grow."""
KL_OVERSHOOT, LEAST_KL, FALLING = 3.0, 1.0, 0.9
"""Times its target, or nats, that the KL may reach; factor per quarter of one on its way back."""
MOST_LEFT_OUT = 0.5
"""Share of the windows of demonstrations that may not invert."""
MOVED_KL = 1e-3
"""Nats from the prior below which a policy is the prior."""

LOOP = ("gradient_steps", "env_steps", "macro_steps", "utd_effective", "buffer_size")
CRITIC = (*LOOP, "td_error", "q_mean")
ACTOR = (*CRITIC, "actor_loss", "alpha", "entropy", "kl")


def check_stage2(config: Stage2LoopConfig, rows: Sequence[Row]) -> list[Verdict]:
    """The verdicts on the rows of a run so far; of an algorithm without the settings of SAC, on its loop alone."""
    evaluations = rows_of(rows, "eval", RATES)
    offline = [inversion(rows)] if config.demo_path is not None else []
    if not isinstance(config, Stage2Config):
        rows = rows_of(rows, "train", LOOP)
        return [
            *(check(config, rows) for check in (warmup, buffer, utd_effective)),
            *offline,
            success(evaluations),
        ]
    rows = rows_of(rows, "train", CRITIC)
    acting = _acting(rows)
    return [
        q_bounded(config, rows),
        q_mean(config, rows),
        td_error(config, rows),
        alpha(config, acting),
        target(config, acting),
        spread(config, acting),
        actor_moves(config, acting),
        warmup(config, rows),
        buffer(config, rows),
        utd_effective(config, rows),
        learning_rates(config, rows),
        *offline,
        success(evaluations),
    ]


def _acting(rows: Sequence[Row]) -> list[Row]:
    """The rows that hold the actor's metrics: those before its first step do not."""
    return [row for row in rows if all(name in row for name in ACTOR)]


def settling_steps(config: Stage2Config, row: Row) -> float:
    """Gradient steps in which a change of the targets has reached Q but for 1/e: ``1 / (tau (1 - gamma^n))``,
    with n the env steps of a macro-step."""
    return 1 / (config.tau * max(1 - _macro_discount(config, row), 1e-6))


def _macro_discount(config: Stage2Config, row: Row) -> float:
    return float(config.gamma ** max(row["env_steps"] / max(row["macro_steps"], 1), 1.0))


def cost(config: Stage2Config, row: Row) -> float:
    """What the regulariser charges the mean latent of a batch, in nats."""
    return float(row["kl"] if config.regularizer == "kl" else -row["entropy"])


def q_bounded(config: Stage2Config, rows: Sequence[Row]) -> Verdict:
    """Q within the range of returns, and of what the regulariser adds to the TD target.

    Both the Q of replayed latents (``q_mean``) and that of the policy's own (``alpha * cost - actor_loss``, where
    over-estimation shows first) count, each as the median of the last rows.
    """
    bounds = range_of_returns(config.reward_mode, config.reward_scale, config.gamma)
    if bounds is None:
        return _q_of_dense_rewards(config, rows)
    low, high = bounds
    slack = Q_SLACK * (high - low)
    if config.backup_entropy and rows:  # the bonus of every later macro-step: alpha times the cost, discounted
        later = _macro_discount(config, rows[-1])
        bonuses = [-row["alpha"] * cost(config, row) * later / (1 - later) for row in _acting(rows)]
        low, high = low + min([0.0, *bonuses]), high + max([0.0, *bonuses])
    expected = f"between {number(low - slack)} and {number(high + slack)}, as rewards"
    expected += " and regulariser allow" if config.backup_entropy else " allow"
    recent = rows[-RECENT:]
    if len(recent) < RECENT:
        return too_early("q_bounded", expected, len(recent), RECENT)
    found = {"q_mean": statistics.median(row["q_mean"] for row in recent)}
    acting = _acting(recent)
    if acting:
        found["q_policy"] = statistics.median(
            row["alpha"] * cost(config, row) - row["actor_loss"] for row in acting
        )
    ok = all(low - slack <= value <= high + slack for value in found.values())
    text = ", ".join(f"{name} {number(value)}" for name, value in found.items())
    return judge("q_bounded", ok, text, expected, EXPLODING_Q, **found, low=low - slack, high=high + slack)


def _q_of_dense_rewards(config: Stage2Config, rows: Sequence[Row]) -> Verdict:
    """Dense rewards set no bound that the settings know; a Q that doubles after it had time to settle explodes."""
    expected = "|Q| less than doubled over the last half (no bound is known for these rewards)"
    early = _unsettled("q_bounded", config, rows, expected)
    if early is not None:
        return early
    before, after = (abs(value) for value in quarters(rows, "q_mean")[1::2])
    ok = after <= 2 * before or after <= config.reward_scale
    text = f"|q_mean| {number(before)} -> {number(after)}"
    return judge("q_bounded", ok, text, expected, EXPLODING_Q, before=before, after=after)


def _unsettled(name: str, config: Stage2Config, rows: Sequence[Row], expected: str) -> Verdict | None:
    """The verdict of a check of what Q settles at, while it had no time for that."""
    if len(rows) < ENOUGH_ROWS:
        return too_early(name, expected, len(rows))
    done, needed = rows[-1]["gradient_steps"], SETTLED * settling_steps(config, rows[-1])
    if done >= needed:
        return None
    return Verdict(name, None, f"not enough data yet: {done:.0f} of {needed:.0f} gradient steps", expected)


def q_mean(config: Stage2Config, rows: Sequence[Row]) -> Verdict:
    """Q falls at first, from 0 or what Stage 1 distilled to what the policy is worth, and must then stop falling.

    At the floor of the sparse rewards nothing ever succeeds.
    """
    expected = "no longer falling, and above the value of never succeeding"
    early = _unsettled("q_mean", config, rows, expected)
    if early is not None:
        return early
    course = quarters(rows, "q_mean")
    bounds = range_of_returns(config.reward_mode, config.reward_scale, config.gamma)
    width = bounds[1] - bounds[0] if bounds is not None else max(abs(value) for value in course)
    falls = course[3] < course[2] < course[1] and course[3] < course[1] - Q_FALL * width
    floor = config.reward_mode == "sparse" and bounds is not None and course[3] < bounds[0] + Q_FLOOR * width
    text = " -> ".join(number(value) for value in course) + " (quarters)"
    return judge("q_mean", not (falls or floor), text, expected, NO_LEARNING, first=course[0], last=course[3])


def td_error(config: Stage2Config, rows: Sequence[Row]) -> Verdict:
    """The TD error falls, or grows no more than Q does while it leaves 0."""
    expected = f"last quarter at most {TD_GROWTH:g} times the first"
    if len(rows) < ENOUGH_ROWS:
        return too_early("td_error", expected, len(rows))
    course = quarters(rows, "td_error")
    text = f"{number(course[0])} -> {number(course[3])}"
    ok = course[3] <= TD_GROWTH * course[0]
    return judge("td_error", ok, text, expected, f"{EXPLODING_Q}; {UNSTABLE}", first=course[0], last=course[3])


def alpha(config: Stage2Config, rows: Sequence[Row]) -> Verdict:
    """One nat may not cost more than a tenth of what can be earned."""
    name = "target_kl" if config.regularizer == "kl" else "target_entropy"
    bounds = range_of_returns(config.reward_mode, config.reward_scale, config.gamma)
    earned = (
        bounds[1] - bounds[0] if bounds is not None else max((abs(row["q_mean"]) for row in rows), default=0.0)
    )
    limit = max(COSTLIEST_NAT * earned, 10 * config.init_temperature)
    expected = f"at most {number(limit)}"
    if len(rows) < ENOUGH_ROWS:
        return too_early("alpha", expected, len(rows))
    course = quarters(rows, "alpha")
    text = f"{number(course[0])} -> {number(course[3])}"
    return judge("alpha", course[3] <= limit, text, expected, f"check {name}", first=course[0], last=course[3])


def target(config: Stage2Config, rows: Sequence[Row]) -> Verdict:
    """The temperature's target is one that a latent policy of this dimension can meet and still explore."""
    is_kl = config.regularizer == "kl"
    name = "target_kl" if is_kl else "target_entropy"
    if not config.learn_temperature:
        return Verdict(name, True, "not used: the temperature is fixed", "any")
    dim = _latent_dim(rows)
    if dim is None:
        return Verdict(name, None, "not enough data yet: no row with latent_dim", "what a policy can meet")
    if is_kl:
        value, low, high = config.target_kl, 0.0, MOST_KL * dim
    else:
        value = -0.5 * dim if config.target_entropy == "auto" else config.target_entropy
        box = math.log(2 * config.action_magnitude)
        low, high = LEAST_ENTROPY * dim, min(box, WIDEST_ENTROPY) * dim
    expected = f"above {number(low)} and below {number(high)} nats, of {dim} dimensions"
    return judge(
        name, low < value < high, number(value), expected, f"check {name}", value=value, low=low, high=high
    )


def _latent_dim(rows: Sequence[Row]) -> int | None:
    found = [int(row["latent_dim"]) for row in rows[-1:] if "latent_dim" in row]
    return found[0] if found else None


def spread(config: Stage2Config, rows: Sequence[Row]) -> Verdict:
    """The policy keeps noise to explore with (entropy), and with the KL regulariser it stays near the prior."""
    if config.regularizer == "entropy":
        return _entropy(config, rows)
    expected = f"at most {KL_OVERSHOOT:g} times target_kl {number(config.target_kl)}, or falling"
    if len(rows) < ENOUGH_ROWS:
        return too_early("kl", expected, len(rows))
    course = quarters(rows, "kl")
    held = course[3] <= max(KL_OVERSHOOT * config.target_kl, LEAST_KL)
    ok = held or course[3] < FALLING * course[2]
    text = f"{number(course[0])} -> {number(course[3])} nats"
    return judge("kl", ok, text, expected, "check target_kl; reduce actor_lr", first=course[0], last=course[3])


def _entropy(config: Stage2Config, rows: Sequence[Row]) -> Verdict:
    dim = _latent_dim(rows)
    low = LEAST_ENTROPY * dim if dim is not None else math.nan
    expected = (
        f"above {number(low)} nats" if dim is not None else f"above {LEAST_ENTROPY:g} nats per latent dimension"
    )
    if len(rows) < ENOUGH_ROWS:
        return too_early("entropy", expected, len(rows))
    if dim is None:
        return Verdict("entropy", None, "not enough data yet: no row with latent_dim", expected)
    course = quarters(rows, "entropy")
    text = f"{number(course[0])} -> {number(course[3])} nats"
    remedy = "check target_entropy; reduce actor_lr"
    return judge("entropy", course[3] > low, text, expected, remedy, first=course[0], last=course[3])


def actor_moves(config: Stage2Config, rows: Sequence[Row]) -> Verdict:
    """A policy that stays what its KL is measured to has not moved; nor has one whose KL stays about what it was
    while the temperature moves to bring it elsewhere.

    The KL of a batch varies with its states, so that of a frozen actor is not one number: quarters are compared.
    With a fixed temperature nothing says where the policy should be, and only one that stays there is named.
    """
    expected = "kl follows where the temperature wants it"
    if len(rows) < ENOUGH_ROWS:
        return too_early("actor_moves", expected, len(rows))
    course, alphas = quarters(rows, "kl"), [max(value, 1e-12) for value in quarters(rows, "alpha")]
    at_anchor = max(row["kl"] for row in rows) < MOVED_KL
    asked = max(alphas) >= ALPHA_MOVED * min(alphas) and target(config, rows).ok is not False
    moved = max(course) - min(course)
    still = max(course) < STILL * min(course) and moved < PROGRESS * _distance_to_target(config, rows)
    text = f"kl {number(course[0])} -> {number(course[3])}, alpha {number(alphas[0])} -> {number(alphas[3])}"
    remedy = "the actor is frozen: check actor_lr and actor_update_every"
    ok = not at_anchor and not (asked and still)
    return judge("actor_moves", ok, text, expected, remedy, first=course[0], last=course[3])


def _distance_to_target(config: Stage2Config, rows: Sequence[Row]) -> float:
    """Nats from the regulariser's cost now to where a learned temperature wants it; 0 where it is about there, or
    where that is not known."""
    wanted = config.target_kl
    if config.regularizer == "entropy":
        dim = _latent_dim(rows)
        if config.target_entropy == "auto" and dim is None:
            return 0.0
        wanted = 0.5 * (dim or 0) if config.target_entropy == "auto" else -config.target_entropy
    distance = abs(statistics.median(cost(config, row) for row in rows[-ENOUGH_ROWS:]) - wanted)
    return 0.0 if distance <= NEAR * abs(wanted) else distance


def warmup(config: Stage2LoopConfig, rows: Sequence[Row]) -> Verdict:
    """The first gradient steps find at least one batch of different transitions."""
    first = rows[0] if rows else {}
    needed = config.batch_size - round(config.batch_size * first.get("offline_fraction", 0.0))
    expected = f"at least {needed} macro-transitions, as many as a batch takes of them"
    if not rows:
        return too_early("warmup", expected, 0, 1)
    stored = first["macro_steps"] - first["gradient_steps"] / max(first["utd_effective"], 1e-9)
    text = f"{stored:.0f} macro-transitions before the first update"
    return judge("warmup", stored >= needed - 0.5, text, expected, "increase warmup_steps", stored=stored)


def inversion(rows: Sequence[Row]) -> Verdict:
    """Most windows of the demonstrations became noise."""
    expected = f"at most {100 * MOST_LEFT_OUT:.0f} % of the demonstrations' windows left out"
    found = rows_of(rows, "diag", ("inversion_windows", "inversion_left_out"))
    if not found:
        return too_early("demonstrations", expected, 0, 1)
    share = found[-1]["inversion_left_out"] / max(found[-1]["inversion_windows"], 1)
    text = f"{100 * share:.1f} % left out, median error {number(found[-1]['inversion_error_median'])}"
    remedy = "check that the base policy was trained on such demonstrations; raise inversion_tolerance"
    return judge("demonstrations", share <= MOST_LEFT_OUT, text, expected, remedy, left_out=share)


def buffer(config: Stage2LoopConfig, rows: Sequence[Row]) -> Verdict:
    """The buffer fills, and its capacity holds more than a few batches."""
    needed = LEAST_BATCHES * config.batch_size
    expected = f"grows, and holds {needed} macro-transitions ({LEAST_BATCHES} batches) before old ones are dropped"
    if not rows:
        return too_early("buffer", expected, 0, 1)
    size, stored = int(rows[-1]["buffer_size"]), int(rows[-1]["macro_steps"])
    ok = size >= min(stored, needed)
    text = f"{size} of {stored} stored macro-transitions kept"
    remedy = f"increase replay_buffer_size; {NO_LEARNING}"
    return judge("buffer", ok, text, expected, remedy, size=size, stored=stored)


def utd_effective(config: Stage2LoopConfig, rows: Sequence[Row]) -> Verdict:
    """Gradient steps per stored macro-transition, but for those that the last vector step earned."""
    expected = f"utd_ratio = {config.utd_ratio:g}"
    if not rows:
        return too_early("utd_effective", expected, 0, 1)
    last = rows[-1]
    done = last["gradient_steps"]
    owed = config.utd_ratio * done / max(last["utd_effective"], 1e-9) - done
    ok = abs(owed) <= config.utd_ratio * config.num_envs + 1
    text = f"{number(last['utd_effective'])}, {owed:.0f} gradient steps owed"
    return judge("utd_effective", ok, text, expected, "report it: the learner does not keep up", owed=owed)


def learning_rates(config: Stage2Config, rows: Sequence[Row]) -> Verdict:
    """No step of Adam, which moves a weight by about the learning rate, is as large as the weights begin.

    Weights of a layer with h inputs begin within ``1 / sqrt(h)``.
    """
    widths = {"critic_lr": config.critic_hidden_dims, "actor_lr": config.actor_hidden_dims}
    most = {name: LARGEST_STEP / math.sqrt(max(dims)) for name, dims in widths.items()}
    expected = ", ".join(f"{name} at most {number(value)}" for name, value in most.items())
    if not rows:
        return too_early("learning_rates", expected, 0, 1)
    rates = {"critic_lr": config.critic_lr, "actor_lr": config.actor_lr}
    too_large = [name for name, rate in rates.items() if rate > most[name]]
    text = ", ".join(f"{name} {number(rate)}" for name, rate in rates.items())
    remedy = " and ".join(f"reduce {name}" for name in too_large)
    return judge("learning_rates", not too_large, text, expected, remedy, **rates)


def success(evaluations: Sequence[Row]) -> Verdict:
    """The last evaluation is not below the first, by their 95 % intervals."""
    expected = "the last evaluation not below the first (95 % intervals)"
    if len(evaluations) < 2:
        return too_early("success", expected, len(evaluations), 2)
    first, last = evaluations[0], evaluations[-1]
    text = " -> ".join(
        f"{row['success_once']:.2f} [{row['success_once_low']:.2f}, {row['success_once_high']:.2f}]"
        for row in (first, last)
    )
    ok = last["success_once_high"] >= first["success_once_low"]
    values = {"first": first["success_once"], "last": last["success_once"]}
    return judge("success", ok, text, expected, f"{UNSTABLE}, reduce critic_lr", **values)
