"""Planned demonstrations in parts: what is made, what an interruption keeps, what is refused. No simulator."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_worlds import snapshot

from dsrl_offpolicy.demos import motion_planning
from dsrl_offpolicy.demos.motion_planning import check_planner, record_motion_plans
from dsrl_offpolicy.demos.planning_parts import (
    PartCounts,
    PlanRequest,
    finished_parts,
    make_parts,
    merge_parts,
    open_parts,
    parts_folder,
)
from dsrl_offpolicy.demos.trajectory import Trajectory, read_demonstrations, write_demonstrations
from dsrl_offpolicy.errors import InputError

REQUEST = PlanRequest(
    env_id="PickCube-v1", control_mode="pd_ee_delta_pose", obs_mode="state", reward_mode="normalized_dense",
    max_episode_steps=1000, episodes=7, seed=1, first_seed=100,
)  # fmt: skip
ENV_INFO = {
    "env_id": "PickCube-v1",
    "env_kwargs": {"control_mode": "pd_ee_delta_pose", "render_backend": "none", "obs_mode": "state"},
    "max_episode_steps": 1000,
}


class Maker:
    """Makes parts whose demonstrations have their start's seed as observations.

    Args:
        failing: seeds from which planning fails.
        lost: seeds whose plan is lost in the conversion.
        crash_at: call (from 0) that leaves half a part and raises.
    """

    def __init__(self, failing: tuple[int, ...] = (), lost: tuple[int, ...] = (), crash_at: int = -1) -> None:
        self.failing, self.lost, self.crash_at = failing, lost, crash_at
        self.calls: list[tuple[str, int, int]] = []

    def __call__(self, folder: Path, first_seed: int, count: int) -> PartCounts:
        self.calls.append((folder.name, first_seed, count))
        if len(self.calls) - 1 == self.crash_at:
            (folder / "plans.h5").write_text("half")
            raise KeyboardInterrupt
        planned, seed = [], first_seed
        while len(planned) < count:
            planned += [seed] if seed not in self.failing else []
            seed += 1
        kept = [s for s in planned if s not in self.lost]
        write_demonstrations(folder / "trajectory.h5", [_trajectory(s) for s in kept], ENV_INFO, kept)
        return PartCounts(seed - first_seed, count, len(kept))


def _trajectory(seed: int) -> Trajectory:
    flags = np.zeros(2, bool)
    obs = np.full((3, 4), seed, np.float32)
    return Trajectory(obs, np.zeros((2, 7), np.float32), flags, flags, flags, np.zeros(2, np.float32))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "plans.h5"


@pytest.fixture
def able(monkeypatch) -> None:
    """A machine on which the planner can be started, whatever this one has."""
    monkeypatch.setattr(motion_planning.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(np, "__version__", "1.26.4")


def _make(out: Path, maker: Maker, request: PlanRequest = REQUEST) -> tuple[PartCounts, list[PartCounts]]:
    told: list[PartCounts] = []
    folder = parts_folder(out)
    open_parts(folder, request)
    return make_parts(folder, request, maker, told.append), told


def _seeds(out: Path) -> list[int]:
    return [int(t.obs[0, 0]) for t in read_demonstrations(out).trajectories]


def test_parts_add_up_to_what_is_asked_and_are_merged_in_order(out):
    # 7 demonstrations in parts of 5. Seeds 101 and 106 fail and 103 is lost in the conversion: the first plans
    # 100, 102, 103, 104, 105 (6 tried), keeps 4; the second wants 7 - 4 = 3: 107, 108, 109 after 106 (4 tried).
    maker = Maker(failing=(101, 106), lost=(103,))
    total, told = _make(out, maker)
    assert maker.calls == [("part_0000.unfinished", 100, 5), ("part_0001.unfinished", 106, 3)]
    assert told == [PartCounts(6, 5, 4), PartCounts(10, 8, 7)] and total == told[-1]
    assert (total.failed_plans, total.failed_replays) == (2, 1)
    merge_parts(parts_folder(out), out)
    assert _seeds(out) == [100, 102, 104, 105, 107, 108, 109]
    meta = json.loads(out.with_suffix(".json").read_text())
    assert [(e["episode_id"], e["episode_seed"]) for e in meta["episodes"]] == list(enumerate(_seeds(out)))
    assert meta["env_info"]["env_kwargs"] == {"control_mode": "pd_ee_delta_pose", "obs_mode": "state"}
    assert sorted(p.name for p in out.parent.iterdir()) == ["plans.h5", "plans.json"]


def test_merged_demonstrations_keep_their_order_beyond_ten(out):
    _make(out, Maker(), replace(REQUEST, episodes=12))
    merge_parts(parts_folder(out), out)
    assert _seeds(out) == list(range(100, 112))


def test_an_interrupted_run_goes_on_and_makes_nothing_anew(out):
    folder = parts_folder(out)
    with pytest.raises(KeyboardInterrupt):
        _make(out, Maker(crash_at=1))
    assert sorted(p.name for p in folder.glob("part_*")) == ["part_0000", "part_0001.unfinished"]
    first = snapshot(folder / "part_0000")
    assert open_parts(folder, REQUEST) == PartCounts(5, 5, 5)
    maker = Maker()
    _make(out, maker)
    assert maker.calls == [("part_0001.unfinished", 105, 2)]  # 7 - 5 are missing, from the first untried seed
    assert snapshot(folder / "part_0000") == first
    assert [p.name for p, _ in finished_parts(folder)] == ["part_0000", "part_0001"]
    assert not (folder / "part_0001" / "plans.h5").exists()  # nothing is left of the half part


def test_parts_made_with_other_settings_are_refused(out):
    folder = parts_folder(out)
    with pytest.raises(KeyboardInterrupt):
        _make(out, Maker(crash_at=1))
    before = snapshot(folder)
    for change in ({"control_mode": "pd_joint_delta_pos"}, {"episodes": 8}, {"seed": 2, "first_seed": 3}):
        name, value = next(iter(change.items()))
        with pytest.raises(InputError) as error:
            open_parts(folder, replace(REQUEST, **change))
        message = str(error.value)
        assert message.startswith(f"{name}: ") and str(value) in message and str(getattr(REQUEST, name)) in message
        assert str(folder) in message and "\n" not in message
    assert snapshot(folder) == before


def test_a_folder_that_is_not_of_parts_is_left_alone(out):
    folder = parts_folder(out)
    folder.mkdir()
    (folder / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match=r"plans\.h5\.parts"):
        open_parts(folder, REQUEST)
    assert [p.name for p in folder.iterdir()] == ["thesis.txt"]
    (folder / "settings.json").write_text("{broken")
    with pytest.raises(InputError, match=r"settings\.json"):
        open_parts(folder, REQUEST)


def test_a_conversion_that_loses_every_plan_is_given_up(out):
    maker = Maker(lost=tuple(range(100, 200)))
    with pytest.raises(InputError, match=r"control_mode: .*pd_ee_delta_pose \(0 of 5\)"):
        _make(out, maker)
    assert len(maker.calls) == 1


def test_a_file_that_came_to_be_meanwhile_is_not_written_over(out):
    _make(out, Maker())
    out.write_text("precious")
    with pytest.raises(InputError, match="exists"):
        merge_parts(parts_folder(out), out)
    assert out.read_text() == "precious" and len(finished_parts(parts_folder(out))) == 2


@pytest.mark.usefixtures("able")
@pytest.mark.parametrize(
    ("code", "words"),
    [
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
            ["crash (SIGSEGV) after 5 demonstrations", "planner.log"],
        ),
        ("raise RuntimeError('no way\\n out')", ["out after 5 demonstrations", "planner.log"]),
        ('print(\'{"error": "env_id: expected this, got that"}\')', ["env_id: expected this, got that"]),
        ("pass", ["got nothing after 5 demonstrations"]),
    ],
)
def test_a_planner_that_fails_or_crashes_costs_one_line_and_no_part(out, monkeypatch, code, words):
    with pytest.raises(KeyboardInterrupt):
        _make(out, Maker(crash_at=1))
    before = snapshot(parts_folder(out) / "part_0000")
    monkeypatch.setattr(motion_planning, "CHILD", ("-c", code))
    with pytest.raises(InputError) as error:
        record_motion_plans(REQUEST, out, lambda counts: None)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    assert snapshot(parts_folder(out) / "part_0000") == before and not out.exists()


@pytest.mark.usefixtures("able")
def test_a_run_whose_parts_are_whole_only_merges_them(out, monkeypatch):
    _make(out, Maker())
    monkeypatch.setattr(motion_planning, "CHILD", ("-c", "raise SystemExit('started')"))
    told: list[PartCounts] = []
    assert record_motion_plans(REQUEST, out, told.append) == PartCounts(7, 7, 7)
    assert told == [PartCounts(7, 7, 7)] and _seeds(out) == list(range(100, 107))


def test_what_keeps_the_planner_from_starting_is_said_in_one_line(out, monkeypatch):
    monkeypatch.setattr(motion_planning.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"expected the extra maniskill \(pip install 'dsrl_offpolicy\[maniskill\]'\)"
    ):
        record_motion_plans(REQUEST, out, lambda counts: None)
    monkeypatch.setattr(motion_planning.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(np, "__version__", "2.1.0")
    with pytest.raises(InputError, match=r"numpy: .*'numpy<2'.*2\.1\.0"):
        record_motion_plans(REQUEST, out, lambda counts: None)
    assert not list(out.parent.iterdir())  # nothing was begun


@pytest.mark.usefixtures("able")
def test_control_modes_without_a_conversion_are_refused():
    check_planner(REQUEST)
    with pytest.raises(InputError, match="did you mean pd_ee_delta_pose") as error:
        check_planner(replace(REQUEST, control_mode="pd_ee_delta_poses"))
    assert "control_mode: " in str(error.value) and "pd_joint_delta_pos" in str(error.value)
