"""TensorBoard events in ``tensorboard/`` of the run folder."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from dsrl_offpolicy.files.plain import check_fields
from dsrl_offpolicy.tracking.sink import LoggedRow, LoggedVideo, Sink

MOST_IMAGES = 60
"""Of an animation, which TensorBoard loads whole."""


class TensorBoard(Sink):
    """Write every metric over the row's x axis; points after the save of a resumed run are hidden."""

    def __init__(self, folder: Path, config: Mapping[str, Any], state: Mapping[str, Any] | None) -> None:
        self._last_step = 0
        if state is not None:
            check_fields(state, {"step": int}, "resume: state of the run: tensorboard")
            self._last_step = state["step"]
        purge = self._last_step + 1 if state is not None else None
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=purge)

    def log(self, row: LoggedRow) -> None:
        step = next(iter(row.axes.values()))
        for name, value in row.named.items():
            self._writer.add_scalar(name, value, step)
        self._last_step = max(self._last_step, step)

    def log_video(self, video: LoggedVideo) -> None:
        """Show it among the images, as an animation of half its size and of at most ``MOST_IMAGES``, because
        TensorBoard plays no MP4."""
        from PIL import Image
        from tensorboard.compat.proto.summary_pb2 import Summary

        every = math.ceil(len(video.frames) / MOST_IMAGES)
        height, width = (max(1, side // 2) for side in video.frames[0].shape[:2])
        images = [Image.fromarray(frame).resize((width, height)) for frame in video.frames[::every]]
        encoded = io.BytesIO()
        lasting = round(1000 * every / video.fps)
        images[0].save(
            encoded, "GIF", save_all=True, append_images=images[1:], duration=lasting, loop=0, optimize=False
        )
        shown = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=encoded.getvalue())
        writer: Any = self._writer.file_writer
        writer.add_summary(
            Summary(value=[Summary.Value(tag="video", image=shown)]), next(iter(video.axes.values()))
        )

    def state(self) -> dict[str, Any]:
        return {"step": self._last_step}

    def close(self) -> None:
        self._writer.close()
