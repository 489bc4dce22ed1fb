"""Batches over which a spread is taken hold two at least: of one it is not a number."""

from __future__ import annotations

import pytest

from dsrl_offpolicy.configs import jobs
from dsrl_offpolicy.configs.loading import parse_job
from dsrl_offpolicy.errors import InputError


@pytest.mark.parametrize(
    ("job", "shipped", "name"),
    [
        (jobs.Stage0Config, "stage0_pretrain.yaml", "batch_size"),
        (jobs.Stage1Config, "stage1_offline.yaml", "num_candidates"),
    ],
)
def test_one_is_refused_and_two_are_not(job, shipped, name) -> None:
    with pytest.raises(InputError, match=name):
        parse_job(job, shipped, "dsrl", [f"--{name}", "1"])
    assert getattr(parse_job(job, shipped, "dsrl", [f"--{name}", "2"]), name) == 2
