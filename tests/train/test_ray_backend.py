"""``dsrl stage2 --backend ray``: the numbers of ``local``, and runs that survive their learner. Real Ray."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray_worlds import ray_of_this_module
from stoppable_runs import assert_same, content, finish, rows, start, wait_for_rows

from dsrl_offpolicy.rollouts.ray_collector import RayCollector
from dsrl_offpolicy.train.command import config_of_run
from dsrl_offpolicy.train.run import STAGE2, load_state
from dsrl_offpolicy.train.stage2_state import Stage2State
from dsrl_offpolicy.train.train_stage2_online import Stage2, settings

pytest.importorskip("ray", reason="needs the extra ray (pip install 'dsrl_offpolicy[ray]')")

# 24 warm-up transitions, then 252 of two environments that earn 2 gradient steps each: 504.
FLAGS = (
    "--env_id ray_worlds:Wandering-v0 --total_timesteps 2208 --warmup_steps 192 --utd_ratio 2 --batch_size 8 "
    "--log_freq 10 --eval_freq 1000 --eval_episodes 2 --num_envs 2 --train_episode_steps 36 "
    "--max_episode_steps 36 --actor_hidden_dims 16 --critic_hidden_dims 16 --save_freq 400 --compile off --loggers"
)
OF_THE_BACKEND = ("staleness_mean", "staleness_max", "learner_waiting", "runners_waiting", "policy_server_lost")


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    with ray_of_this_module() as address:
        yield address


def without(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name not in OF_THE_BACKEND} for row in found]


def test_one_runner_in_lockstep_is_local_to_the_bit(cluster, reach_base, run_command, tmp_path) -> None:
    for backend in ("local", "ray"):
        flags = [
            *FLAGS.split(),
            "--backend",
            backend,
            "--awsc_checkpoint",
            reach_base,
            "--out",
            tmp_path / backend,
        ]
        done = run_command(["stage2", *flags])
        assert done.status == 0, done.err
    assert without(rows(tmp_path / "ray")) == rows(tmp_path / "local")
    one, other = content(tmp_path / "ray"), content(tmp_path / "local")
    assert one["counters"]["gradient_steps"] >= 500
    for name in ("policy", "training", "counters", "recent", "replay"):
        assert_same(one[name], other[name], name)
    for name in ("numpy", "torch"):  # from python's generator, which nothing here reads, Ray itself draws
        assert_same(one["random"][name], other["random"][name], name)
    for file in (tmp_path / "local" / "replay").iterdir():
        assert file.read_bytes() == (tmp_path / "ray" / "replay" / file.name).read_bytes()
    staleness = {row["staleness_max"] for row in rows(tmp_path / "ray") if row["group"] == "train"}
    # The policy that acts is the one of before the last 2 transitions' 2 gradient steps each.
    assert staleness == {4.0}


class Begins(RayCollector):
    """Stands in for the collector of a run that has just resumed, without its actors."""

    def __init__(self) -> None:
        pass

    def load_state_dict(self, state: dict[str, Any]) -> bool:
        return False


def restored(folder: Path) -> Stage2:
    """What a resumed run goes on from."""
    stage = Stage2(config_of_run(settings(["--resume", str(folder)]), "stage2_online.yaml"))
    state = Stage2State(stage, folder)
    same = {"device": "cpu", "base_fingerprint": stage.base.fingerprint()}
    assert not state.restore(load_state(STAGE2, folder, state, same, stage.config), Begins())
    return stage


def test_a_killed_learner_resumes_to_the_bit_and_counts_its_episodes(cluster, reach_base, tmp_path) -> None:
    folder = tmp_path / "run"
    flags = f"{FLAGS} --eval_freq 0 --backend ray --ray_address {cluster} --num_runners 2 --max_lag 1"
    process = start(f"{flags} --awsc_checkpoint {reach_base} --out {folder}")
    wait_for_rows(process, folder, 20)
    os.killpg(process.pid, signal.SIGKILL)
    finish(process)
    saved = content(folder)
    assert saved["counters"]["gradient_steps"] > 0
    stage = restored(folder)
    assert_same(stage.agent.training_state(), saved["training"], "training")
    assert stage.buffer.total_added == saved["replay"]["total_added"] == saved["counters"]["macro_steps"]
    expected = {**saved["counters"], "restarted_episodes": 2}  # two environments, each in the middle of one
    assert vars(stage.counters) == expected
    status, said = finish(start(f"--resume {folder}"))
    assert status == 0, said
    ended = content(folder)["counters"]
    # Every macro-step stored after the warm-up has earned 2 gradient steps, and every one has been taken.
    assert ended["gradient_steps"] == 2 * ended["earning_transitions"]
    assert ended["macro_steps"] == content(folder)["replay"]["total_added"]
    assert ended["restarted_episodes"] == 2 and ended["lost_macro_steps"] == 0
