"""Filmed episodes: every frame at its env step, side by side, under a caption; the same episodes as without."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from drawn_worlds import difference, read_video
from small_worlds import CountingEnv
from tiny_worlds import HalvingPolicy, counting_vector

from dsrl_offpolicy.envs.frames import FRAME_HEIGHT, draw
from dsrl_offpolicy.envs.spec import EnvSpec
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.evaluation.episodes import run_episodes
from dsrl_offpolicy.evaluation.video import CAPTION, HOLD, FilmedEpisode, film_start, side_by_side
from dsrl_offpolicy.files.video import write_video
from dsrl_offpolicy.models.latent_sources import constant_source, prior_source

SPEC = EnvSpec("counting", obs_horizon=2, act_horizon=2, frames_every=1)
UNDRAWN = replace(SPEC, frames_every=0)
ZERO = torch.zeros(4, 1)


class Painted(CountingEnv):
    """An image of 16 x 20 whose grey level is 10 x the env steps so far, and 100 more where the last action was
    other than 0."""

    def render(self) -> Any:
        moved = bool(self.actions) and self.actions[-1] != [0.0]
        return np.full((16, 20, 3), 10 * self.steps + 100 * moved, np.uint8)


def film(every: int = 1, seed: int = 3, **of_world: Any) -> list[FilmedEpisode]:
    spec = replace(SPEC, frames_every=every)
    env = counting_vector([Painted(**of_world), Painted(**of_world)], spec)
    sources = {"base": prior_source(), "still": constant_source(ZERO)}
    return film_start(env, HalvingPolicy(), sources, seed)


def test_every_env_step_is_drawn_once_and_the_chunk_does_not_show():
    base, still = film(terminate_at=5, success_at=(3, 5))  # chunks of 2, 2 and 1
    assert still.steps == base.steps == [0, 1, 2, 3, 4, 5]
    assert [int(frame[0, 0, 0]) for frame in still.frames] == [0, 10, 20, 30, 40, 50]
    assert [int(frame[0, 0, 0]) for frame in base.frames] == [0, 110, 120, 130, 140, 150]
    assert base.success == [False, False, False, True, True, True]  # once it has succeeded it stays so
    assert base.outcome is not None and (base.outcome.success_once, base.outcome.length) == (True, 5)


def test_long_episodes_show_every_kth_step_and_their_end():
    base, _ = film(every=3, terminate_at=8)
    assert base.steps == [0, 3, 6, 8]


def test_the_episodes_are_those_of_an_evaluation():
    films = film(truncate_at=6, success_at=(4,))
    env = counting_vector([CountingEnv(truncate_at=6, success_at=(4,))], UNDRAWN)
    for one, source in zip(films, (prior_source(), constant_source(ZERO)), strict=True):
        assert [one.outcome] == run_episodes(env, HalvingPolicy(), source, [3])


def test_a_lost_process_begins_the_film_again():
    """The vector loses slot 0 at its second step and replaces it, as ``ProcessVectorEnv`` does."""
    env = counting_vector([Painted(terminate_at=5), Painted(terminate_at=5)], SPEC)
    step, calls = env.step, 0

    def losing(chunk: Any) -> Any:
        nonlocal calls
        calls += 1
        obs, reward, terminated, truncated, info = step(chunk)
        lost = np.array([calls == 2, False])
        return obs, reward, terminated & ~lost, truncated & ~lost, {**info, "lost": lost}

    env.step = losing  # type: ignore[method-assign]
    films = film_start(env, HalvingPolicy(), {"base": prior_source(), "still": constant_source(ZERO)}, 3)
    assert [one.steps for one in films] == [[0, 1, 2, 3, 4, 5]] * 2


def test_panels_stand_at_the_same_env_step_and_the_shorter_one_waits():
    short = FilmedEpisode("base", [np.full((16, 20, 3), n, np.uint8) for n in (10, 20)], [0, 1], [False, True])
    longer = FilmedEpisode(
        "steered", [np.full((16, 21, 3), n, np.uint8) for n in (30, 40, 50)], [0, 1, 2], [False] * 3
    )
    frames = list(side_by_side([short, longer]))
    assert len(frames) == 3 + HOLD
    assert {frame.shape for frame in frames} == {(16 + CAPTION, 20 + 22, 3)}  # 21 columns are padded: H.264
    grey = [(int(frame[-1, 0, 0]), int(frame[-1, 20, 0])) for frame in frames]
    assert grey == [(10, 30), (20, 40), (20, 50)] + [(20, 50)] * HOLD
    captions = [frame[:CAPTION, :20] for frame in frames]
    assert not np.array_equal(captions[0], captions[1]) and np.array_equal(captions[1], captions[2])
    assert any(green > red for red, green, _ in captions[1].reshape(-1, 3).astype(int))  # success
    assert not any(green > red + 10 for red, green, _ in captions[0].reshape(-1, 3).astype(int))


def test_a_file_holds_what_was_given_and_is_not_written_over(tmp_path):
    pytest.importorskip("imageio_ffmpeg", reason="needs the extra video")
    frames = [np.full((40, 42, 3), 20 * n, np.uint8) for n in range(8)]
    path = tmp_path / "videos" / "a.mp4"
    assert write_video(path, frames) == 8
    read = read_video(path)
    assert read.shape == (8, 40, 42, 3)
    assert all(difference(one, other) < 3 for one, other in zip(read, frames, strict=True))
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"expected a new file, .*a\.mp4 exists"):
        write_video(path, frames)
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == ["a.mp4"]


def test_nothing_is_left_of_a_video_that_failed(tmp_path):
    pytest.importorskip("imageio_ffmpeg", reason="needs the extra video")

    def frames():
        yield np.zeros((40, 42, 3), np.uint8)
        raise ValueError("the simulator is gone")

    with pytest.raises(ValueError, match="simulator"):
        write_video(tmp_path / "a.mp4", frames())
    assert list(tmp_path.iterdir()) == []


class Canvas(CountingEnv):
    def __init__(self, image: Any) -> None:
        super().__init__()
        self.image = image

    def render(self) -> Any:
        return self.image


def test_what_is_drawn_is_an_image_of_a_bounded_size():
    assert draw(Canvas(np.zeros((512, 300, 3), np.uint8))).shape == (FRAME_HEIGHT, 150, 3)
    small = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3)
    assert np.array_equal(draw(Canvas(small)), small)
    for image in (None, [small], small.astype(float), small[..., :1], small[0]):
        with pytest.raises(InputError, match=r"expected render\(\) to return an image, uint8 \[H, W, 3\], got"):
            draw(Canvas(image))
