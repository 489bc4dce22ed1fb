"""``dsrl`` in a process of its own that gets a signal at a known moment.

``python tests/stopped_job.py AFTER COUNT SIGNAL COMMAND --flags``: once ``AFTER`` (a dotted function or method) has
returned COUNT times, SIGNAL goes to the whole process group, as a terminal or a batch system sends it.
"""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any
from unittest import mock


def stopping(after: str, count: int, send: Any) -> AbstractContextManager:
    """Inside, ``send()`` is called once ``after`` has returned ``count`` times."""
    owner_name, name = after.rsplit(".", 1)
    module, _, inner = owner_name.partition(":")
    owner = importlib.import_module(module)
    owner = getattr(owner, inner) if inner else owner
    original, returned = getattr(owner, name), [0]

    def counting(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        returned[0] += 1
        if returned[0] == count:
            send()
        return result

    return mock.patch.object(owner, name, counting)


def start(after: str, count: int, number: signal.Signals, argv: Sequence[object]) -> tuple[int, str]:
    """Run this script as a group of its own; its exit status and what it said on standard error."""
    done = subprocess.run(
        [sys.executable, __file__, after, str(count), number.name, *map(str, argv)],
        stderr=subprocess.PIPE, text=True, start_new_session=True, timeout=240,
    )  # fmt: skip
    return done.returncode, done.stderr


def main() -> int:
    from dsrl_offpolicy.cli import main as dsrl

    after, count, name, *argv = sys.argv[1:]
    with stopping(after, int(count), lambda: os.killpg(os.getpgrp(), signal.Signals[name])):
        return dsrl(argv)


if __name__ == "__main__":  # environment workers import this module
    sys.exit(main())
