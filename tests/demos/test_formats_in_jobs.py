"""The same demonstrations in robomimic's and LeRobot's files: every job that reads demonstrations takes them."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from tiny_worlds import TASK, TINY_BASE, TINY_STAGE1, TINY_WIDTHS

from dsrl_offpolicy.configs.jobs import Stage0Config
from dsrl_offpolicy.demos.format import read_demonstrations
from dsrl_offpolicy.demos.trajectory import Trajectory
from dsrl_offpolicy.train.demonstrations import load_demonstrations
from dsrl_offpolicy.train.train_stage2_online import Stage2, settings


def _losses(run: Path) -> list[float]:
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [row[name] for row in rows for name in row if name.endswith("_loss")]


def _trains_all_stages(demos: Path, folder: Path, run_command) -> Stage2:
    """Stages 0 and 1, and Stage 2 up to its inverted demonstrations, which it finds where Stage 1 did."""
    done = run_command(["pretrain", "--demo_path", demos, "--out", folder / "s0", *TINY_BASE])
    assert done.status == 0, done.err
    base = folder / "s0" / "checkpoints" / "last.pt"
    done = run_command(["stage1", "--demo_path", demos, "--base", base, "--out", folder / "s1", *TINY_STAGE1])
    assert done.status == 0, done.err
    flags = ["--env_id", TASK, "--base", base, "--stage1_checkpoint", folder / "s1" / "checkpoints" / "last.pt"]
    stage2 = Stage2(settings([str(flag) for flag in (*flags, "--inversion_tolerance", "0.1", *TINY_WIDTHS)]))
    assert stage2.config.demo_path == demos.resolve() and stage2.offline is not None
    return stage2


def test_robomimics_file_trains_as_the_one_it_was_made_of(tiny_demos: Path, tiny_stage0, tmp_path, run_command):
    """Observations, actions, success and controller are the same, so the losses are, to the bit."""
    demos, path = read_demonstrations(tiny_demos), tmp_path / "low_dim.hdf5"
    args = {"env_name": TASK, "type": 2, "env_kwargs": {"controller_configs": {"type": demos.control_mode}}}
    with h5py.File(path, "w") as file:
        file.create_group("data").attrs["env_args"] = json.dumps(args)
        for i, trajectory in enumerate(demos.trajectories):
            demo = file.create_group(f"data/demo_{i}")
            demo["actions"], demo["rewards"] = trajectory.actions, trajectory.success.astype(np.float64)
            for name, columns in (
                ("robot0_eef_pos", slice(0, 3)), ("robot0_eef_quat", slice(3, 7)),
                ("robot0_gripper_qpos", slice(7, 9)), ("object", slice(9, 39)),
            ):  # fmt: skip
                demo[f"obs/{name}"] = trajectory.obs[:-1, columns]
                demo[f"next_obs/{name}"] = trajectory.obs[1:, columns]
    stage2 = _trains_all_stages(path, tmp_path, run_command)
    assert _losses(tmp_path / "s0") == _losses(tiny_stage0) and len(_losses(tiny_stage0)) > 2
    assert len(stage2.offline.transitions.rows.latent) > 50


def test_lerobots_folder_trains_every_stage(tiny_demos: Path, tmp_path: Path, run_command) -> None:
    pytest.importorskip("pyarrow", reason="needs the extra lerobot-data")
    from lerobot_datasets import write_lerobot

    def frames(trajectory: Trajectory) -> dict[str, np.ndarray]:
        return {
            "observation.state": trajectory.obs[:-1, :4],
            "observation.environment_state": trajectory.obs[:-1, 4:],
            "action": trajectory.actions,
            "next.success": trajectory.success,
        }

    made = [frames(trajectory) for trajectory in read_demonstrations(tiny_demos).trajectories]
    folder = write_lerobot(tmp_path / "set", made)
    stage2 = _trains_all_stages(folder, tmp_path, run_command)
    assert len(stage2.offline.transitions.rows.latent) > 50
    config = Stage0Config(env_id=TASK)
    assert load_demonstrations(config, folder).control_mode == ""
    assert load_demonstrations(config, folder, control_mode="pd_ee_delta_pos").control_mode == "pd_ee_delta_pos"
