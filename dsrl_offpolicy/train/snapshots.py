"""What a run looked like when a number stopped being finite, for a person to inspect."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from dsrl_offpolicy.errors import InputError, NonFiniteError
from dsrl_offpolicy.files.checkpoint import save_checkpoint

SNAPSHOT = "non_finite.pt"


@contextmanager
def snapshot_of_non_finite(folder: Path, state: Callable[[], Mapping[str, Any]]) -> Iterator[None]:
    """Inside, a :class:`NonFiniteError` leaves ``non_finite.pt`` in the run folder: its evidence, and ``state``.

    The checkpoints that the run goes on from stay as they were saved before.
    """
    try:
        yield
    except NonFiniteError as error:
        path = folder / SNAPSHOT
        told = f"a snapshot is in {path}"
        try:
            save_checkpoint(path, "snapshot", {"message": str(error), "evidence": dict(error.evidence), **state()})
        except InputError as problem:
            told = f"no snapshot: {problem}"
        raise NonFiniteError(f"{error}; {told}", error.evidence) from error


def check_finite(weights: Mapping[str, Tensor], when: Mapping[str, int]) -> None:
    """Refuse weights that are not finite, so that no checkpoint keeps them.

    Raises:
        NonFiniteError: naming the first such tensor.
    """
    for name, value in weights.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise NonFiniteError(
                f"{name}: expected finite weights, got NaN or infinity at {dict(when)}", {"weights": {name: value}}
            )
