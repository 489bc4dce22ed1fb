"""``run.json`` of a run folder: which job the run is of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.files.metrics import json_object
from dsrl_offpolicy.files.plain import checked

NAME = "run.json"
RunKind = Literal["stage0", "stage1", "stage2", "ppo", "quickstart", "eval"]


def write_kind(folder: Path, kind: RunKind) -> None:
    """Write ``run.json`` of a new run folder."""
    (folder / NAME).write_text(json.dumps({"kind": kind}) + "\n")


def read_kind(folder: Path) -> str | None:
    """Read the kind of a run; None where an earlier version, which did not write it, made the folder.

    Raises:
        InputError: a file that cannot be read, or an unknown kind.
    """
    path = folder / NAME
    try:
        kind = json_object(path.read_text(), str(path)).get("kind")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected JSON, got: {error}") from error
    return str(checked(kind, RunKind, f"{path}: kind"))
