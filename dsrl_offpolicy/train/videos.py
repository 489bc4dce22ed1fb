"""Videos of a run: a policy beside its base policy, from the same starts."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from dsrl_offpolicy.contracts import BasePolicy, LatentSource
from dsrl_offpolicy.envs.filming import filmed_spec
from dsrl_offpolicy.envs.spec import EnvSpec
from dsrl_offpolicy.envs.vector import make_vector_env
from dsrl_offpolicy.evaluation.video import film_start, side_by_side
from dsrl_offpolicy.files.video import FPS, check_encoder, write_video
from dsrl_offpolicy.tracking.run import Run
from dsrl_offpolicy.tracking.sink import LoggedVideo

BASE, STEERED = "base", "steered"
"""How captions call the two."""


@dataclass(frozen=True)
class Start:
    """A start to film.

    Attributes:
        name: of the video's file, without its suffix.
        seed: of the start and of the noise.
        axes: where loggers put the video, as for a row of metrics.
    """

    name: str
    seed: int
    axes: Mapping[str, int]


class Videos:
    """Films into ``videos/`` of run folders, in environments of its own.

    Args:
        base: the base policy.
        spec: the environment in which the job evaluates.
        device: where policies compute.

    Raises:
        InputError: no encoder, or nothing that can draw; says what cures it.
    """

    def __init__(self, base: BasePolicy, spec: EnvSpec, device: torch.device) -> None:
        check_encoder()
        self._base, self._device = base, device
        self._spec = filmed_spec(spec)

    def write(
        self,
        tracker: Run,
        sources: Mapping[str, LatentSource],
        starts: Sequence[Start],
        told: Callable[[int], None] = lambda done: None,
    ) -> None:
        """Film every start once, all policies side by side; hand the videos to the run's loggers.

        A video that is there stays as it is, with a note.

        Args:
            tracker: the run.
            sources: policies by the name in the caption.
            starts: what to film.
            told: hears how many are done.

        Raises:
            InputError: a file that cannot be written, or environments that are lost again and again.
        """
        wanted = []
        for start in starts:
            path = tracker.path / "videos" / f"{start.name}.mp4"
            if path.exists():
                print(f"note: {path} is there already; it stays as it is", file=sys.stderr)
            else:
                wanted.append((start, path))
        if not wanted:
            return
        env = make_vector_env(self._spec, len(sources))
        try:
            for done, (start, path) in enumerate(wanted):
                frames = list(side_by_side(film_start(env, self._base, sources, start.seed, self._device)))
                write_video(path, frames)
                tracker.log_video(LoggedVideo(start.name, start.axes, path, frames, FPS))
                told(done + 1)
        finally:
            env.close()
