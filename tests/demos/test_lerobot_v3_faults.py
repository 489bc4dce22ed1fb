"""LeRobotDatasets that are of another version, incomplete, damaged or made to mislead: one line each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="needs the extra lerobot-data (pip install 'dsrl_offpolicy[lerobot-data]')")

import pyarrow.parquet as pq
from lerobot_datasets import SIZE, change_info, change_table, episodes, png, read_all, write_lerobot, write_video
from tiny_worlds import TASK, TINY_BASE

from dsrl_offpolicy.errors import InputError

DATA = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
VIDEO = "videos/observation.images.side/chunk-000/file-000.mp4"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Episodes of 6 and 4 frames in one parquet file, with one camera of images and one of video."""
    return write_lerobot(tmp_path / "set", episodes((6, 4), images=("front", "side")), videos=("side",))


def _info(**changed: object) -> Callable[[Path], None]:
    return lambda folder: change_info(folder, **changed)


def _feature(name: str, **changed: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        features = json.loads((folder / "meta" / "info.json").read_text())["features"]
        change_info(folder, features=features | {name: features[name] | changed})

    return change


def _table(file: str, column: str, values: object) -> Callable[[Path], None]:
    return lambda folder: change_table(folder / file, column, values)  # type: ignore[arg-type]


def _remove(file: str) -> Callable[[Path], None]:
    return lambda folder: (folder / file).unlink()


def _write(file: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / file).write_bytes(content)


def _drop(file: str, column: str) -> Callable[[Path], None]:
    return lambda folder: pq.write_table(pq.read_table(folder / file).drop_columns([column]), folder / file)


def _frames(n: int, size: tuple[int, int] = SIZE) -> Callable[[Path], None]:
    return lambda folder: write_video(folder / VIDEO, np.zeros((n, *size, 3), np.uint8))


def _refused(folder: Path, words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        read_all(folder)
    said = str(caught.value)
    assert "\n" not in said and all(word in said for word in [str(folder), *words]), said


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_info(codebase_version="v2.1"), ["version 3", "v2.1", "convert_dataset_v21_to_v30.py"]),
        (_info(codebase_version="v4.0"), ["version 3", "v4.0"]),
        (_info(codebase_version=3), ["codebase_version", "expected text"]),
        (_info(total_episodes=3), ["expected 3 episodes of 10 frames", "got 2 of 10"]),
        (_info(total_frames=11), ["expected 2 episodes of 11 frames"]),
        (_info(fps=0), ["fps", "more than 0"]),
        (_info(features={}), ["feature 'action'"]),
        (_write("meta/info.json", b"{"), ["info.json", "expected JSON"]),
        (_remove(DATA), [f"expected a file {DATA}, got none"]),
        (_remove(EPISODES), [f"expected {EPISODES}, got none"]),
        (_remove(VIDEO), [f"expected a file {VIDEO}, got none"]),
        (_write(DATA, b"PAR1 and no more"), [DATA, "a readable parquet file"]),
        (_write(EPISODES, b""), [EPISODES, "a readable parquet file"]),
        (_drop(DATA, "action"), [DATA, "expected a column 'action'"]),
        (_drop(EPISODES, "data/file_index"), ["meta/episodes", "data/file_index"]),
        (_table(EPISODES, "episode_index", [0, 2]), ["expected episode 1, got 2"]),
        (_table(EPISODES, "dataset_from_index", [0, 7]), ["episode 1 to begin at frame 6, got 7 to 10"]),
        (_table(EPISODES, "data/file_index", [0, 1]), ["file-001.parquet, got none"]),
        (_table(DATA, "index", [*range(9), 10]), ["episode 1", "all frames from 6 to 9", "'index'"]),
        (_table(DATA, "episode_index", [0] * 7 + [1] * 3), ["episode 1", "'episode_index'"]),
        (_table(DATA, "action", [[0.0, np.nan]] * 10), ["episode 0", "'actions'", "NaN"]),
        (_table(DATA, "action", [[0.0, 90.0]] * 10), ["episode 0", "actions in [-1, 1], got up to 90"]),
        (_table(DATA, "action", [[0.0, None]] * 10), ["episode 0", "a value in every row of 'action'"]),
        (_table(DATA, "action", [[0.0]] * 10), ["expected [2] numbers in every row of 'action'", "got [1]"]),
        (_table(DATA, "action", [[0.0], [0.0] * 3] * 5), ["numbers in every row of 'action'", "got [1, 3]"]),
        (_table(DATA, "action", ["left"] * 10), ["expected numbers in 'action', got string"]),
        (_feature("action", shape=[3]), ["expected [3] numbers in every row of 'action'", "got [2]"]),
    ],
)  # fmt: skip
def test_what_does_not_fit(folder: Path, change: Callable, words: list[str]) -> None:
    change(folder)
    _refused(folder, words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_write(VIDEO, b"no video"), ["episode 0", VIDEO, "cannot be decoded"]),
        (_frames(9), ["episode 1", "expected a frame at 0.900 s", VIDEO]),
        (_frames(10, (32, 64)), ["episode 0", "images of 48x64", "file-000.mp4", "32x64"]),
        (_table(EPISODES, "videos/observation.images.side/from_timestamp", [0.05, 0.6]), ["a frame at 0.050 s"]),
        (_table(EPISODES, "videos/observation.images.side/from_timestamp", [0.0, None]), ["from_timestamp"]),
        (_table(DATA, "observation.images.front", [{"bytes": b"none", "path": ""}] * 10), ["front", "readable"]),
        (_table(DATA, "observation.images.front", [{"bytes": None, "path": "/etc/passwd"}] * 10), ["got a path"]),
        (
            _table(DATA, "observation.images.front", [{"bytes": png(np.zeros((9, 7, 3), np.uint8))}] * 10),
            ["images of 48x64", "9x7"],
        ),
        (_feature("observation.images.front", shape=[32, 64, 3]), ["cameras of one size", "front 32x64"]),
        (_feature("observation.images.front", shape=[48, 64, 1]), ["[H, W, 3]", "front"]),
    ],
)  # fmt: skip
def test_images_that_do_not_fit(folder: Path, change: Callable, words: list[str]) -> None:
    change(folder)
    _refused(folder, words)


