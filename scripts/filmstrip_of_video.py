"""A video of ``dsrl eval --video`` or ``dsrl stage2 --video_every`` as a picture, a row per policy.

python scripts/filmstrip_of_video.py runs/.../videos/start-000.mp4 --out strip.jpg --columns 6
"""

from __future__ import annotations

import argparse
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from PIL import Image


def read(path: Path) -> np.ndarray:
    """Decode a video: uint8 ``[N, H, W, 3]``."""
    frames = imageio_ffmpeg.read_frames(str(path))
    width, height = next(frames)["size"]
    return np.stack([np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in frames])


def strip(frames: np.ndarray, columns: int, panels: int) -> np.ndarray:
    """Return ``columns`` frames spread over the video, the last one included: a panel per row."""
    chosen = frames[np.linspace(0, len(frames) - 1, columns).round().astype(int)]
    rows = np.split(chosen, panels, axis=2)
    return np.concatenate([np.concatenate(list(row), axis=1) for row in rows], axis=0)


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description="Make a filmstrip of a video of dsrl.")
    parser.add_argument("video", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="a new PNG or JPEG")
    parser.add_argument("--columns", type=int, default=6, help="frames to show")
    parser.add_argument("--panels", type=int, default=2, help="policies side by side in the video")
    options = parser.parse_args()
    with options.out.open("xb") as file:
        picture = Image.fromarray(strip(read(options.video), options.columns, options.panels))
        picture.save(file, Image.registered_extensions()[options.out.suffix], quality=80)


if __name__ == "__main__":
    main()
