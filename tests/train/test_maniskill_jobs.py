"""Every job on LiftPegUpright-v1, with states and with images, on real steps and frames; the seed document's two
commands as they stand there, from its folders, over a published checkpoint."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from published_files import Layout, published_content
from tiny_worlds import TINY_WIDTHS

import dsrl_offpolicy
from dsrl_offpolicy import load_base_policy
from dsrl_offpolicy.demos.format import read_demonstrations
from dsrl_offpolicy.files.checkpoint import read_tensors

pytestmark = [pytest.mark.maniskill, pytest.mark.usefixtures("maniskill")]

TASK = "LiftPegUpright-v1"
TRAIN = Path(dsrl_offpolicy.__file__).parent / "train"
STATE_DIM = {"state": 32, "rgb": 25}
IMAGE_FLAGS = ["--encoder_iters", 2, "--encoder_batch_size", 4, "--visual_dim", 6]


@dataclass(frozen=True)
class Chain:
    """What the jobs of one observation mode left."""

    mode: str
    folder: Path

    @property
    def demos(self) -> Path:
        return self.folder / "demos.h5"

    def checkpoint(self, stage: str) -> Path:
        return self.folder / stage / "checkpoints" / "last.pt"

    def summary(self, stage: str) -> dict:
        return json.loads((self.folder / stage / "summary.json").read_text())


@pytest.fixture(scope="module", params=["state", pytest.param("rgb", marks=pytest.mark.slow)])
def chain(request, run_command, tmp_path_factory) -> Chain:
    """Demonstrations, Stages 0, 1, 2 and the table, each as small as it goes."""
    chain = Chain(request.param, tmp_path_factory.mktemp(request.param))
    episode = ["--env_id", TASK, "--num_envs", 1, "--max_episode_steps", 16]
    base = ["--awsc_checkpoint", chain.checkpoint("stage0")]
    stage1 = ["--stage1_checkpoint", chain.checkpoint("stage1")]
    commands = {
        "demos.h5": ["demos", "--env_id", TASK, "--demonstrator", "scripted", "--obs_mode", chain.mode,
                     "--episodes", 3, "--demo_steps", 12],
        "stage0": ["pretrain", *episode, "--demo_path", chain.demos, "--total_iters", 4, "--batch_size", 8,
                   "--velocity_widths", 16, "--embed_dim", 8, "--critic_hidden_dims", 16, "--denoising_steps", 2,
                   "--log_freq", 2, *(IMAGE_FLAGS if chain.mode == "rgb" else [])],
        "stage1": ["stage1", *episode, "--demo_path", chain.demos, *base, "--total_iters", 2, "--batch_size", 4,
                   "--num_candidates", 4, "--verify_states", 4, "--verify_samples", 2, "--eval_freq", 0,
                   *TINY_WIDTHS],
        "stage2": ["stage2", *episode, *base, *stage1, "--total_timesteps", 40, "--warmup_steps", 16,
                   "--utd_ratio", 2, "--batch_size", 4, "--log_freq", 2, "--eval_freq", 40, "--eval_episodes", 1,
                   *TINY_WIDTHS],
        "eval": ["eval", *episode, *base, *stage1, "--stage2_checkpoint", chain.checkpoint("stage2"),
                 "--episodes", 1, "--constants", 0],
    }  # fmt: skip
    for out, command in commands.items():
        done = run_command([*command, "--out", chain.folder / out])
        assert done.status == 0, done.err
    return chain


def test_demonstrations_hold_what_was_asked_for(chain):
    demos = read_demonstrations(chain.demos, need_rewards=True, need_images=chain.mode == "rgb")
    assert (demos.env_id, demos.control_mode, demos.obs_mode) == (TASK, "pd_ee_delta_pose", chain.mode)
    assert demos.reward_mode == "normalized_dense" and len(demos.trajectories) == 3
    assert demos.state_dim == STATE_DIM[chain.mode] and demos.action_dim == 7
    for trajectory in demos.trajectories:
        assert len(trajectory) == 12 and bool(trajectory.truncated[-1])  # gave up after demo_steps
        if chain.mode == "rgb":
            assert trajectory.images is not None and trajectory.images.shape == (13, 128, 128, 3)


def test_the_base_policy_knows_its_observations(chain):
    base = load_base_policy(chain.checkpoint("stage0"))
    rgb = chain.mode == "rgb"
    info = base.info
    assert info.obs_mode == chain.mode and info.state_dim == STATE_DIM[chain.mode]
    assert info.feature_dim == STATE_DIM[chain.mode] + (6 if rgb else 0)
    assert info.image_channels == (3 if rgb else 0) and info.image_size == ((128, 128) if rgb else None)
    assert info.control_mode == "pd_ee_delta_pose"


def test_stage_2_stores_features_and_learns_from_real_steps(chain):
    summary = chain.summary("stage2")
    assert summary["env_steps"] == 40 and summary["episodes"] == 2  # 16 + 16 + 8
    # Chunks of 8: 5 transitions; the three after the warm-up of 16 steps earn 2 gradient steps each.
    assert summary["gradient_steps"] == 6
    (file,) = (chain.folder / "stage2" / "replay").glob("*.pt")
    buffer = read_tensors(file, "file", "test")
    widths = {value.shape[-1] for name, value in buffer.items() if "obs_features" in name}
    assert widths == {STATE_DIM[chain.mode] + (6 if chain.mode == "rgb" else 0)}


def test_the_table_has_every_policy(chain):
    rows = json.loads((chain.folder / "eval" / "evaluation.json").read_text())
    names = [row["policy"] for row in rows]
    assert names[:3] == ["base (prior noise)", "w = 0", "best of 32 by Q^A"] and len(names) == 7
    assert all(row["length"] == 16 for row in rows)  # the time limit that was asked for


def test_what_contradicts_the_files_is_one_line(chain, run_command, tmp_path):
    other = "rgb" if chain.mode == "state" else "state"
    base = ["--awsc_checkpoint", chain.checkpoint("stage0")]
    out = ["--out", tmp_path / "run"]
    pretrain = ["pretrain", "--env_id", TASK, "--demo_path", chain.demos, *out]
    cases = [
        ([*pretrain, "--control_mode", "pd_joint_delta_pos"], ["control_mode", "pd_joint_delta_pos"]),
        ([*pretrain, "--reward_mode", "dense"], ["reward_mode", "dense", "normalized_dense"]),
        (["stage2", "--env_id", TASK, *base, "--obs_mode", other, *out], ["obs_mode", chain.mode, other]),
        (["stage2", "--env_id", TASK, *base, "--control_mode", "pd_joint_delta_pos", *out], ["control_mode"]),
        (["eval", "--env_id", TASK, *base, "--sim_backend", "physx_cuda", *out], ["sim_backend", "physx_cuda"]),
    ]
    if chain.mode == "state":
        cases.append(([*pretrain, "--obs_mode", "rgb"], ["obs_mode", "rgb", "state"]))
        cases.append(([*pretrain, "--visual_dim", 6], ["visual_dim", "without images"]))
    else:
        cases.append(([*pretrain, "--image_size", 64, 64], ["image_size", "(128, 128)", "(64, 64)"]))
        cases.append(
            (["eval", "--env_id", TASK, *base, "--image_size", 64, 64, *out], ["image_size", "(128, 128)"])
        )
    if torch.cuda.is_available():
        cases = [case for case in cases if "physx_cuda" not in case[0]]
    for argv, words in cases:
        done = run_command(argv)
        assert done.status == 2 and len(done.error_lines) == 1, (argv, done.err)
        for word in words:
            assert word in done.err, (argv, done.err)
        assert not (tmp_path / "run").exists()


def test_a_policy_of_another_task_is_refused_by_its_dimensions(chain, run_command, tmp_path):
    if chain.mode == "rgb":
        pytest.skip("once is enough: the images of another task are another policy's")
    flags = ["--env_id", "PushT-v1", "--awsc_checkpoint", chain.checkpoint("stage0")]
    done = run_command(["eval", *flags, "--out", tmp_path / "run"])
    assert done.status == 2 and "PushT-v1" in done.err and "dimensions" in done.err


def _seeds_command(script: str, command: str, home: Path) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    environment |= {"HOME": str(home), "WANDB_SILENT": "true", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, script, *command.split()],
        cwd=TRAIN, env=environment, capture_output=True, text=True, timeout=280,
    )  # fmt: skip


def test_the_seeds_two_commands_over_a_published_checkpoint(chain, tmp_path):
    """Shortened in their counts (iterations, env steps, episodes), as a machine without a GPU needs it."""
    cameras, visual = (1, 8) if chain.mode == "rgb" else (0, 0)
    layout = Layout(
        action_dim=7, widths=(8, 16), state_dim=STATE_DIM[chain.mode], act_horizon=8, cameras=cameras,
        visual_dim=visual,
    )  # fmt: skip
    published = tmp_path / "best_eval_success_once.pt"
    torch.save(published_content(layout), published)
    stage1, stage2 = tmp_path / "stage1", tmp_path / "stage2"
    short = "--num_envs 1 --eval_episodes 1 --max_episode_steps 16 --num_candidates 4 --verify_samples 2"
    done = _seeds_command(
        "train_stage1_offline.py",
        f"--env_id {TASK} --demo_path {chain.demos} --awsc_checkpoint {published} "
        f"--total_iters 2 --batch_size 256 --track --out {stage1} {short}",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert len(list((stage1 / "wandb").glob("offline-run-*"))) == 1
    done = _seeds_command(
        "train_stage2_online.py",
        f"--env_id {TASK} --awsc_checkpoint {published} "
        f"--stage1_checkpoint {stage1}/checkpoints/best_eval_success_once.pt --total_timesteps 24 "
        f"--utd_ratio 20 --batch_size 256 --warmup_steps 16 --track --out {stage2} "
        "--num_envs 1 --eval_episodes 1 --max_episode_steps 16",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((stage2 / "summary.json").read_text())
    assert summary["env_steps"] == 24
    assert summary["gradient_steps"] == 20  # the one transition after the warm-up, 20 each
    assert "Traceback" not in done.stderr
