"""A start is chosen by evaluation, paired, with few episodes for what fails."""

from __future__ import annotations

from collections.abc import Sequence

from dsrl_offpolicy.evaluation.choosing_start import choose_start
from dsrl_offpolicy.evaluation.episodes import EpisodeOutcome, choosing_seeds, evaluation_seeds, starting_seeds


def planted(name: str):
    def source(features, noise):
        return noise

    source.planted = name
    return source


def choose(
    rates: dict[str, float],
    first: int = 4,
    last: int = 16,
    returns: dict[str, float] | None = None,
    kept: str | None = None,
):
    """Each candidate succeeds on the given share of every four starts."""
    asked: dict[str, list[int]] = {name: [] for name in rates}

    def evaluate(source, seeds: Sequence[int]) -> list[EpisodeOutcome]:
        name = source.planted
        asked[name] += seeds
        gain = (returns or {}).get(name, -1.0)
        return [EpisodeOutcome(s, s % 4 < 4 * rates[name], False, gain, 10) for s in seeds]

    sources = {name: planted(name) for name in rates}
    return choose_start(sources, "prior", evaluate, first=first, last=last, kept=kept), asked


def test_the_best_is_found_and_the_worse_half_is_dropped_at_every_round() -> None:
    choice, asked = choose({"prior": 0.25, "a": 0.0, "b": 0.5, "c": 0.75, "d": 0.25})
    assert choice.name == "c"
    # 4 candidates see 4 starts, the best 2 go on to 8, the best to 16; the reference sees them all.
    assert {name: len(seeds) for name, seeds in asked.items()} == {"prior": 16, "a": 4, "b": 8, "c": 16, "d": 4}
    assert choice.env_steps == 48 * 10
    assert choice.rows()["c"]["success_once"] == 0.75 and choice.rows()["a"]["episodes"] == 4


def test_all_see_the_same_starts_which_nothing_else_uses() -> None:
    _, asked = choose({"prior": 0.5, "a": 0.5, "b": 0.5})
    assert asked["prior"] == starting_seeds(16) and asked["b"] == starting_seeds(16)[: len(asked["b"])]
    assert not set(starting_seeds(10_000)) & {*choosing_seeds(200_000), *evaluation_seeds(500_000)}


def test_a_planted_bad_start_is_not_handed_over() -> None:
    choice, _ = choose({"prior": 0.5, "aw_mle": 0.25})
    assert choice.name == "prior"


def test_a_start_that_is_as_good_as_the_base_is_taken_by_its_return() -> None:
    assert choose({"prior": 0.5, "a": 0.5}, returns={"a": -0.5})[0].name == "a"
    assert choose({"prior": 0.5, "a": 0.5}, returns={"a": -2.0})[0].name == "prior"


def test_of_equal_candidates_the_first_is_taken() -> None:
    assert choose({"prior": 0.25, "a": 0.5, "b": 0.5})[0].name == "a"


def test_a_single_round_is_enough_where_few_episodes_are_allowed() -> None:
    choice, asked = choose({"prior": 0.0, "a": 0.25, "b": 0.5}, first=8, last=4)
    assert choice.name == "b" and {len(seeds) for seeds in asked.values()} == {4}


def test_without_candidates_the_base_remains() -> None:
    assert choose({"prior": 0.5})[0].name == "prior"


def test_what_is_kept_gives_way_only_to_what_is_clearly_better() -> None:
    # Of 28 starts a wins 7 more than aw_mle and loses none: 1/2^7 = 0.0078. Of 24 it wins 6: 1/2^6 = 0.0156.
    rates = {"prior": 0.25, "aw_mle": 0.5, "a": 0.75, "b": 0.25}
    assert choose(rates, last=28, kept="aw_mle")[0].name == "a"
    choice, asked = choose(rates, last=24, kept="aw_mle")
    assert choice.name == "aw_mle"
    # never dropped, though the better of the other two is what goes on
    assert {name: len(seeds) for name, seeds in asked.items()} == {"prior": 24, "aw_mle": 24, "a": 24, "b": 4}
    assert choose(rates, last=24)[0].name == "a"


def test_what_is_kept_gives_way_to_the_base_where_that_is_clearly_better() -> None:
    rates = {"prior": 0.75, "aw_mle": 0.25, "a": 0.5}
    assert choose(rates, last=16, kept="aw_mle")[0].name == "prior"  # 8 wins of 8: 0.0039
    assert choose(rates, last=12, kept="aw_mle")[0].name == "aw_mle"  # 6 of 6
    assert choose({"prior": 0.75, "aw_mle": 0.25}, last=16, kept="aw_mle")[0].name == "prior"
