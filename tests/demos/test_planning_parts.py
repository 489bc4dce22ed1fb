"""Planned demonstrations in parts: what is made, what an interruption keeps, what is refused. No simulator."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_planners import FakePlanner
from tiny_worlds import snapshot

from dsrl_offpolicy.demos.format import read_demonstrations
from dsrl_offpolicy.demos.makers import motion_planning
from dsrl_offpolicy.demos.makers.motion_planning import check_planner, record_motion_plans
from dsrl_offpolicy.demos.makers.parts import PartCounts, PlanRequest, finished_parts, open_parts, parts_folder
from dsrl_offpolicy.errors import InputError

REQUEST = PlanRequest(
    env_id="PickCube-v1", control_mode="pd_ee_delta_pose", obs_mode="state", reward_mode="normalized_dense",
    max_episode_steps=1000, episodes=7, seed=1, first_seed=100,
)  # fmt: skip


@pytest.fixture
def out(tmp_path: Path) -> Path:
    path = tmp_path / "made" / "plans.h5"
    path.parent.mkdir()
    return path


@pytest.fixture
def fake(tmp_path: Path) -> Callable[..., FakePlanner]:
    return lambda **behaviour: FakePlanner(tmp_path / "calls.txt", **behaviour)


@pytest.fixture(autouse=True)
def able(monkeypatch) -> None:
    """A machine on which the planner can be started, whatever this one has."""
    monkeypatch.setattr(motion_planning.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(np, "__version__", "1.26.4")


def _record(out: Path, planner: FakePlanner, request: PlanRequest = REQUEST) -> list[PartCounts]:
    """The counts that were told."""
    told: list[PartCounts] = []
    assert record_motion_plans(request, out, told.append, planner) == told[-1]
    return told


def _interrupt(out: Path, fake: Callable[..., FakePlanner]) -> Path:
    """Ctrl-C in the second of two parts; the first."""
    planner = fake(trouble="interrupt", trouble_from=105)
    with pytest.raises(KeyboardInterrupt):
        _record(out, planner)
    planner.calls.unlink()
    return parts_folder(out) / "part_0000"


def _calls(planner: FakePlanner) -> list[str]:
    return planner.calls.read_text().splitlines()


def _seeds(out: Path) -> list[int]:
    return [int(t.obs[0, 0]) for t in read_demonstrations(out).trajectories]


def test_parts_add_up_to_what_is_asked_and_are_merged_in_order(out, fake):
    # 7 demonstrations in parts of 5. Seeds 101 and 106 fail and 103 is lost in the conversion: the first plans
    # 100, 102, 103, 104, 105 (6 tried), keeps 4; the second wants 7 - 4 = 3: 107, 108, 109 after 106 (4 tried).
    planner = fake(failing=(101, 106), lost=(103,))
    told = _record(out, planner)
    assert _calls(planner) == ["100 5", "106 3"]
    assert told == [PartCounts(), PartCounts(6, 5, 4), PartCounts(10, 8, 7)]
    assert (told[-1].failed_plans, told[-1].failed_replays) == (2, 1)
    assert _seeds(out) == [100, 102, 104, 105, 107, 108, 109]
    meta = json.loads(out.with_suffix(".json").read_text())
    assert [(e["episode_id"], e["episode_seed"]) for e in meta["episodes"]] == list(enumerate(_seeds(out)))
    assert meta["env_info"]["env_kwargs"] == {"control_mode": "pd_ee_delta_pose", "obs_mode": "state"}
    assert sorted(p.name for p in out.parent.iterdir()) == ["plans.h5", "plans.json"]


def test_merged_demonstrations_keep_their_order_beyond_ten(out, fake):
    _record(out, fake(), replace(REQUEST, episodes=12))
    assert _seeds(out) == list(range(100, 112))


def test_an_interrupted_run_goes_on_and_makes_nothing_anew(out, fake):
    first = _interrupt(out, fake)
    assert not out.exists() and [p for p, _ in finished_parts(first.parent)] == [first]
    before = snapshot(first)
    assert open_parts(first.parent, REQUEST) == PartCounts(5, 5, 5)
    assert snapshot(first) == before
    planner = fake()
    assert _record(out, planner) == [PartCounts(5, 5, 5), PartCounts(7, 7, 7)]
    assert _calls(planner) == ["105 2"]  # 7 - 5 are missing, from the first untried seed
    assert _seeds(out) == list(range(100, 107))


def test_parts_made_with_other_settings_are_refused(out, fake):
    folder = _interrupt(out, fake).parent
    before = snapshot(folder)
    for change in ({"control_mode": "pd_joint_delta_pos"}, {"episodes": 8}, {"seed": 2, "first_seed": 3}):
        name, value = next(iter(change.items()))
        with pytest.raises(InputError) as error:
            _record(out, fake(), replace(REQUEST, **change))
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


def test_a_conversion_that_loses_every_plan_is_given_up(out, fake):
    planner = fake(lost=tuple(range(100, 200)))
    with pytest.raises(InputError, match=r"control_mode: .*pd_ee_delta_pose \(0 of 5\)"):
        _record(out, planner)
    assert len(_calls(planner)) == 1


def test_a_file_that_came_to_be_meanwhile_is_not_written_over(out, fake):
    with pytest.raises(InputError, match="exists"):
        record_motion_plans(REQUEST, out, lambda counts: out.write_text("precious"), fake())
    assert out.read_text() == "precious" and len(finished_parts(parts_folder(out))) == 2
    out.unlink()
    planner = fake(trouble="crash")  # whole parts are only merged: nobody is asked for more
    assert _record(out, planner) == [PartCounts(7, 7, 7)] and _seeds(out) == list(range(100, 107))


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        ("crash", ["crash (SIGSEGV) after 5 demonstrations", "planner.log"]),
        ("raise", ["out after 5 demonstrations", "planner.log"]),
        ("refuse", ["env_id: expected this, got that"]),
        ("quit", ["got nothing after 5 demonstrations"]),
    ],
)
def test_a_planner_that_fails_or_crashes_costs_one_line_and_no_part(out, fake, trouble, words):
    with pytest.raises(InputError) as error:
        _record(out, fake(trouble=trouble, trouble_from=105))
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    assert not out.exists()
    assert _record(out, fake())[0] == PartCounts(5, 5, 5) and _seeds(out) == list(range(100, 107))


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


def test_control_modes_without_a_conversion_are_refused():
    check_planner(REQUEST)
    with pytest.raises(InputError, match="did you mean pd_ee_delta_pose") as error:
        check_planner(replace(REQUEST, control_mode="pd_ee_delta_poses"))
    assert "control_mode: " in str(error.value) and "pd_joint_delta_pos" in str(error.value)
