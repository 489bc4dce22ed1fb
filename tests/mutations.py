"""Damaged files: seeded mutations of bytes, and of the values in YAML and JSON. The same seed, the same damage."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any


def _span(rng: random.Random, data: bytearray, longest: int = 64) -> slice:
    start = rng.randrange(len(data))
    return slice(start, min(len(data), start + rng.randint(1, longest)))


def flip_bits(rng: random.Random, data: bytearray) -> None:
    for _ in range(rng.choice((1, 1, 2, 8))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def truncate(rng: random.Random, data: bytearray) -> None:
    del data[rng.randrange(len(data)) :]


def zero(rng: random.Random, data: bytearray) -> None:
    span = _span(rng, data, rng.choice((4, 64, 2048)))
    data[span] = bytes(len(data[span]))


def fill(rng: random.Random, data: bytearray) -> None:
    span = _span(rng, data, 8)
    data[span] = b"\xff" * len(data[span])


def garble(rng: random.Random, data: bytearray) -> None:
    span = _span(rng, data, rng.choice((1, 4, 64)))
    data[span] = rng.randbytes(len(data[span]))


def swap(rng: random.Random, data: bytearray) -> None:
    """Two blocks of one length, which may overlap."""
    one, other = (rng.randrange(len(data)) for _ in range(2))
    length = min(rng.randint(1, 256), len(data) - max(one, other))
    data[one : one + length], data[other : other + length] = (
        data[other : other + length], data[one : one + length],
    )  # fmt: skip


def duplicate(rng: random.Random, data: bytearray) -> None:
    span = _span(rng, data, 256)
    data[span.stop : span.stop] = data[span]


def drop(rng: random.Random, data: bytearray) -> None:
    del data[_span(rng, data, 64)]


BYTES: tuple[Callable[[random.Random, bytearray], None], ...] = (
    flip_bits, truncate, zero, fill, garble, swap, duplicate, drop,
)  # fmt: skip


def damaged(data: bytes, seed: int) -> bytes:
    """One mutation of a file's bytes."""
    rng = random.Random(seed)
    changed = bytearray(data)
    BYTES[seed % len(BYTES)](rng, changed)
    return bytes(changed)


def _deep(rng: random.Random) -> Any:
    """A list within a list, up to far beyond what a recursive reader can follow."""
    value: Any = []
    for _ in range(rng.choice((3, 90))):
        value = [value]
    return value


ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 3, 2**31, 2**63, -(2**70), 10**400, 0.0, -0.5, 1e308, float("nan"), float("inf"),
    "", "x", "none", "--help", "-1", "\0", "a\nb", "é\ud7ff", "x" * 5000, [], [[]], [None], ["x", 1], [1e308], {},
    {"": 0}, {"x": {"y": []}}, [{}], [0] * 2000,
)  # fmt: skip


def _places(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value within dictionaries and lists, the outermost excluded."""
    found = [place] if place else []
    if isinstance(value, dict):
        for key in value:
            found += _places(value[key], (*place, key))
    elif isinstance(value, list):
        for index in range(min(len(value), 8)):
            found += _places(value[index], (*place, index))
    return found


def restructured(value: Any, seed: int, odd: tuple[Any, ...] = ODD_VALUES) -> Any:
    """A copy in which a value was replaced, moved, deleted or renamed."""
    rng = random.Random(seed)
    changed = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 3))):
        places = _places(changed)
        if not places:
            return rng.choice(odd)
        *way, last = rng.choice(places)
        inner = changed
        for step in way:
            inner = inner[step]
        kind = rng.randrange(8)
        if kind == 0:
            del inner[last]
        elif kind == 1 and isinstance(inner, dict):
            inner[rng.choice(("", "x", f"{last}_", 7))] = inner.pop(last)
        elif kind == 2:
            inner[last] = _deep(rng)
        elif kind == 3:  # what stands elsewhere
            other: Any = changed
            for step in rng.choice(places):
                other = other[step]
            inner[last] = copy.deepcopy(other)
        else:
            inner[last] = copy.deepcopy(rng.choice(odd))
    return changed
