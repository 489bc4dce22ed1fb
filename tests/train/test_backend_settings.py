"""What ``--backend`` refuses, with and without Ray: one line each, before there is a run folder."""

from __future__ import annotations

import sys

import pytest

from dsrl_offpolicy.envs.family import Capabilities, family_of
from dsrl_offpolicy.envs.spec import EnvSpec
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.train.ray_backend import check_backend
from dsrl_offpolicy.train.train_stage2_online import settings


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--num_runners 2", "num_runners: expected nothing with backend local; add --backend ray"),
        ("--ray_address 10.0.0.1:6379", "ray_address: expected nothing with backend local"),
        ("--backend ray --num_envs 2 --num_runners 3", "num_runners: expected at most num_envs 2"),
    ],
)
def test_settings_that_mean_nothing_are_refused(flags: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        check_backend(settings(flags.split()), EnvSpec("reach-v3"))


@pytest.mark.parametrize(
    ("capabilities", "says"),
    [
        (Capabilities(batched=True), "which steps on the GPU in one batch"),
        (Capabilities(exclusive=True), "which has a single environment"),
    ],
)
def test_environments_that_no_actor_can_have_stay_local(
    monkeypatch, capabilities: Capabilities, says: str
) -> None:
    monkeypatch.setattr(type(family_of(EnvSpec("reach-v3"))), "capabilities", lambda self, spec: capabilities)
    with pytest.raises(InputError, match=f"backend: expected local for reach-v3, {says}"):
        check_backend(settings(["--backend", "ray"]), EnvSpec("reach-v3"))


def test_without_ray_the_extra_is_named(monkeypatch, run_command, reach_base, tmp_path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as where it is not installed
    flags = [
        "--env_id",
        "reach-v3",
        "--backend",
        "ray",
        "--awsc_checkpoint",
        reach_base,
        "--out",
        tmp_path / "run",
    ]
    done = run_command(["stage2", *flags])
    assert done.status == 2 and len(done.error_lines) == 1
    assert "backend: " in done.err and "pip install 'dsrl_offpolicy[ray]'" in done.err
    assert not (tmp_path / "run").exists()
