"""What sparse rewards pay, in environments and in demonstrations alike. Free of torch, for worker processes."""

from __future__ import annotations

import math
from typing import Any, Literal

RewardMode = Literal["sparse", "dense", "normalized_dense"]
"""``sparse`` is below; ``dense`` is the simulator's own, ``normalized_dense`` ManiSkill's of at most 1."""

NEVER = 1000.0
"""Steps of -1 that a failure costs at gamma 1, where never succeeding has no finite price (as at gamma .999)."""


def cost_of_never(gamma: float) -> float:
    """Return the discounted cost of never succeeding from a step on, in steps: ``1 / (1 - gamma)``, or ``NEVER``
    at gamma 1."""
    return NEVER if math.isclose(gamma, 1.0, abs_tol=1e-12) else 1.0 / (1.0 - gamma)


def sparse_reward(success: Any, terminated: Any, gamma: float, scale: float) -> Any:
    """Return the rewards of env steps: -1 until success, 0 on it, and on a termination without success what never
    succeeding costs from that step on, ``-1 / (1 - gamma)``; all times ``scale``.

    Otherwise failing early would pay: an episode that fails after 5 steps would have cost 5, one that succeeds
    after 40 costs 39. So a failure costs the same at whatever step it comes, and never less than a success.

    Args:
        success: bools of the steps, one or an array or a tensor.
        terminated: bools of the same shape. A time limit is no termination.
        gamma: discount per env step.
        scale: factor on all rewards.
    """
    return (success * 1.0 - 1.0) * (1.0 + terminated * (cost_of_never(gamma) - 1.0)) * scale
