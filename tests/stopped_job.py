"""``dsrl`` in a process of its own that gets a signal at a known moment.

Its arguments are AFTER COUNT SIGNAL MINIMUM COMMAND --flags: once AFTER (``module:function`` or
``module:Class.method``) has returned COUNT times, SIGNAL goes to the whole process group, as a terminal or a batch
system sends it. MINIMUM, as JSON, is the least that a quickstart does, whatever its budget.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest import mock

import warm_start


def stopping(after: str, count: int, send: Any) -> AbstractContextManager:
    """Inside, ``send()`` is called once ``after`` has returned ``count`` times."""
    module, _, inside = after.partition(":")
    owner: Any = importlib.import_module(module)
    *classes, name = inside.split(".")
    for inner in classes:
        owner = getattr(owner, inner)
    original, returned = getattr(owner, name), [0]

    def counting(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        returned[0] += 1
        if returned[0] == count:
            send()
        return result

    return mock.patch.object(owner, name, counting)


def start(
    after: str,
    count: int,
    number: signal.Signals,
    argv: Sequence[object],
    minimum: Mapping[str, int] | None = None,
) -> tuple[int, str]:
    """Run :func:`main` as a group of its own; its exit status and what it said on standard error."""
    orders = [after, count, number.name, json.dumps(minimum or {}), *argv]
    job = warm_start.start("stopped_job:main", orders, path=[str(Path(__file__).parent)])
    _, said = job.communicate(timeout=240)
    assert job.returncode is not None
    return job.returncode, said


def main() -> int:
    from dsrl_offpolicy.cli import main as dsrl

    after, count, name, minimum, *argv = sys.argv[1:]
    stop = stopping(after, int(count), lambda: os.killpg(os.getpgrp(), signal.Signals[name]))
    with stop, mock.patch.dict("dsrl_offpolicy.commands.quickstart.MINIMUM", json.loads(minimum)):
        return dsrl(argv)
