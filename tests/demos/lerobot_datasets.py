"""Small datasets in the layout of LeRobotDataset v3.0, as LeRobot 0.4.4 writes it.

``meta/info.json``; ``meta/episodes/chunk-000/file-000.parquet`` with a row per episode (its frames
``dataset_from_index:dataset_to_index`` of the whole, ``data/chunk_index`` and ``data/file_index`` of its
parquet file, and per video ``videos/KEY/{chunk_index,file_index,from_timestamp,to_timestamp}``);
``data/chunk-XXX/file-XXX.parquet`` with a row per frame: features of one number as plain columns, longer ones
as fixed-size lists, images as ``struct<bytes, path>``, then timestamp, frame_index, episode_index, index and
task_index; ``videos/KEY/chunk-XXX/file-XXX.mp4`` with the frames of several episodes one after another.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from dsrl_offpolicy.demos.format import read_demonstrations

FPS = 10
SIZE = (48, 64)
PLACE = {"timestamp": "float32", "frame_index": "int64", "episode_index": "int64", "index": "int64",
         "task_index": "int64"}  # fmt: skip

Episode = dict[str, np.ndarray]


def episodes(steps: Sequence[int] = (6, 4, 5), *, images: Sequence[str] = (), seed: int = 0) -> list[Episode]:
    """Make up episodes that succeed at their last step; images are of one grey each, which a video keeps."""
    rng, made = np.random.default_rng(seed), []
    for n in steps:
        last = np.arange(n) == n - 1
        episode = {
            "observation.state": rng.normal(size=(n, 3)).astype(np.float32),
            "observation.environment_state": rng.normal(size=(n, 2)).astype(np.float32),
            "action": rng.uniform(-1, 1, (n, 2)).astype(np.float32),
            "next.reward": last.astype(np.float32),
            "next.success": last,
            "next.done": last,
        }
        for name in images:
            greys = rng.permutation(50)[:n] * 4 + 20
            episode[f"observation.images.{name}"] = np.broadcast_to(
                greys[:, None, None, None], (n, *SIZE, 3)
            ).astype(np.uint8)
        made.append(episode)
    return made


def write_lerobot(
    root: Path, made: Sequence[Episode], *, videos: Sequence[str] = (), per_file: int = 2, names: Any = None
) -> Path:
    """Write episodes, ``per_file`` of them to each parquet file and video; cameras in ``videos`` become videos."""
    features: dict[str, dict[str, Any]] = {}
    for key, values in made[0].items():
        is_image = key.startswith("observation.images.")
        kind = "video" if key.rpartition(".")[2] in videos else "image" if is_image else str(values.dtype)
        shape = list(values.shape[1:]) or [1]
        features[key] = {
            "dtype": kind,
            "shape": shape,
            "names": ["height", "width", "channels"] if is_image else None,
        }
    features["action"]["names"] = names
    features |= {key: {"dtype": kind, "shape": [1], "names": None} for key, kind in PLACE.items()}
    info = {
        "codebase_version": "v3.0", "robot_type": None, "total_episodes": len(made),
        "total_frames": sum(len(e["action"]) for e in made), "total_tasks": 1, "chunks_size": 1000,
        "data_files_size_in_mb": 100, "video_files_size_in_mb": 200, "fps": FPS,
        "splits": {"train": f"0:{len(made)}"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": features,
    }  # fmt: skip
    rows, first = [], 0
    for start in range(0, len(made), per_file):
        number, part = start // per_file, made[start : start + per_file]
        _write_data(root / f"data/chunk-000/file-{number:03d}.parquet", part, features, start, first)
        keys = [key for key, feature in features.items() if feature["dtype"] == "video"]
        for key in keys:
            frames = np.concatenate([episode[key] for episode in part])
            write_video(root / f"videos/{key}/chunk-000/file-{number:03d}.mp4", frames)
        began = first
        for i, episode in enumerate(part):
            stop = first + len(episode["action"])
            row = {
                "episode_index": start + i, "tasks": ["lift"], "length": stop - first, "data/chunk_index": 0,
                "data/file_index": number, "dataset_from_index": first, "dataset_to_index": stop,
            }  # fmt: skip
            for key in keys:
                row |= {f"videos/{key}/chunk_index": 0, f"videos/{key}/file_index": number,
                        f"videos/{key}/from_timestamp": (first - began) / FPS,
                        f"videos/{key}/to_timestamp": (stop - began) / FPS}  # fmt: skip
            rows.append(row | {"stats/action/max": [1.0]})
            first = stop
    _write_table(root / "meta/episodes/chunk-000/file-000.parquet", pa.Table.from_pylist(rows))
    (root / "meta/info.json").write_text(json.dumps(info, indent=4))
    return root


def _write_data(
    file: Path, part: Sequence[Episode], features: Mapping[str, Any], episode: int, first: int
) -> None:
    tables = []
    for i, arrays in enumerate(part):
        n = len(arrays["action"])
        place = {
            "timestamp": (np.arange(n) / FPS).astype(np.float32), "frame_index": np.arange(n),
            "episode_index": np.full(n, episode + i), "index": np.arange(first, first + n),
            "task_index": np.zeros(n, np.int64),
        }  # fmt: skip
        columns = {
            key: _column(values, features[key]["dtype"])
            for key, values in (arrays | place).items()
            if features[key]["dtype"] != "video"
        }
        tables.append(pa.table(columns))
        first += n
    file.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(file, tables[0].schema) as writer:  # a row group per episode, as LeRobot's
        for table in tables:
            writer.write_table(table)


def _column(values: np.ndarray, kind: str) -> pa.Array:
    if kind == "image":
        return pa.array([{"bytes": png(image), "path": f"frame-{i:06d}.png"} for i, image in enumerate(values)])
    flat = pa.array(values.reshape(-1))
    return flat if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def _write_table(file: Path, table: pa.Table) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file)


def png(image: np.ndarray) -> bytes:
    """Encode ``[H, W, 3]`` uint8."""
    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG")
    return content.getvalue()


def write_video(file: Path, frames: np.ndarray) -> None:
    """Encode ``[n, H, W, 3]`` uint8 as H.264 with a keyframe in every two frames, as LeRobot does."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"g": "2", "crf": "10"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def change_info(root: Path, **changed: Any) -> None:
    """Overwrite fields of ``meta/info.json``."""
    file = root / "meta" / "info.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))


def change_table(file: Path, column: str, values: Sequence[Any]) -> None:
    """Overwrite a column of a parquet file."""
    table = pq.read_table(file)
    position = table.schema.get_field_index(column)
    pq.write_table(table.set_column(position, column, pa.array(values)), file)


def read_all(root: Path) -> list[np.ndarray]:
    """Read every number and image; returns the images by episode."""
    images = [trajectory.images for trajectory in read_demonstrations(root, need_images=True).trajectories]
    return [found.read(slice(None)) for found in images if found is not None]
