"""The checkpoints that a run goes on from: the last and the one before, and a manifest that knows their bytes."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from dsrl_offpolicy.checkpoint import FORMAT_VERSION, file_digest, load_checkpoint, save_checkpoint
from dsrl_offpolicy.errors import InputError

LAST, PREVIOUS, MANIFEST = "last.pt", "previous.pt", "manifest.json"
LIBRARIES = ("torch", "numpy", "gymnasium", "metaworld", "mani-skill")


class RunCheckpoints:
    """``last.pt`` and ``previous.pt`` of one run, of one ``kind``.

    At no moment is there no whole file: the new one is written aside, its digest goes into the manifest, the last
    one becomes the previous one, and the new one is renamed.
    """

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder = folder
        self.kind = kind

    def save(self, content: Mapping[str, Any]) -> None:
        """Keep ``content`` as the last checkpoint.

        Raises:
            InputError: it cannot be written; the last one and the previous one are as they were.
        """
        new, last, previous = self.folder / "new.pt", self.folder / LAST, self.folder / PREVIOUS
        try:
            save_checkpoint(new, self.kind, content)
            digests = [file_digest(path) for path in (new, last, previous) if path.exists()]
            self._write_manifest(digests)
            if last.exists():
                link = previous.with_suffix(".link")
                link.unlink(missing_ok=True)
                os.link(last, link)
                link.replace(previous)
            new.replace(last)
        except OSError as error:
            raise InputError(f"{self.folder}: expected a checkpoint that can be written, got: {error}") from error
        finally:
            new.unlink(missing_ok=True)

    def load(self, device: Any = "cpu") -> dict[str, Any]:
        """The last checkpoint, or, with a note, the previous one where the last is damaged.

        Raises:
            InputError: neither is whole.
        """
        if not (self.folder / LAST).exists() and not (self.folder / PREVIOUS).exists():
            raise InputError(f"resume: expected a checkpoint in {self.folder}, none was saved yet")
        problems = []
        for name in (LAST, PREVIOUS):
            path = self.folder / name
            try:
                if path.is_file() and file_digest(path) not in self._digests():
                    raise InputError(f"resume: expected {path} as it was saved, it was altered or cut")
                content = load_checkpoint(path, self.kind, "resume", device)
            except InputError as error:
                problems.append(str(error))
                continue
            if problems:
                print(f"note: {problems[0]}; going on from {name}", file=sys.stderr)
            return content
        raise InputError("; ".join(problems))

    def _digests(self) -> list[str]:
        path = self.folder / MANIFEST
        try:
            found = json.loads(path.read_text())["sha256"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"resume: expected a manifest in {path}, got none that can be read") from error
        return found if isinstance(found, list) else []

    def _write_manifest(self, digests: list[str]) -> None:
        manifest = {
            "format_version": FORMAT_VERSION,
            "kind": self.kind,
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


def _version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None
