"""The types of settings: numbers with their ranges, which msgspec checks wherever a config is made.

Every number is bounded on both sides: NaN and infinity are in no range, and within them sizes can be counted and
float32 stays finite.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

LARGEST = 1e9

Index = Annotated[int, Meta(ge=0, le=2**63 - 1)]
"""A seed."""
Steps = Annotated[int, Meta(ge=1, le=10**12)]
"""Steps of a run, or between two events."""
StepsOrNone = Annotated[int, Meta(ge=0, le=10**12)]
"""The same, with 0 for never."""
Count = Annotated[int, Meta(ge=1, le=10**6)]
"""Things that are held at once: samples of a batch, environments, rows, heads."""
CountOrNone = Annotated[int, Meta(ge=0, le=10**6)]
"""The same, with 0 for none."""
Several = Annotated[int, Meta(ge=2, le=10**6)]
"""Things that are weighed against each other: of one alone there is no spread."""
Capacity = Annotated[int, Meta(ge=1, le=10**9)]
"""Rows of a buffer."""
Threads = Annotated[int, Meta(ge=1, le=1024)]
"""More of them end some libraries by a segmentation fault."""
Widths = Annotated[tuple[Annotated[int, Meta(ge=1, le=16384)], ...], Meta(min_length=1, max_length=64)]
"""Of a network's hidden layers."""
EmbedWidth = Annotated[int, Meta(ge=4, le=16384, multiple_of=2)]
"""Half sines, half cosines."""
PowerOfTwo = Literal[1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]

Finite = Annotated[float, Meta(ge=-LARGEST, le=LARGEST)]
Positive = Annotated[float, Meta(gt=0, le=LARGEST)]
NotNegative = Annotated[float, Meta(ge=0, le=LARGEST)]
Rate = Annotated[float, Meta(gt=0, le=1)]
Share = Annotated[float, Meta(ge=0, le=1)]
InnerShare = Annotated[float, Meta(gt=0, lt=1)]
Decay = Annotated[float, Meta(ge=0, lt=1)]
