"""Files that are whole or not there."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from dsrl_offpolicy.errors import InputError


@contextlib.contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; the file written there replaces ``path`` once it is on disk.

    Whatever is raised inside, and whenever the process is killed, ``path`` is what it was or what it becomes.

    Args:
        path: the file; its folder is made.

    Raises:
        InputError: it cannot be written (a full disk, no permission).
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {_problem(path, error)}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _problem(path: Path, error: OSError) -> str:
    """An error on one line, and the free bytes, which tell whether the disk is full."""
    said = " ".join(str(error).split())
    try:
        return f"{said} ({shutil.disk_usage(path.parent).free} bytes are free there)"
    except OSError:
        return said
