"""The videos of run folders, as a report holds them: inside the page, up to a size."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

MOST_BYTES = 20_000_000
"""Of all videos in a page, before base64, which adds a third."""


@dataclass(frozen=True)
class Video:
    """A video in the page.

    Attributes:
        title: whose folder, and the file's name.
        data: the MP4 in base64.
    """

    title: str
    data: str


@dataclass(frozen=True)
class Videos:
    """What a page shows, and what it does not: a line each."""

    shown: list[Video]
    left_out: list[str]


def read_videos(folders: Mapping[str, Sequence[Path]]) -> Videos:
    """Read the MP4s in ``videos/`` of run folders, as many as fit into :data:`MOST_BYTES`.

    Those of ``dsrl eval`` come first, then those of Stage 2, the last one first.

    Args:
        folders: run folders by the name that the page calls them.
    """
    found = [
        (name, path)
        for name, of_source in folders.items()
        for path in dict.fromkeys(path for folder in of_source for path in (folder / "videos").glob("*.mp4"))
    ]
    evaluated = [one for one in found if one[1].name.startswith("start-")]
    online = [one for one in found if one not in evaluated]
    shown: list[Video] = []
    left_out: list[str] = []
    room = MOST_BYTES
    ordered = [*sorted(evaluated, key=_file_name), *sorted(online, key=_file_name, reverse=True)]
    for name, path in ordered:
        title = f"{name}: {path.stem}"
        try:
            size = path.stat().st_size
            if size > room:
                left_out.append(f"{title} ({path}): the page holds {MOST_BYTES / 1e6:.0f} MB of videos at most")
                continue
            content = path.read_bytes()
        except OSError as error:
            left_out.append(f"{title} ({path}): {error.strerror}")
            continue
        if content[4:8] != b"ftyp":
            left_out.append(f"{title} ({path}): it is no MP4")
            continue
        room -= size
        shown.append(Video(title, base64.b64encode(content).decode()))
    return Videos(shown, left_out)


def _file_name(one: tuple[str, Path]) -> str:
    return one[1].name
