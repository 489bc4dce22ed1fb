"""Episodes of several policies from one start, side by side, as the frames of a video."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from dsrl_offpolicy.contracts import BasePolicy, LatentSource
from dsrl_offpolicy.envs.family import MacroVectorEnv
from dsrl_offpolicy.evaluation.episodes import Episode, EpisodeOutcome, run_queue

CAPTION = 24
"""Pixels above each picture."""
HOLD = 15
"""Frames for which the end is shown."""
LIGHT, GREEN, DARK = (235, 235, 235), (110, 220, 130), (24, 26, 30)


@dataclass
class FilmedEpisode:
    """One policy's episode.

    Attributes:
        name: whose it is.
        frames: images ``[h, w, 3]``, the start first.
        steps: env steps before each.
        success: whether it had succeeded by then.
        outcome: what it came to.
    """

    name: str
    frames: list[np.ndarray] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    success: list[bool] = field(default_factory=list)
    outcome: EpisodeOutcome | None = None

    def at(self, step: int) -> int:
        """Return the index of what is shown at env step ``step``: the newest frame until then."""
        return int(np.searchsorted(self.steps, step, side="right")) - 1


class _OnePerPolicy:
    """One episode of each policy, from the same start and with the same noise."""

    def __init__(self, sources: Mapping[str, LatentSource], seed: int) -> None:
        self.films = [FilmedEpisode(name) for name in sources]
        self._waiting = iter([Episode(index, source, seed) for index, source in enumerate(sources.values())])

    def take(self) -> Episode | None:
        return next(self._waiting, None)

    def ended(self, episode: Episode, outcome: EpisodeOutcome) -> bool:
        self.films[episode.index].outcome = outcome
        return True

    def seen(self, episode: Episode, slot: int, info: Mapping[str, Any]) -> None:
        film = self.films[episode.index]
        for frame, step, success in zip(
            info["frames"][slot], info["frame_step"][slot], info["frame_success"][slot], strict=True
        ):
            if step == 0:  # an episode whose process was lost starts over
                film.frames, film.steps, film.success = [], [], []
            if step >= 0:
                film.frames.append(frame.copy())
                film.steps.append(int(step))
                film.success.append(bool(success))


def film_start(
    env: MacroVectorEnv,
    base_policy: BasePolicy,
    sources: Mapping[str, LatentSource],
    seed: int,
    device: torch.device | str = "cpu",
) -> list[FilmedEpisode]:
    """Film an episode of each policy from the start of ``seed``: the episodes that ``run_episodes`` runs.

    Args:
        env: macro-step environments that are drawn (``envs.filming``).
        base_policy: decodes latents to chunks.
        sources: policies by the name in the caption.
        seed: of the start and of the noise.
        device: where policies compute.
    """
    queue = _OnePerPolicy(sources, seed)
    run_queue(env, base_policy, queue, device, queue.seen)
    return queue.films


def side_by_side(films: Sequence[FilmedEpisode]) -> Iterator[np.ndarray]:
    """Yield the frames of the video: the episodes beside each other at the same env step, each under its caption.

    An episode that has ended shows its end. The end of the longest is held for :data:`HOLD` frames.
    """
    steps = sorted({step for film in films for step in film.steps})
    for step in [*steps, *[steps[-1]] * HOLD]:
        yield np.concatenate([_panel(film, step) for film in films], axis=1)


def _panel(film: FilmedEpisode, step: int) -> np.ndarray:
    """A picture under its caption; both sides are even, as the encoder needs them."""
    from PIL import Image, ImageDraw, ImageFont

    index = film.at(step)
    picture = film.frames[index]
    height, width = picture.shape[:2]
    panel = Image.new("RGB", (width + width % 2, CAPTION + height + height % 2), DARK)
    panel.paste(Image.fromarray(picture), (0, CAPTION))
    text = f"{film.name}   step {film.steps[index]}"
    if film.success[index]:
        text += "   success"
    elif index == len(film.frames) - 1:
        text += "   no success"
    color = GREEN if film.success[index] else LIGHT
    ImageDraw.Draw(panel).text((6, 4), text, color, ImageFont.load_default(14))
    return np.asarray(panel)
