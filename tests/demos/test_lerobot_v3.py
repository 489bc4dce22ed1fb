"""LeRobotDataset v3: every number and image of a dataset, in order. See lerobot_datasets for the layout."""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="needs the extra lerobot-data (pip install 'dsrl_offpolicy[lerobot-data]')")

import pyarrow.parquet as pq
from lerobot_datasets import change_table, episodes, read_all, write_lerobot
from PIL import Image

from dsrl_offpolicy.demos.format import find_format, read_demonstrations
from dsrl_offpolicy.demos.formats.lerobot_v3 import LeRobotV3
from dsrl_offpolicy.errors import InputError

STATES = ("observation.state", "observation.environment_state")


@pytest.mark.parametrize("kind", ["state", "image"])
def test_a_dataset_that_lerobot_wrote(shared_dir: Path, kind: str) -> None:
    """5 episodes of MetaWorld's push-v3: every number and pixel is that of the rows, which pyarrow reads whole."""
    folder = shared_dir / "demos" / "lerobot_v3" / kind
    demos = read_demonstrations(folder, need_images=kind == "image", need_rewards=True)
    rows = pq.read_table(folder / "data" / "chunk-000" / "file-000.parquet").to_pylist()
    assert [len(t) for t in demos.trajectories] == [120, 71, 72, 76, 80]
    assert (demos.state_dim, demos.action_dim, demos.has_gripper) == (39, 4, True)
    assert len(rows) == 419
    for i, trajectory in enumerate(demos.trajectories):
        own = [row for row in rows if row["episode_index"] == i]
        states = np.float32([[*row[STATES[0]], *row[STATES[1]]] for row in own])
        np.testing.assert_array_equal(trajectory.obs[:-1], states)
        np.testing.assert_array_equal(trajectory.obs[-1], states[-1])
        np.testing.assert_array_equal(trajectory.actions, np.float32([row["action"] for row in own]))
        np.testing.assert_array_equal(trajectory.rewards, np.float32([row["next.reward"] for row in own]))
        assert trajectory.success.tolist() == [row["next.success"] for row in own]
        done = trajectory.terminated | trajectory.truncated
        assert done.tolist() == [row["next.done"] for row in own]
        if kind == "image":
            assert trajectory.images is not None and trajectory.images.shape == (len(own) + 1, 64, 64, 3)
            files = [io.BytesIO(row["observation.images.front"]["bytes"]) for row in own]
            images = np.stack([np.asarray(Image.open(file)) for file in files])
            np.testing.assert_array_equal(trajectory.images.read(slice(None)), images[[*range(len(own)), -1]])
            np.testing.assert_array_equal(trajectory.images.read([70, 3, 70]), images[[70, 3, 70]])


def test_episodes_of_several_files_come_in_order(tmp_path: Path) -> None:
    made = episodes((6, 4, 5, 3))
    folder = write_lerobot(tmp_path / "set", made, per_file=2)
    assert isinstance(find_format("auto", folder), LeRobotV3)
    demos = read_demonstrations(folder)
    assert demos.episodes == 4 and demos.env_id == demos.control_mode == ""
    for episode, trajectory in zip(made, demos.trajectories, strict=True):
        states = np.concatenate([episode[name] for name in STATES], axis=1)
        np.testing.assert_array_equal(trajectory.obs, np.concatenate([states, states[-1:]]))
        np.testing.assert_array_equal(trajectory.actions, episode["action"])
    (folder / "data" / "chunk-000" / "file-001.parquet").unlink()
    assert len(read_demonstrations(folder, limit=2).trajectories) == 2  # the second file is not asked for


def test_wider_numbers_become_float32(tmp_path: Path) -> None:
    made = episodes((4,))
    for name in ("action", "observation.state"):
        made[0][name] = made[0][name].astype(np.float64)
    trajectory = read_demonstrations(write_lerobot(tmp_path / "set", made)).trajectories[0]
    np.testing.assert_array_equal(trajectory.actions, made[0]["action"].astype(np.float32))
    made[0]["observation.state"][1, 0] = 1e300
    with pytest.raises(InputError, match="episode 0: expected finite float32 numbers in 'obs'"):
        read_demonstrations(write_lerobot(tmp_path / "large", made))


