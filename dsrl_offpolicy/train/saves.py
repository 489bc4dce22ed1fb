"""What a run resumes from: its last save and the one before, and a manifest that knows their bytes."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import random
import shutil
import sys
from collections.abc import Callable, Collection, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.files.checkpoint import file_digest, load_checkpoint, save_checkpoint
from dsrl_offpolicy.files.formats import FORMAT_VERSION, NewerFormatError
from dsrl_offpolicy.files.plain import check_fields, reading

LAST, PREVIOUS, MANIFEST = "last.pt", "previous.pt", "manifest.json"
LIBRARIES = ("torch", "numpy", "gymnasium", "metaworld", "mani-skill")

COMMON = {
    "device": str, "training": dict[str, Any], "log": dict[str, Any], "random": dict[str, Any],
    "settings": dict[str, Any],
}  # fmt: skip
"""What the saves of every stage hold besides its own; ``settings`` came later."""
LOG = {"minutes": float, "rows": int}
LOGGERS = {"sinks": dict[str, dict[str, Any]], "step": int, "wandb_id": str | None}
"""The states of the loggers; the last two of saves of earlier versions."""
RANDOM = {"python": list[Any], "numpy": list[Any], "torch": Tensor}


class Saves:
    """``last.pt`` and ``previous.pt`` of one run, of one ``kind``.

    At no moment is there no whole file: the new one is written aside, its digest goes into the manifest, the last
    one becomes the previous one, and the new one is renamed. A digest is taken once, of what was just written.
    """

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder = folder
        self.kind = kind

    def exist(self) -> bool:
        """Return whether anything was saved yet."""
        return any((self.folder / name).exists() for name in (LAST, PREVIOUS))

    def save(self, content: Mapping[str, Any], progress: str = "") -> None:
        """Keep ``content`` as the last checkpoint. A last one that was damaged does not become the previous one.

        Args:
            content: of the checkpoint.
            progress: how far the run is, for the manifest and whoever looks for its end.

        Raises:
            InputError: it cannot be written; the last one and the previous one are as they were.
        """
        new, last, previous = self.folder / "new.pt", self.folder / LAST, self.folder / PREVIOUS
        try:
            save_checkpoint(new, self.kind, content)
            known = self._digests()
            if known is None:  # the files are taken as they are, as load() takes them
                known = [file_digest(path) for path in (last, previous) if path.is_file()]
            self._write_manifest([file_digest(new), *known[:2]], progress)
            if last.is_file() and file_digest(last) in known:
                _copy(last, previous)
            new.replace(last)
        except OSError as error:
            raise InputError(f"{self.folder}: cannot write a checkpoint: {error}") from error
        finally:
            with contextlib.suppress(OSError):
                new.unlink(missing_ok=True)

    def load(self, check: Callable[[dict[str, Any]], None] = lambda content: None) -> dict[str, Any]:
        """Load the last checkpoint to the CPU, or, with a note, the previous one if the last is damaged.

        Args:
            check: raises InputError where what a checkpoint needs besides is damaged.

        Raises:
            InputError: neither is whole, or a later version of this package wrote them.
        """
        if not self.exist():
            raise InputError(f"resume: nothing was saved in {self.folder} yet")
        known, problems = self._digests(), []
        if known is None:
            print(f"note: {self.folder / MANIFEST} cannot be read; the saves are used unchecked", file=sys.stderr)
        for name in (LAST, PREVIOUS):
            path = self.folder / name
            try:
                if known is not None and path.is_file() and file_digest(path) not in known:
                    raise InputError(f"resume: {path} was altered or cut since it was saved")
                content = load_checkpoint(path, self.kind, "resume")
                check(content)
            except NewerFormatError:  # nothing is damaged, and to go on from the one before would lose it
                raise
            except InputError as error:
                problems.append(str(error))
                continue
            if problems:
                print(f"note: {problems[0]}; resuming from {name}", file=sys.stderr)
            return content
        raise InputError("; ".join(problems))

    def _digests(self) -> list[str] | None:
        """Of the files that were written whole, newest first; None where no manifest can be read."""
        try:
            found = json.loads((self.folder / MANIFEST).read_text())["sha256"]
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return None
        return [str(digest) for digest in found] if isinstance(found, list) else None

    def _write_manifest(self, digests: list[str], progress: str) -> None:
        manifest = {
            "format_version": FORMAT_VERSION,
            "kind": self.kind,
            "progress": progress,
            "sha256": digests,
            "python": platform.python_version(),
            "versions": {name: _version(name) for name in LIBRARIES},
        }
        path = self.folder / MANIFEST
        temporary = path.with_suffix(".tmp")
        with temporary.open("w") as file:
            json.dump(manifest, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)


def _copy(source: Path, target: Path) -> None:
    """Let ``target`` be what ``source`` is, whole at every moment: by a link, or else by a copy."""
    temporary = target.with_suffix(".tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    temporary.replace(target)


def _version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


def check_common(content: Mapping[str, Any], same: Collection[str], where: str) -> None:
    """Hold what the saves of every stage hold against what it is: logs, global generators, digests.

    Args:
        content: of a save.
        same: names of what must not have changed.
        where: the place to name in an error.

    Raises:
        InputError: entries that are missing or of another type.
    """
    check_fields(content, {**COMMON, **dict.fromkeys(same, str)}, where, optional=("settings",))
    check_fields(content["log"], {**LOG, **LOGGERS}, f"{where}: log", optional=LOGGERS)
    states, at = content["random"], f"{where}: random"
    check_fields(states, RANDOM, at)
    with reading(at, "states of generators"):  # tried on others
        version, words, gauss = states["python"]
        random.Random().setstate((version, tuple(words.tolist()), gauss))
        name, keys, *rest = states["numpy"]
        np.random.RandomState().set_state((name, keys.numpy().astype(np.uint32), *rest))
        torch.Generator().set_state(states["torch"].cpu())