@pytest.mark.parametrize(
    "place",
    [
        "../other/data/chunk-000/file-000.parquet",
        "data/../../other/data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "data\\..\\..\\other",
        "C:/other.parquet",
        "{chunk_index.__class__}",
        "{chunk_index:0999999999d}",
        "{0}",
        "data/\0",
    ],
)
@pytest.mark.parametrize("setting", ["data_path", "video_path"])
def test_files_outside_the_folder_are_not_read(folder: Path, tmp_path: Path, setting: str, place: str) -> None:
    write_lerobot(tmp_path / "other", episodes((6, 4)))  # it is there, and would fit
    change_info(folder, **{setting: place})
    _refused(folder, [setting, "a file within the folder"])


def test_an_absolute_place_is_not_read(folder: Path, tmp_path: Path) -> None:
    other = write_lerobot(tmp_path / "other", episodes((6, 4)))
    change_info(folder, data_path=str(other / DATA))
    _refused(folder, ["data_path", "a file within the folder"])


def test_a_cameras_name_does_not_lead_outside(folder: Path) -> None:
    features = json.loads((folder / "meta" / "info.json").read_text())["features"]
    features["../../other"] = features.pop("observation.images.side")
    change_info(folder, features=features)
    rows = pq.read_table(folder / EPISODES)
    names = [name.replace("observation.images.side", "../../other") for name in rows.column_names]
    pq.write_table(rows.rename_columns(names), folder / EPISODES)
    _refused(folder, ["video_path", "a file within the folder"])


def test_a_command_refuses_a_dataset_of_another_width_in_one_line(folder: Path, tmp_path, run_command) -> None:
    """The task observes 39 numbers and takes 4, the dataset has 5 and 2."""
    done = run_command(
        ["pretrain", "--demo_path", folder, "--out", tmp_path / "x", *TINY_BASE, "--eval_episodes", "1"]
    )
    assert done.status != 0 and done.err.count("\n") == 1 and TASK in done.err
    assert "39" in done.err and "5" in done.err