@pytest.mark.parametrize("videos", [(), ("wrist",), ("top", "wrist")])
def test_cameras_come_in_the_environments_order(tmp_path: Path, videos: tuple[str, ...]) -> None:
    made = episodes((6, 4, 5), images=("top", "wrist"))
    folder = write_lerobot(tmp_path / "set", made, videos=videos)
    for cameras in (None, ("wrist", "top"), ("top",)):
        demos = read_demonstrations(folder, need_images=True, cameras=cameras, state_keys=("agent/qpos",))
        names = cameras or ("top", "wrist")
        for episode, trajectory in zip(made, demos.trajectories, strict=True):
            images, n = trajectory.images, len(trajectory)
            frames = np.concatenate([episode[f"observation.images.{name}"] for name in names], axis=-1)
            frames = np.concatenate([frames, frames[-1:]])
            assert images is not None and images.shape == frames.shape
            # Greys are multiples of 4: an H.264 frame within 1.5 of one is no other.
            for rows in (slice(None), [n, 2, n, 0], [3], np.arange(n)):
                found = images.read(rows)
                assert found.dtype == np.uint8 and np.abs(found.astype(int) - frames[rows]).max() < 1.5
            assert images.read([]).shape == (0, *frames.shape[1:])


def test_one_camera_alone_needs_no_name(tmp_path: Path) -> None:
    folder = write_lerobot(tmp_path / "set", episodes(images=("front",)))
    assert read_demonstrations(folder, need_images=True, cameras=("base_camera",)).image_shape == (48, 64, 3)
    with pytest.raises(InputError, match="camera 'left', got only front"):
        read_demonstrations(folder, need_images=True, cameras=("left", "right"))


def test_success_is_what_the_dataset_says(tmp_path: Path, capsys) -> None:
    def of(name: str, *left_out: str, **changed: list) -> list:
        made = episodes((4,))
        for key in left_out:
            del made[0][key]
        made[0] |= {key.replace("_", "."): np.array(values) for key, values in changed.items()}
        trajectory = read_demonstrations(write_lerobot(tmp_path / name, made)).trajectories[0]
        return [getattr(trajectory, field).tolist() for field in ("success", "terminated", "truncated")]

    yes, no = True, False
    none, last, early = [no] * 4, [no, no, no, yes], [no, no, yes, yes]
    assert of("said", next_success=early) == [early, last, none]  # done at its last step
    assert of("never", next_success=none) == [none, none, last]  # done without success may be a time limit
    assert of("paid", "next.success", next_reward=[0.0, 0.0, 1.0, 1.0]) == [early, last, none]
    assert capsys.readouterr().err == ""
    assert of("shown", "next.success", "next.reward", "next.done") == [last, none, none]
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "shown says nothing of success" in said
    with pytest.raises(InputError, match=r"episode 0: expected 'next\.success', or rewards of 0 and 1"):
        of("shaped", "next.success", next_reward=[0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize(
    ("names", "gripper"),
    [(None, True), (["x", "gripper"], True), (["x", "y"], False), ({"motors": ["x", "gripper.pos"]}, True)],
)
def test_a_gripper_is_told_by_its_name(tmp_path: Path, names: object, gripper: bool) -> None:
    folder = write_lerobot(tmp_path / "set", episodes((4,)), names=names)
    assert read_demonstrations(folder).has_gripper is gripper


def test_the_digest_is_that_of_all_files(tmp_path: Path) -> None:
    folder = write_lerobot(tmp_path / "set", episodes((4,), images=("top",)), videos=("top",))
    digest = LeRobotV3().digest(folder)
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "README.md").write_text("a card, which is no part of the dataset")
    assert LeRobotV3().digest(copy) == digest
    for file in ("meta/info.json", "data/chunk-000/file-000.parquet"):
        changed = shutil.copytree(folder, tmp_path / Path(file).name)
        with (changed / file).open("ab") as end:
            end.write(b" ")
        assert LeRobotV3().digest(changed) != digest
    next((copy / "videos").rglob("*.mp4")).unlink()
    assert LeRobotV3().digest(copy) != digest


@pytest.mark.parametrize("library", ["pyarrow.parquet", "av", "PIL.Image"])
def test_a_missing_library_is_named_with_its_extra(tmp_path: Path, monkeypatch, library: str) -> None:
    made = episodes((4,), images=("top", "wrist"))
    folder = write_lerobot(tmp_path / "set", made, videos=("wrist",))
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(InputError, match=r"cannot be read: .*\(pip install 'dsrl_offpolicy\[lerobot-data\]'\)"):
        read_all(folder)


def test_a_frame_that_is_missing_is_named(tmp_path: Path) -> None:
    folder = write_lerobot(tmp_path / "set", episodes((6, 4)))
    change_table(folder / "data/chunk-000/file-000.parquet", "frame_index", [0, 1, 2, 3, 4, 5, 0, 1, 3, 4])
    with pytest.raises(
        InputError, match="episode 1: expected all frames from 6 to 9, got others in 'frame_index'"
    ):
        read_demonstrations(folder)
