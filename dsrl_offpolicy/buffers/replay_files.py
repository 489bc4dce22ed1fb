"""A replay buffer on disk: every save writes only what came since the last one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dsrl_offpolicy.buffers.macro_replay_buffer import MacroReplayBuffer
from dsrl_offpolicy.checkpoint import file_digest, load_checkpoint, save_checkpoint
from dsrl_offpolicy.errors import InputError

FOLDER = "replay"


class ReplayFiles:
    """Files of consecutive transitions in ``folder``, each written once and whole.

    A checkpoint holds the list that :meth:`save` returns, so files and checkpoint agree whatever is killed when.
    Files that no checkpoint lists are removed after the next save.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: list[dict[str, Any]] = []
        self._previous: list[dict[str, Any]] = []

    def save(self, buffer: MacroReplayBuffer) -> dict[str, Any]:
        """Write what is new; returns what :meth:`load` needs: plain values and the sampler's state."""
        self._previous = self._files
        first = self._files[-1]["stop"] if self._files else 0
        first = max(first, buffer.total_added - buffer.size)
        if buffer.total_added > first:
            name = f"{first:09d}-{buffer.total_added:09d}.pt"
            path = self.folder / name
            save_checkpoint(path, "replay", buffer.rows(first, buffer.total_added))
            entry = {"name": name, "start": first, "stop": buffer.total_added, "sha256": file_digest(path)}
            self._files = [*self._files, entry]
        oldest = buffer.total_added - buffer.size
        self._files = [f for f in self._files if f["stop"] > oldest]
        return {
            "files": [dict(f) for f in self._files],
            "capacity": buffer.capacity,
            "total_added": buffer.total_added,
            "generator": buffer.generator.get_state(),
        }

    def discard_older(self) -> None:
        """Remove files that neither the last save nor the one before lists."""
        kept = {entry["name"] for entry in (*self._previous, *self._files)}
        for path in (*self.folder.glob("*.pt"), *self.folder.glob("*.tmp")):
            if path.name not in kept:
                path.unlink()

    def check(self, state: dict[str, Any]) -> None:
        """Hold the files that ``state`` lists against their digests.

        Raises:
            InputError: a file that is missing or altered.
        """
        for entry in state["files"]:
            path = self.folder / entry["name"]
            if not path.is_file() or file_digest(path) != entry["sha256"]:
                problem = "was altered" if path.is_file() else "does not exist"
                raise InputError(f"resume: expected the replay file {path} as it was saved, it {problem}")

    def load(self, buffer: MacroReplayBuffer, state: dict[str, Any]) -> None:
        """Fill an empty buffer as it was when ``state`` was made; tensors are mapped, not read twice.

        Raises:
            InputError: a file that is missing, altered or of another shape, or a buffer of another capacity.
        """
        if state["capacity"] != buffer.capacity:
            raise InputError(
                f"replay_buffer_size: expected {state['capacity']} as when it was saved, got {buffer.capacity}"
            )
        self.check(state)
        for entry in state["files"]:
            path = self.folder / entry["name"]
            rows = load_checkpoint(path, "replay", "resume", memory_map=True)
            buffer.put_rows(entry["start"], {k: v for k, v in rows.items() if isinstance(v, torch.Tensor)})
        buffer.restore_counters(state["total_added"], state["generator"])
        self._files = [dict(f) for f in state["files"]]
