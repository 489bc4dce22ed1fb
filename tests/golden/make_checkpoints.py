"""Write format-N/: tiny real files of every kind, N being the format version of the package, for test_formats.py.

    python tests/golden/make_checkpoints.py

Run once per format version, by the code that introduced it, and never again: the files are what users of that
version have on their disks. ``expected.json`` beside them says what they compute. The Stage 2 run was stopped by
SIGTERM after its second save, and can go on.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any

import torch

from dsrl_offpolicy.agents.stage2_config import Stage2Config
from dsrl_offpolicy.base_policies.loading import load_base_policy
from dsrl_offpolicy.commands import demos as generate_demos
from dsrl_offpolicy.configs.jobs import DemosConfig, Stage0Config, Stage1Config
from dsrl_offpolicy.contracts import Encoding
from dsrl_offpolicy.files.checkpoint import read_tensors
from dsrl_offpolicy.files.formats import FORMAT_VERSION
from dsrl_offpolicy.train import pretrain_stage0, train_stage1_offline, train_stage2_online
from dsrl_offpolicy.train.run import Interrupted
from dsrl_offpolicy.train.saves import Saves
from dsrl_offpolicy.train.steering_files import load_steering

FOLDER = Path(__file__).parent / f"format-{FORMAT_VERSION}"
TASK = "reach-v3"
STAGE2 = Stage2Config(
    env_id=TASK, awsc_checkpoint=Path("base_policy.pt"), stage1_checkpoint=Path("stage1.pt"), init_critic=True,
    out=Path("stage2"), total_timesteps=160, warmup_steps=32, utd_ratio=1.0, batch_size=4, log_freq=4, num_envs=2,
    train_episode_steps=20, max_episode_steps=20, eval_freq=80, eval_episodes=1, save_freq=48,
    actor_hidden_dims=(4,), critic_hidden_dims=(4,), replay_buffer_size=64,
)  # fmt: skip


def fixed(*shape: int) -> torch.Tensor:
    """An input that needs no generator: values in [-1, 1]."""
    count = torch.Size(shape).numel()
    return torch.linspace(-1, 1, count).reshape(shape)


def outputs(folder: Path) -> dict[str, Any]:
    """What the networks in the files of a folder compute on fixed inputs, as nested lists."""
    base = load_base_policy(folder / "base_policy.pt")
    features = base.encode(fixed(2, base.info.obs_horizon, base.info.state_dim)).features
    chunk = base.decode(Encoding(features), fixed(2, *base.info.latent_shape))
    found = {
        "features": features,
        "chunk": chunk,
        "q_values": base.critic.q_values(features, chunk[:, base.critic.rows]),
    }
    for stage, file in (("stage1", "stage1.pt"), ("stage2", "stage2/checkpoints/last.pt")):
        policy, _ = load_steering(folder / file, stage, stage, base, torch.device("cpu"))
        found[stage] = policy.act(features, fixed(2, *base.info.latent_shape))
    return {name: value.tolist() for name, value in found.items()}


def stop_after(saves: int) -> None:
    """Send this process SIGTERM right after the so manieth save of a run."""
    save, done = Saves.save, []

    def save_and_stop(self: Saves, content: dict[str, Any], progress: str = "") -> None:
        save(self, content, progress)
        done.append(True)
        if len(done) == saves:
            signal.raise_signal(signal.SIGTERM)

    Saves.save = save_and_stop  # type: ignore[method-assign]


def make_stages(demos: Path, scratch: Path) -> None:
    """Base policy, Stage 1 and the interrupted Stage 2 in this folder, whose paths their configs then hold."""
    stage0 = pretrain_stage0.run(
        Stage0Config(
            env_id=TASK, demo_path=demos, out=scratch / "stage0", total_iters=10, batch_size=8, pred_horizon=4,
            act_horizon=4, denoising_steps=2, velocity_widths=(8,), critic_hidden_dims=(4,), embed_dim=4,
        )
    )  # fmt: skip
    shutil.copy(stage0 / "checkpoints" / "last.pt", "base_policy.pt")
    stage1 = train_stage1_offline.run(
        Stage1Config(
            env_id=TASK, demo_path=demos, awsc_checkpoint=Path("base_policy.pt"), out=scratch / "stage1",
            total_iters=10, batch_size=4, num_candidates=4, eval_freq=0, verify_states=4, verify_samples=2,
            distill_q=True, actor_hidden_dims=(4,), critic_hidden_dims=(4,),
        )
    )  # fmt: skip
    shutil.copy(stage1 / "checkpoints" / "last.pt", "stage1.pt")
    stop_after(2)
    with contextlib.suppress(Interrupted):
        train_stage2_online.run(STAGE2)
    shutil.rmtree("stage2/tensorboard")
    Path("stage2/.lock").unlink()


def main() -> None:
    """Make the folder, which must not exist yet."""
    FOLDER.mkdir()
    os.chdir(FOLDER)
    with tempfile.TemporaryDirectory() as scratch:
        demos = DemosConfig(env_id=TASK, out=Path(scratch) / "demos.h5", episodes=3, demo_steps=30)
        make_stages(generate_demos.run(demos), Path(scratch))
    last = read_tensors(Path("stage2/checkpoints/last.pt"), "run", "last")
    files = [read_tensors(path, "replay file", "replay") for path in sorted(Path("stage2/replay").glob("*.pt"))]
    expected = {
        "outputs": outputs(Path()),
        "counters": last["counters"],
        "transitions": last["replay"]["total_added"],
        "rewards": torch.cat([file["reward"] for file in files]).tolist(),
        "rows_of_metrics": last["log"]["rows"],
    }
    Path("expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
