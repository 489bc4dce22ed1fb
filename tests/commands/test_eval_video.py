"""``dsrl eval --video`` and ``dsrl stage2 --video_every``, and what is said where there can be no video."""

from __future__ import annotations

import builtins
import json
from pathlib import Path

import numpy as np
import pytest
from drawn_worlds import difference, read_video
from tiny_worlds import TASK, TINY_WIDTHS, snapshot

from dsrl_offpolicy.evaluation.video import CAPTION, HOLD
from dsrl_offpolicy.files.metrics import read_metrics
from dsrl_offpolicy.train.videos import Videos

pytest.importorskip("imageio_ffmpeg", reason="needs the extra video")

DRAWN = ["--base", "probe_worlds:Guided", "--env_id", "drawn_worlds:DrawnReach-v0", "--num_envs", 1]
SMALL_EVAL = ["--episodes", 2, "--constants", 0]
STAGE2 = [
    "stage2", *DRAWN, "--total_timesteps", 96, "--warmup_steps", 24, "--batch_size", 4, "--utd_ratio", 1,
    "--log_freq", 4, "--eval_freq", 24, "--eval_episodes", 1, *TINY_WIDTHS,
]  # fmt: skip
HEIGHT, WIDTH, STEPS = 32, 64, 12


@pytest.fixture(scope="module")
def filmed(run_command, tmp_path_factory) -> Path:
    """A run of Stage 2 that filmed every second evaluation."""
    folder = tmp_path_factory.mktemp("filmed") / "run"
    done = run_command([*STAGE2, "--video_every", 2, "--out", folder])
    assert done.status == 0, done.err
    return folder


def point(frame: np.ndarray, panel: int) -> int:
    """The column at which the point is drawn in a panel."""
    picture = frame[CAPTION:, panel * WIDTH : (panel + 1) * WIDTH].astype(int).sum(axis=(0, 2))
    return int(np.argmax(np.convolve(picture, np.ones(4), "valid")))


def test_stage2_films_every_kth_evaluation(filmed):
    evaluated = [row["env_steps"] for row in read_metrics(filmed) if row["group"] == "eval"]
    assert len(evaluated) == 5
    found = sorted(path.name for path in (filmed / "videos").iterdir())
    assert found == [f"env-steps-{evaluated[index]:09d}.mp4" for index in (0, 2, 4)]
    for name in found:
        frames = read_video(filmed / "videos" / name)
        # Nothing ends an evaluation's episode before its 12 env steps; the start is drawn too.
        assert frames.shape == (STEPS + 1 + HOLD, CAPTION + HEIGHT, 2 * WIDTH, 3)
        assert point(frames[0], 0) == point(frames[0], 1) == 32  # one start, at position 0
        assert difference(frames[STEPS], frames[-1]) < 2


