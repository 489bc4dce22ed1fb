"""Intervals that stand beside every success rate and every difference."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval; ``low`` and ``high`` are None where the data allow none."""

    value: float
    low: float | None = None
    high: float | None = None

    def named(self, name: str) -> dict[str, float | None]:
        """Return ``name``, ``name_low`` and ``name_high``."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}


def percent(estimate: Interval, sign: str = "") -> str:
    """Return a share in per cent with its interval, ``39.0 [30.0, 48.8]``; ``sign="+"`` shows that of a gain."""
    value = f"{100 * estimate.value:{sign}.1f}"
    if estimate.low is None or estimate.high is None:
        return value
    return f"{value} [{100 * estimate.low:{sign}.1f}, {100 * estimate.high:{sign}.1f}]"


def difference_interval(rate: Interval, than: Interval) -> Interval:
    """Return ``rate`` less ``than`` with Newcombe's interval of two rates that have Wilson's (Newcombe, 1998).

    It takes their episodes for independent, which is too wide where both had the same starts. Without an interval
    of both there is none of the difference.
    """
    value = rate.value - than.value
    if rate.low is None or rate.high is None or than.low is None or than.high is None:
        return Interval(value)
    down = math.hypot(rate.value - rate.low, than.high - than.value)
    up = math.hypot(rate.high - rate.value, than.value - than.low)
    return Interval(value, value - down, value + up)


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """Return Wilson's score interval of a success rate (Wilson, 1927).

    Bit for bit that of ``scipy.stats.binomtest``, whose import would be a second of every process's start.
    """
    from scipy.special import ndtri

    rate, z = successes / trials, float(ndtri(0.5 + 0.5 * confidence))
    denominator = 2 * (trials + z**2)
    centre = (2 * trials * rate + z**2) / denominator
    half = z / denominator * math.sqrt(4 * trials * rate * (1 - rate) + z**2)
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == trials else centre + half
    return Interval(rate, low, high)


def mean_interval(values: np.ndarray, confidence: float = 0.95) -> Interval:
    """Return Student's t interval of a mean. One value has none; values without spread give a point."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean)
    from scipy.special import stdtrit  # of which scipy.stats makes the same

    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    if error == 0.0:
        return Interval(mean, mean, mean)
    low, high = stdtrit(len(values) - 1, [0.5 - 0.5 * confidence, 0.5 + 0.5 * confidence]) * error + mean
    return Interval(mean, float(low), float(high))


def sign_test(wins: int, losses: int) -> float:
    """Return the probability of at least ``wins`` heads in ``wins + losses`` tosses of a fair coin, exactly."""
    tosses = wins + losses
    return sum(math.comb(tosses, heads) for heads in range(wins, tosses + 1)) / 2**tosses
