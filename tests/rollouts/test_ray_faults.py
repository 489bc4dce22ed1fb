"""Actors that are killed or hang, in a real Ray: what is lost is counted, and nothing is stored twice."""

from __future__ import annotations

import functools
import itertools
import os
import signal
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import ray_worlds
import torch

from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.models.latent_layout import LatentLayout
from dsrl_offpolicy.models.latent_sources import squashed_prior_source
from dsrl_offpolicy.rollouts.collector import Collected
from dsrl_offpolicy.rollouts.ray_cluster import ray_cluster
from dsrl_offpolicy.rollouts.ray_collector import RayCollector, RayPlan

pytest.importorskip("ray", reason="needs the extra ray (pip install 'dsrl_offpolicy[ray]')")

EPISODE = 3
"""Macro-steps: chunks of 2 env steps, truncated after 6."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    with ray_worlds.ray_of_this_module() as address:
        yield address


@pytest.fixture
def collectors(cluster: str) -> Iterator[Callable[..., RayCollector]]:
    """Makes collectors of 2 environments a runner, and ends them."""
    made: list[RayCollector] = []

    def make(runners: int = 2, make_env: Callable = ray_worlds.counting_envs, **plan: object) -> RayCollector:
        import ray

        base, _ = ray_worlds.halving_base()
        layout = LatentLayout("full", *base.info.latent_shape, base.info.executed_rows, 2.0)
        settings = RayPlan(
            make_env=make_env,
            envs=[2] * runners,
            make_base=ray_worlds.halving_base,
            start_seed=functools.partial(np.add, 5),
            clock=itertools.count().__next__,
            **plan,
        )
        noise = torch.Generator().manual_seed(1)
        made.append(RayCollector(ray, settings, base.info, base.fingerprint(), layout, noise=noise))
        made[-1].launch(squashed_prior_source(layout))
        return made[-1]

    yield make
    for collector in made:
        collector.close()


def collect(collector: RayCollector, enough: Callable[[list[Collected]], bool]) -> list[Collected]:
    """Go on as the learner does until it is enough."""
    found: list[Collected] = []
    while not enough(found):
        found.append(collector.collect())
        collector.launch(squashed_prior_source(collector.layout))
    return found


def assert_nothing_twice(found: list[Collected]) -> None:
    """Every macro-step of an episode is there once, in order, from its start until it ended or was lost."""
    episodes: dict[float, list[tuple[float, float]]] = {}
    for collected in found:
        for before, after in zip(collected.obs_features, collected.next_obs_features, strict=True):
            # Features are two frames of [seed, env steps]; the newest is the last.
            assert before[2] == after[2]
            episodes.setdefault(float(before[2]), []).append((float(before[3]), float(after[3])))
    for steps in episodes.values():
        assert steps == [(0.0, 2.0), (2.0, 4.0), (4.0, 6.0)][: len(steps)]
    assert sum(len(collected.finished) for collected in found) == sum(
        len(steps) == EPISODE for steps in episodes.values()
    )


@pytest.mark.parametrize("max_lag", [0, 2])
def test_a_killed_runner_costs_its_macro_step_and_the_run_goes_on(collectors, capsys, max_lag) -> None:
    collector = collectors(max_lag=max_lag)
    found = collect(collector, lambda so_far: len(so_far) >= 8)
    os.kill(collector.facts[1].pid, signal.SIGKILL)
    found += collect(collector, lambda so_far: any(c.lost for c in so_far))
    lives, dead = collector._lives, collector.facts[1].pid
    found += collect(collector, lambda _: collector.facts[1].pid != dead)
    found += collect(collector, lambda so_far: len(so_far) >= 8)
    assert sum(c.lost for c in found) == 2 and lives == 3  # two environments; a third life
    assert "runner 1 is lost" in capsys.readouterr().err
    assert {c.lost for c in found if len(c)} == {0}
    assert_nothing_twice(found)


def test_a_killed_policy_server_is_asked_again_and_loses_nothing(collectors) -> None:
    collector = collectors(runners=1)
    found = collect(collector, lambda so_far: len(so_far) >= 4)
    import ray

    os.kill(ray.get(collector.server.pid.remote()), signal.SIGKILL)
    lost = 0.0
    for _ in range(8):
        found += collect(collector, lambda so_far: len(so_far) >= 1)
        lost += collector.metrics()["policy_server_lost"]
    assert lost >= 1 and sum(c.lost for c in found) == 0 and len(found) == 12
    assert_nothing_twice(found)


def test_a_runner_that_hangs_is_replaced(collectors, capsys) -> None:
    collector = collectors(runners=2, runner_timeout=20.0)
    found = collect(collector, lambda so_far: len(so_far) >= 4)
    hanging = collector.facts[0].pid
    os.kill(hanging, signal.SIGSTOP)
    found += collect(collector, lambda _: collector.facts[0].pid != hanging)
    found += collect(collector, lambda so_far: len(so_far) >= 4)
    assert "runner 0 took more than 20 s" in capsys.readouterr().err
    assert sum(c.lost for c in found) >= 2
    assert_nothing_twice(found)
    with pytest.raises(ProcessLookupError):
        os.kill(hanging, 0)


def test_a_runner_of_other_dimensions_is_refused(collectors) -> None:
    with pytest.raises(
        InputError, match=r"^runner 1 on \S+: expected chunks \(2, 1\) as the base policy has, got"
    ):
        collectors(make_env=ray_worlds.counting_envs_of_two_kinds)


def test_a_permit_of_another_life_is_never_acted_on(collectors) -> None:
    import ray

    collector = collectors(runners=1)
    [permit, reference] = collector.runners[0].steps[0]
    ray.wait([reference])
    again = collector.runners[0].actor.step.remote(permit)
    with pytest.raises(InputError, match=r"expected permit \(0, 1\), got \(0, 0\)"):
        ray.get(again)


def test_an_address_that_does_not_answer_is_one_line() -> None:
    for address, says in (("127.0.0.1:1", "does not answer"), ("localhost", "expected HOST:PORT")):
        with pytest.raises(InputError, match=f"ray_address: .*{says}") as caught, ray_cluster(address, 1):
            pass
        assert "\n" not in str(caught.value)
