"""Videos on disk: MP4 (H.264), which browsers play."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from dsrl_offpolicy.errors import InputError, one_line
from dsrl_offpolicy.files.atomic import write_atomically

FPS = 30
EXTRA = "pip install 'dsrl_offpolicy[video]' (or: pip install imageio-ffmpeg pillow)"
"""What gets the encoder."""


def check_encoder() -> None:
    """Refuse to begin without the libraries that write videos.

    Raises:
        InputError: naming the extra.
    """
    try:
        import imageio_ffmpeg
        import PIL  # noqa: F401

        imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        raise InputError(f"video: an encoder is missing ({one_line(error)}): {EXTRA}") from error


def write_video(path: Path, frames: Iterable[np.ndarray]) -> int:
    """Write images of one size, uint8 ``[H, W, 3]`` with even H and W, as an MP4 of :data:`FPS`. Returns how many.

    Raises:
        InputError: the file exists, or cannot be written.
    """
    import imageio_ffmpeg

    if path.exists():
        raise InputError(f"video: expected a new file, {path} exists")
    waiting = iter(frames)
    first = next(waiting)
    count = 0
    with write_atomically(path) as temporary:
        film = imageio_ffmpeg.write_frames(
            str(temporary), first.shape[1::-1], fps=FPS, codec="libx264", macro_block_size=2, quality=7,
            ffmpeg_log_level="error", output_params=["-f", "mp4", "-movflags", "+faststart"],
        )  # fmt: skip
        film.send(None)
        try:
            for frame in itertools.chain([first], waiting):
                film.send(np.ascontiguousarray(frame))
                count += 1
        finally:
            film.close()
    return count
