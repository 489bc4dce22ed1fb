"""The one mechanism of folder, signals, saves and resume, on a stage that only counts."""

from __future__ import annotations

import signal
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dsrl_offpolicy.agents.stage2_config import Stage2Config
from dsrl_offpolicy.configs.jobs import Stage1Config
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.train.run import (
    MAY_CHANGE,
    STAGE1,
    STAGE2,
    Interrupted,
    Resumable,
    run_folder,
    training_run,
)


class Counting(Resumable):
    """Counts to ten; ``saved_at`` are the steps at which its state was asked for."""

    def __init__(self, kept: bool) -> None:
        self.step, self.saved_at, self.at_end, self.kept = 0, [], False, kept

    def progress(self) -> tuple[int, int]:
        return self.step, 10

    def state(self) -> dict:
        self.saved_at.append(self.step)
        collector = {"collector": None if self.at_end else {}} if self.kept else {}
        return {"training": {"networks": {"w": torch.zeros(2)}}, "step": self.step, **collector}

    def check(self, state, where) -> None:
        assert state["step"] <= 10


def go(config, stage=STAGE1, stop_at: int | None = None, device: str = "cpu") -> Counting:
    subject = Counting(stage.kept)
    with training_run(stage, subject, config, run_folder(config), {"device": device}) as run:
        subject.step = run.resumed["step"] if run.resumed else 0
        run.between_steps()
        while subject.step < 10:
            subject.step += 1
            if subject.step == stop_at:
                signal.raise_signal(signal.SIGTERM)
            run.between_steps()
        subject.at_end = True
        run.tracker.write_summary({})
    return subject


@pytest.fixture
def config(tmp_path: Path) -> Stage1Config:
    return Stage1Config(out=tmp_path / "run", save_freq=4)


@pytest.fixture
def stopped(config: Stage1Config) -> Stage1Config:
    """A run that was stopped after 6 of 10 steps, to be resumed."""
    with pytest.raises(Interrupted, match=f"SIGTERM; resume with: dsrl stage1 --resume {config.out}"):
        go(config, stop_at=6)
    return replace(config, resume=config.out)


def test_saves_stand_apart_until_the_run_has_ended(config) -> None:
    assert go(config).saved_at == [0, 4, 8]
    assert not (config.out / "unfinished").exists() and STAGE1.has_ended(config.out)
    with pytest.raises(InputError, match="has finished"):
        go(replace(config, resume=config.out))


def test_a_stage_that_keeps_its_saves_keeps_the_last_one(tmp_path) -> None:
    config = Stage2Config(out=tmp_path / "run", save_freq=4)
    assert go(config, STAGE2).saved_at == [4, 8, 10]
    assert STAGE2.has_ended(config.out)
    with pytest.raises(InputError, match="has finished"):
        go(replace(config, resume=config.out), STAGE2)


def test_a_stopped_run_resumes_where_it_stood(stopped) -> None:
    assert not STAGE1.has_ended(stopped.resume)
    assert go(stopped).saved_at == [6, 8]
    assert STAGE1.has_ended(stopped.resume)


@pytest.mark.parametrize(
    ("name", "value"), [("gamma", 0.5), ("num_envs", 9), ("actor_hidden_dims", (8,)), ("total_iters", 3)]
)
def test_a_setting_that_makes_another_run_is_refused_by_name(tmp_path, name, value) -> None:
    stage, job = (STAGE2, Stage2Config) if hasattr(Stage2Config, name) else (STAGE1, Stage1Config)
    config = job(out=tmp_path / "run", save_freq=4)
    with pytest.raises(Interrupted):
        go(config, stage, stop_at=6)
    edited = replace(config, resume=config.out, **{name: value})
    with pytest.raises(InputError, match=rf"^{name}: expected .*, with which the run began, got .*config\.yaml"):
        go(edited, stage)
    go(replace(edited, **{name: getattr(config, name)}), stage)


def test_what_may_change_may_change(stopped) -> None:
    changed = {"log_freq": 7, "save_freq": 5, "torch_threads": 2, "demo_path": Path("moved.h5")}
    assert set(changed) < set(MAY_CHANGE)
    assert go(replace(stopped, **changed)).step == 10


def test_a_save_from_before_settings_were_kept_resumes(stopped) -> None:
    saves = STAGE1.saves(stopped.resume)
    content = saves.load()
    del content["settings"]
    saves.save(content)
    assert go(replace(stopped, tau=99.0)).step == 10


def test_another_type_of_device_is_refused(stopped) -> None:
    with pytest.raises(InputError, match="device: expected cpu, where the run began, got cuda"):
        go(stopped, device="cuda")


def test_work_in_a_thread_is_waited_for_unless_a_signal_comes(config) -> None:
    never = threading.Event()

    def fail() -> None:
        raise RuntimeError("no compiler")

    def endless() -> None:
        signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)
        never.wait()

    subject = Counting(kept=False)
    with training_run(STAGE1, subject, config, run_folder(config), {"device": "cpu"}) as run:
        assert run.waiting_for(lambda: 7) == 7
        with pytest.raises(RuntimeError, match="no compiler"):
            run.waiting_for(fail)
        with pytest.raises(Interrupted):
            run.waiting_for(endless)
    never.set()
    assert subject.saved_at == [0]