def test_stage2_hands_its_videos_to_tensorboard(filmed):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(filmed / "tensorboard")).Reload()
    shown = events.Images("video")
    names = sorted(path.stem for path in (filmed / "videos").iterdir())
    assert [f"env-steps-{image.step:09d}" for image in shown] == names
    assert (shown[0].height, shown[0].width) == ((CAPTION + HEIGHT) // 2, WIDTH)
    assert shown[0].encoded_image_string.startswith(b"GIF89a")


def test_filming_changes_nothing_that_is_learned(run_command, filmed, tmp_path):
    done = run_command([*STAGE2, "--out", tmp_path / "run"])
    assert done.status == 0 and not (tmp_path / "run" / "videos").exists()
    rows = [
        [{k: v for k, v in row.items() if k != "minutes" and not k.endswith("_per_s")} for row in read_metrics(f)]
        for f in (filmed, tmp_path / "run")
    ]
    assert rows[0] == rows[1]


def test_eval_films_the_tables_first_starts(run_command, filmed, tmp_path):
    out = tmp_path / "eval"
    steered = filmed / "checkpoints" / "last.pt"
    done = run_command(["eval", *DRAWN, *SMALL_EVAL, "--stage2_checkpoint", steered, "--video", 2, "--out", out])
    assert done.status == 0, done.err
    assert f"2 videos in {out / 'videos'}" in done.out and "stage2 deterministic" in done.out
    paths = sorted((out / "videos").iterdir())
    assert [path.name for path in paths] == ["start-000.mp4", "start-001.mp4"]
    one, other = (read_video(path) for path in paths)
    assert one.shape == other.shape == (STEPS + 1 + HOLD, CAPTION + HEIGHT, 2 * WIDTH, 3)
    assert difference(one[STEPS], other[STEPS]) > 2  # goals on either side
    assert any(point(frame, 0) != point(frame, 1) for frame in one)  # two policies
    assert len(json.loads((out / "evaluation.json").read_text())) == 4


def test_without_a_latent_policy_the_base_is_filmed_alone(run_command, tmp_path):
    out = tmp_path / "eval"
    done = run_command(["eval", *DRAWN, *SMALL_EVAL, "--video", 1, "--out", out])
    assert done.status == 0, done.err
    assert read_video(out / "videos" / "start-000.mp4").shape[1:] == (CAPTION + HEIGHT, WIDTH, 3)


def test_metaworld_is_filmed_from_the_command_line(run_command, tiny_base, tiny_stage1, tmp_path, monkeypatch):
    from dsrl_offpolicy.envs.families.mujoco_opengl import find_opengl

    monkeypatch.setenv("MUJOCO_GL", "")
    if find_opengl() is None:
        pytest.skip("needs EGL or OSMesa (scripts/setup_software_rendering.sh)")
    monkeypatch.setenv("MUJOCO_GL", "")  # the processes find it by themselves
    out = tmp_path / "eval"
    done = run_command([
        "eval", "--env_id", TASK, "--awsc_checkpoint", tiny_base, "--max_episode_steps", 6, "--num_envs", 1,
        "--stage1_checkpoint", tiny_stage1 / "checkpoints" / "last.pt", "--best_of", 0, *SMALL_EVAL,
        "--video", 1, "--out", out,
    ])  # fmt: skip
    assert done.status == 0, done.err
    frames = read_video(out / "videos" / "start-000.mp4")
    assert frames.shape == (6 + 1 + HOLD, CAPTION + 256, 512, 3)
    left, right = frames[0, CAPTION:, :256], frames[0, CAPTION:, 256:]
    assert difference(left, right) < 1 < difference(frames[0], frames[6])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["eval", "--video", 1, *DRAWN, "--env_id", "drawn_worlds:Undrawn-v0"], ["cannot be drawn", "libegl1"]),
        ([*STAGE2, "--video_every", 1, "--env_id", "drawn_worlds:Undrawn-v0"], ["cannot be drawn", "libegl1"]),
        ([*STAGE2, "--video_every", 1, "--eval_freq", 0], ["video_every: expected 0", "eval_freq"]),
        (["eval", *DRAWN, "--video", -1], ["video", "-1"]),
    ],
)
def test_what_cannot_be_filmed_is_one_line_before_anything_is_written(run_command, tmp_path, flags, words):
    before = snapshot(tmp_path)
    done = run_command([*flags, "--out", tmp_path / "run"])
    assert done.status == 2 and len(done.error_lines) == 1, done.err
    for word in words:
        assert word in done.err
    assert snapshot(tmp_path) == before


def test_a_missing_encoder_is_one_line_with_the_extra(run_command, tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "imageio_ffmpeg":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    done = run_command(["eval", *DRAWN, "--video", 1, "--out", tmp_path / "run"])
    assert done.status == 2 and len(done.error_lines) == 1 and not (tmp_path / "run").exists()
    assert "pip install 'dsrl_offpolicy[video]'" in done.err


def test_a_run_goes_on_without_a_video_that_fails(run_command, tmp_path, monkeypatch):
    from dsrl_offpolicy.errors import InputError

    def fail(*args: object) -> None:
        raise InputError("videos/a.mp4: cannot be written: no space left on device")

    monkeypatch.setattr(Videos, "write", fail)
    done = run_command([*STAGE2, "--video_every", 4, "--out", tmp_path / "run"])
    assert done.status == 0
    assert done.err.count("note: no video at") == 2 and "no space left" in done.err


def test_a_video_that_is_there_stays_as_it_is(run_command, tmp_path, monkeypatch):
    """As after a kill: the run resumes from its last save and comes to an evaluation that was filmed before."""
    write = Videos.write

    def filmed_before(self, tracker, sources, starts, *told):
        (tracker.path / "videos").mkdir(exist_ok=True)
        for start in starts:
            (tracker.path / "videos" / f"{start.name}.mp4").write_bytes(b"before")
        write(self, tracker, sources, starts, *told)

    monkeypatch.setattr(Videos, "write", filmed_before)
    done = run_command([*STAGE2, "--video_every", 100, "--out", tmp_path / "run"])
    assert done.status == 0 and "is there already; it stays as it is" in done.err
    [video] = (tmp_path / "run" / "videos").iterdir()
    assert video.read_bytes() == b"before"
