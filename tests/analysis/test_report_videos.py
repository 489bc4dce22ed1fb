"""Videos in a report: inside the page up to a size, in order, and what is left out is named."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pytest
from report_runs import write_quickstart

from dsrl_offpolicy.analysis import report_videos
from dsrl_offpolicy.analysis.report import make_report
from dsrl_offpolicy.analysis.report_page import render

HEAD = b"\0\0\0\x20ftypisom"


def write(folder: Path, name: str, size: int = 100) -> Path:
    path = folder / "videos" / name
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_bytes(HEAD + bytes(size - len(HEAD)))
    return path


@pytest.fixture
def quick(tmp_path) -> Path:
    folder = write_quickstart(tmp_path / "quick", 1, [8, 14, 19])
    for name in ("env-steps-000000100.mp4", "env-steps-000002000.mp4"):
        write(folder / "stage2", name)
    for name in ("start-001.mp4", "start-000.mp4"):
        write(folder / "eval", name)
    return folder


ORDER = [f"quick: {n}" for n in ("start-000", "start-001", "env-steps-000002000", "env-steps-000000100")]


def test_evaluations_come_first_and_then_the_last_of_stage_2(quick):
    videos = make_report([quick], 0.8).videos
    assert [video.title for video in videos.shown] == ORDER and videos.left_out == []


def test_the_page_holds_them_and_asks_for_no_other_file(quick):
    page = render(make_report([quick], 0.8))
    sources = re.findall(r'<video [^>]*src="data:video/mp4;base64,([^"]*)"', page)
    content = (quick / "eval" / "videos" / "start-000.mp4").read_bytes()
    assert [base64.b64decode(source) for source in sources] == [content] * 4
    assert "media-src data:" in page and 'href="#videos"' in page and "Left out" not in page


def test_what_does_not_fit_or_is_no_video_is_named(quick, monkeypatch):
    monkeypatch.setattr(report_videos, "MOST_BYTES", 350)  # of four videos of 100
    (quick / "eval" / "videos" / "start-002.mp4").write_text("<script>alert(1)</script>")
    report = make_report([quick], 0.8)
    assert [video.title for video in report.videos.shown] == ORDER[:3]
    lines = "\n".join(report.videos.left_out)
    assert "start-002" in lines and "it is no MP4" in lines
    assert "env-steps-000000100" in lines and "the page holds" in lines
    assert "Left out: quick: start-002" in render(report)


def test_a_report_without_videos_says_nothing_of_them(tmp_path):
    report = make_report([write_quickstart(tmp_path / "quick", 1, [8, 14, 19])], 0.8)
    assert 'id="videos"' not in render(report)
