"""The page of ``dsrl probe``: every rule on numbers that call for it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dsrl_offpolicy.analysis.expectations import expectations
from dsrl_offpolicy.evaluation.episodes import EpisodeOutcome
from dsrl_offpolicy.evaluation.noise_effect import NoiseEffect
from dsrl_offpolicy.evaluation.paired_looks import Compared

EFFECT = NoiseEffect(32, 16, 0.0, 1e-7, 0.1, (0.1,), (0.1, 0.1), 0.14, None)
INVERTED = {"windows": 100.0, "left_out": 10.0, "error_median": 1e-5, "error_p90": 1e-4, "beyond_magnitude": 0.1}


def row(successes: int, episodes: int = 40, standing: str = "open") -> Compared:
    outcomes = [EpisodeOutcome(i, i < successes, False, -1.0, 10) for i in range(episodes)]
    return Compared(outcomes, standing=standing)


def page(effect: NoiseEffect = EFFECT, prior: Compared | None = None, inversion=None, **rows: Compared):
    return {e.rule: e.text for e in expectations(effect, prior or row(16), rows or {"a": row(15)}, inversion)}


def test_noise_that_moves_nothing_ends_the_page():
    still = replace(EFFECT, all_rows=0.0, other_rows=0.0)
    found = page(still, inversion=INVERTED)
    assert list(found) == ["ignores_noise"] and "cannot help" in found["ignores_noise"]


def test_noise_that_hardly_moves_anything():
    assert "0.4 %" in page(replace(EFFECT, spread=0.004))["hardly_moves"]
    assert "hardly_moves" not in page(replace(EFFECT, spread=0.006))


def test_a_base_that_never_succeeds():
    text = page(prior=row(0), a=row(0, 20), b=row(0, 10))["never_succeeds"]
    # Wilson's upper limit for 0 of 40: z^2 / (n + z^2) = 3.84 / 43.84 = 8.8 %.
    assert "0" not in text.split("none of")[0] and "none of 40 episodes" in text and "9 %" in text
    assert "none of 2 constant" in text and "demonstrations" in text
    assert "never_succeeds" not in page(prior=row(0), a=row(1))
    assert "never_succeeds" not in page(prior=row(1), a=row(0))


def test_a_constant_that_is_better():
    found = page(prior=row(16), a=row(30, standing="above"), b=row(35, standing="above"), c=row(36, 36))
    assert "b succeeds in 35 of 40 episodes, the prior in 16 of 40" in found["constant_above"]
    assert "golden_ticket" in found["constant_above"] and "nothing_shown" not in found


def test_a_base_that_nearly_always_succeeds():
    # Wilson's lower limit for 40 of 40: n / (n + z^2) = 40 / 43.84 = 91.2 %.
    assert "at most 9 points" in page(prior=row(40))["near_ceiling"]
    assert "near_ceiling" in page(prior=row(38)) and "near_ceiling" not in page(prior=row(37))


def test_constants_that_are_worse():
    text = page(a=row(0, 20, "below"), b=row(15))["constant_below"]
    assert "a is worse" in text and "do not promise" in text
    assert "a, b are worse" in page(a=row(0, 20, "below"), b=row(0, 20, "below"))["constant_below"]


def test_nothing_shown_promises_nothing():
    text = page(prior=row(16), a=row(20))["nothing_shown"]
    assert "16 of 40" in text and "promises nothing" in text


def test_rows_that_are_not_executed():
    def rows(other: float | None) -> list[str]:
        return [rule for rule in page(replace(EFFECT, other_rows=other)) if rule.startswith("other_rows")]

    assert rows(None) == []
    assert rows(0.0) == ["other_rows_idle"]
    assert rows(0.007) == ["other_rows_little"]  # .007 / .14 = 5 %
    assert rows(0.0071) == ["other_rows_matter"]
    assert "50 %" in page(replace(EFFECT, other_rows=0.07))["other_rows_matter"]


def test_a_batch_that_decodes_otherwise():
    assert "num_envs" in page(replace(EFFECT, batch_against_single=0.002))["uneven_batches"]
    assert "uneven_batches" not in page(replace(EFFECT, batch_against_single=0.0005))


def test_demonstrations_as_noise():
    assert page(inversion=INVERTED)["inverts"].startswith("90 of 100 windows")
    assert "Only 49 of 100" in page(inversion={**INVERTED, "left_out": 51.0})["inverts_badly"]
    assert "inverts" in page(inversion={**INVERTED, "left_out": 50.0})
    assert page(inversion="X cannot be inverted")["no_inversion"].endswith("X cannot be inverted.")
    assert not {"inverts", "inverts_badly", "no_inversion"} & set(page())


@pytest.mark.parametrize("successes", range(0, 41, 5))
def test_every_page_says_one_thing_about_success(successes):
    rules = {"never_succeeds", "constant_above", "near_ceiling", "constant_below", "nothing_shown"}
    assert len(rules & set(page(prior=row(successes), a=row(0)))) == 1
