"""Verdicts on rows written by hand: each fault is named, with its remedy; a healthy run passes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from run_rows import ENTROPY_RUN, KL_RUN, STAGE1_RUN, VERIFIED, stage1_rows, stage2_rows

from dsrl_offpolicy.analysis.run_health import check_run
from dsrl_offpolicy.analysis.stage2_health import settling_steps
from dsrl_offpolicy.analysis.verdict import quarters, range_of_returns
from dsrl_offpolicy.configs.jobs import Stage0Config

# With the entropy regulariser: entropy falls to the target of auto, -0.5 * 32 = -16.
ENTROPY_COURSE = {"entropy": lambda p: 38 - 54 * p, "kl": lambda p: 1 + 70 * p, "alpha": 0.1}


def verdicts(config, rows, summary=None):
    return {verdict.name: verdict for verdict in check_run(config, rows, summary or {})}


def failing(config, rows, summary=None):
    return {name: v.remedy for name, v in verdicts(config, rows, summary).items() if v.ok is False}


EVALUATIONS = [
    {"env_steps": 32, "success_once": 0.5, "success_once_low": 0.3, "success_once_high": 0.7},
    {"env_steps": 9000, "success_once": 0.9, "success_once_low": 0.7, "success_once_high": 0.97},
]


@pytest.mark.parametrize(
    ("config", "course"), [(KL_RUN, {}), (ENTROPY_RUN, ENTROPY_COURSE)], ids=["kl", "entropy"]
)
def test_a_healthy_stage2_passes_every_check_and_fails_none_on_the_way(config, course):
    rows = stage2_rows(**course)
    found = verdicts(config, [*rows, *EVALUATIONS])
    assert len(found) == 12 and all(verdict.ok is True for verdict in found.values()), found
    assert not any(verdict.remedy for verdict in found.values())
    for count in range(len(rows)):
        assert not failing(config, rows[:count]), count


def test_without_rows_nothing_is_judged():
    for config in (KL_RUN, STAGE1_RUN, Stage0Config()):
        found = verdicts(config, [])
        assert found and all(v.ok is None and "not enough data" in v.found for v in found.values()), found


# The bounds of sparse rewards with scale 1 and gamma 0.99 are -100 and 0, with a slack of a tenth: -110 and 10.
@pytest.mark.parametrize(
    ("changes", "named", "remedy"),
    [
        ({"q_mean": 12.0}, "q_bounded", "reduce critic_lr, increase tau"),
        # alpha * kl - actor_loss is Q of the policy's own latents: at most 1 * 10 - (-50) = 60 above the bound
        ({"actor_loss": -50.0}, "q_bounded", "reduce critic_lr, increase tau"),
        ({"q_mean": -99.0, "actor_loss": 99.0}, "q_mean", "warmup_steps"),
        ({"q_mean": lambda p: -40 - 50 * p}, "q_mean", "check that the buffer is filling"),
        ({"td_error": lambda p: 1 + 9 * p}, "td_error", "reduce utd_ratio, increase batch_size"),
        # one nat may cost a tenth of the range of returns, 10
        (
            {"alpha": lambda p: 1 + 20 * p, "actor_loss": lambda p: 45 + (1 + 20 * p) * (1 + 9 * p)},
            "alpha",
            "target_kl",
        ),
        ({"kl": lambda p: 1 + 79 * p}, "kl", "check target_kl"),
        ({"kl": 0.0}, "actor_moves", "actor_lr"),
        ({"kl": lambda p: 0.3 + 0.05 * p}, "actor_moves", "actor_lr"),
        ({"buffer_size": 64}, "buffer", "increase replay_buffer_size"),
        ({"utd_effective": 5.0}, "utd_effective", "learner"),
    ],
)
def test_faults_of_stage2_are_named_alone_with_their_remedies(changes, named, remedy):
    found = failing(KL_RUN, stage2_rows(**changes))
    assert list(found) == [named] and remedy in found[named]


def test_a_q_that_falls_out_of_its_bounds_is_named():
    found = failing(KL_RUN, stage2_rows(q_mean=lambda p: -55 - 100 * p))
    assert found["q_bounded"] == "reduce critic_lr, increase tau"


def test_the_bound_of_q_follows_rewards_and_regulariser():
    assert range_of_returns("sparse", 2.0, 0.99) == (pytest.approx(-200), 0.0)
    assert range_of_returns("normalized_dense", 1.0, 0.9) == (pytest.approx(-10), pytest.approx(10))
    assert range_of_returns("dense", 1.0, 0.99) is None and range_of_returns("sparse", 1.0, 1.0) is None
    # alpha * entropy = 0.1 * 40 at every later macro-step of 8 env steps, discounted by c = 0.99^8 = 0.922745:
    # 4 * c / (1 - c) = 47.78 on top of the upper bound 0 and its slack 10.
    rows = stage2_rows(8, alpha=0.1, entropy=40.0, actor_loss=0.0, q_mean=57.0)
    found = verdicts(ENTROPY_RUN, rows)["q_bounded"]
    assert found.ok and found.values["high"] == pytest.approx(57.78, abs=0.01)
    assert found.values["low"] == pytest.approx(-110)
    assert verdicts(replace(ENTROPY_RUN, backup_entropy=False), rows)["q_bounded"].ok is False
    # a kl costs at every step: 1 nat * 1 * c / (1 - c) = 11.94 below the lower bound
    charged = verdicts(replace(KL_RUN, backup_entropy=True), stage2_rows(8, alpha=1.0, kl=1.0))["q_bounded"]
    assert charged.values["low"] == pytest.approx(-121.94, abs=0.01)


def test_q_of_dense_rewards_may_not_double_once_it_had_time_to_settle():
    config = replace(KL_RUN, reward_mode="dense")
    # 1 / (0.005 * (1 - 0.99^8)) = 2589 gradient steps; judged from three times as many, 7766
    assert settling_steps(config, stage2_rows(1)[0]) == pytest.approx(2589, abs=1)
    grows = {"q_mean": lambda p: 10 * 8**p, "actor_loss": lambda p: -10 * 8**p}
    assert failing(config, stage2_rows(40, **grows)) == {"q_bounded": "reduce critic_lr, increase tau"}
    early = verdicts(config, [{**row, "gradient_steps": row["gradient_steps"] / 10} for row in stage2_rows(40)])
    assert early["q_bounded"].ok is None and "4000 of 7766 gradient steps" in early["q_bounded"].found


# Of 32 dimensions: a KL below 3 * 32 = 96 nats; an entropy above -1.5 * 32 = -48 and below that of the uniform
# distribution on the box, 32 * log(2 * 2) = 44.36.
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"target_kl": 97.0}, "target_kl"),
        ({"target_kl": 0.0}, "target_kl"),
        ({"regularizer": "entropy", "target_entropy": 44.4}, "target_entropy"),
        ({"regularizer": "entropy", "target_entropy": -48.0}, "target_entropy"),
    ],
)
def test_targets_that_no_policy_can_meet_are_named_from_the_first_row_on(changes, named):
    found = failing(replace(KL_RUN, **changes), stage2_rows(1))
    assert found == {named: f"check {named}"}


def test_targets_that_a_policy_can_meet_are_not_named():
    for changes in (
        {"target_kl": 95.0},
        {"regularizer": "entropy", "target_entropy": 44.3},
        # without a box the widest Gaussian sets the bound: 32 * (0.5 log(2 pi e) + 1) = 77.4
        {"regularizer": "entropy", "target_entropy": 77.0, "action_magnitude": float("inf")},
        {"target_kl": 0.0, "learn_temperature": False},
    ):
        assert not failing(replace(KL_RUN, **changes), stage2_rows(1)), changes


def test_an_entropy_without_noise_left_has_collapsed():
    course = {**ENTROPY_COURSE, "entropy": lambda p: 38 - 120 * p}  # to -82, below -48
    assert failing(ENTROPY_RUN, stage2_rows(**course)) == {"entropy": "check target_entropy; reduce actor_lr"}


def test_a_policy_that_stands_where_the_temperature_wants_it_is_not_frozen():
    assert not failing(KL_RUN, stage2_rows(kl=lambda p: 9.8 + 0.4 * p))
    fixed = replace(KL_RUN, learn_temperature=False)  # which does not say where the policy should be
    assert not failing(fixed, stage2_rows(kl=3.0, alpha=0.2))
    assert list(failing(fixed, stage2_rows(kl=0.0, alpha=0.2))) == ["actor_moves"]
    at_target = {"kl": 60.0, "entropy": -15.0, "alpha": lambda p: 0.1 - 0.08 * p}  # the target is -16
    assert not failing(ENTROPY_RUN, stage2_rows(**at_target))
    assert list(failing(ENTROPY_RUN, stage2_rows(**{**at_target, "entropy": 10.0}))) == ["actor_moves"]


def test_a_kl_that_stays_is_no_fault_before_the_temperature_has_asked_for_another():
    # alpha from 0.3 by less than a factor 1.5
    assert not failing(KL_RUN, stage2_rows(kl=0.3, alpha=lambda p: 0.3 - 0.08 * p))
    asked = stage2_rows(kl=0.3, alpha=lambda p: 0.3 - 0.2 * p)
    assert list(failing(KL_RUN, asked)) == ["actor_moves"]
    # on its way: from 1 by a factor 1.5 only, but by 0.375 of the 8.6 nats to the target from quarter to quarter
    assert not failing(KL_RUN, stage2_rows(kl=lambda p: 1 + 0.6 * p))
    # of a target further away that is less than a twentieth, but from 0.2 nats more than a factor 1.6
    assert not failing(replace(KL_RUN, target_kl=50.0), stage2_rows(kl=lambda p: 0.2 + 0.3 * p))
    # nor where it asks for what no policy can do: 1000 nats of 32 dimensions
    assert list(failing(replace(KL_RUN, target_kl=1000.0), asked)) == ["target_kl"]


def test_updates_on_less_than_a_batch_are_named():
    # the first row: 400 + 1000 / 10 transitions stored, of which 1000 / 10 came after the warm-up: 400
    assert verdicts(KL_RUN, stage2_rows(1))["warmup"].values == {"stored": 400}
    assert failing(replace(KL_RUN, batch_size=401), stage2_rows(1)) == {"warmup": "increase warmup_steps"}
    assert not failing(replace(KL_RUN, batch_size=400), stage2_rows(1))


def test_a_buffer_that_is_full_is_no_fault_where_it_holds_ten_batches():
    rows = stage2_rows(buffer_size=1280)
    assert rows[-1]["macro_steps"] > 1280 and not failing(KL_RUN, rows)
    assert list(failing(KL_RUN, stage2_rows(buffer_size=1279))) == ["buffer"]


def test_gradient_steps_that_the_last_vector_step_earned_are_no_fault():
    # 64 environments earn 640 gradient steps at once, of which 100 are done when a row is written: 600 stored
    # transitions earned 6000, 5460 are done
    row = {**stage2_rows(6)[-1], "gradient_steps": 5460, "utd_effective": 9.1}
    assert not failing(replace(KL_RUN, num_envs=64), [row])
    assert list(failing(replace(KL_RUN, num_envs=4), [row])) == ["utd_effective"]


def test_steps_as_large_as_weights_are_named():
    # 0.1 / sqrt(256) = 0.00625 for widths of 256; the widest layer counts
    assert not failing(replace(KL_RUN, critic_lr=0.0062, actor_lr=0.0062), stage2_rows(1))
    assert failing(replace(KL_RUN, critic_lr=0.03), stage2_rows(1)) == {"learning_rates": "reduce critic_lr"}
    wide = replace(KL_RUN, critic_lr=0.0062, actor_lr=0.0063, critic_hidden_dims=(64, 1024))
    assert failing(wide, stage2_rows(1)) == {"learning_rates": "reduce critic_lr and reduce actor_lr"}
    assert not failing(replace(KL_RUN, critic_lr=0.0124, critic_hidden_dims=(64, 64)), stage2_rows(1))


def test_success_that_has_fallen_is_named():
    fallen = {"env_steps": 9000, "success_once": 0.1, "success_once_low": 0.02, "success_once_high": 0.29}
    assert failing(KL_RUN, [EVALUATIONS[0], fallen]) == {
        "success": "reduce utd_ratio, increase batch_size, reduce critic_lr"
    }
    lower = {**fallen, "success_once_high": 0.31}
    assert not failing(KL_RUN, [EVALUATIONS[0], lower])


def test_a_healthy_stage1_passes_every_check():
    found = verdicts(STAGE1_RUN, stage1_rows(), VERIFIED)
    assert len(found) == 5 and all(verdict.ok is True for verdict in found.values()), found


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"eff_num": lambda p: 20 * (1 - p) + 1}, "eff_num"),
        ({"corr_A_logprob": -0.01}, "corr_A_logprob"),
        ({"nll_loss": lambda p: 38 + 8 * p}, "nll_loss"),
        ({"kl_loss": 0.0}, "policy_moves"),
    ],
)
def test_faults_of_stage1_are_named_alone(changes, named):
    assert list(failing(STAGE1_RUN, stage1_rows(**changes), VERIFIED)) == [named]


def test_a_policy_that_is_not_above_the_prior_by_the_interval_is_named():
    unclear = {"verification": {**VERIFIED["verification"], "difference_low": -0.1}}
    found = verdicts(STAGE1_RUN, stage1_rows(), unclear)["policy_above_prior"]
    assert found.ok is False and "[-0.1, 2.5]" in found.found and found.values["q_policy"] == -22.0


def test_stage0_needs_success_a_flow_that_fits_and_a_bounded_critic():
    rows = [{"gradient_steps": 100 * i, "flow_loss": 1 / (1 + i), "q_mean": -50.0} for i in range(10)]
    assert not failing(Stage0Config(), rows, {"demonstration_success": 0.6})
    worse = [{**row, "flow_loss": 0.1 * i, "q_mean": -111.0} for i, row in enumerate(rows)]
    assert set(failing(Stage0Config(), worse, {"demonstration_success": 0.0})) == {
        "demonstrations", "flow_loss", "q_bounded",
    }  # fmt: skip


def test_dense_rewards_teach_without_success():
    summary = {"demonstration_success": 0.0}
    assert list(failing(Stage0Config(), [], summary)) == ["demonstrations"]
    assert not failing(Stage0Config(reward_mode="dense"), [], summary)


def test_rows_without_a_metric_are_passed_over():
    for config, rows in ((KL_RUN, stage2_rows(2)), (STAGE1_RUN, stage1_rows(2))):
        for name in rows[0]:
            check_run(config, [rows[0], {k: v for k, v in rows[1].items() if k != name}], {})
    without_actor = [{k: v for k, v in row.items() if k != "kl"} for row in stage2_rows(10)]
    found = verdicts(KL_RUN, without_actor)
    assert found["actor_moves"].ok is None and found["td_error"].ok is True


def test_quarters_are_medians_in_order():
    assert quarters([{"x": value} for value in (1, 2, 3, 10, 20, 30, 5, 6)], "x") == [1.5, 6.5, 25, 5.5]
