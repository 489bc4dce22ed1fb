"""A replay buffer on disk: every save writes only what came since the last one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dsrl_offpolicy.buffers.macro_replay_buffer import MacroReplayBuffer
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.files.checkpoint import file_digest, load_checkpoint, save_checkpoint
from dsrl_offpolicy.files.plain import check_fields, reading, shown

_STATE = {"files": list[dict[str, Any]], "capacity": int, "total_added": int, "generator": torch.Tensor}
_ENTRY = {"name": str, "start": int, "stop": int, "sha256": str}


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
            name = _name(first, buffer.total_added)
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

    def check(self, state: Any) -> None:
        """Hold what :meth:`save` returned, and the files that it lists, against each other and their digests.

        Raises:
            InputError: it is not what :meth:`save` returns, or a file is missing or altered.
        """
        where = "resume: replay"
        check_fields(state, _STATE, where)
        stop = None
        for entry in state["files"]:
            check_fields(entry, _ENTRY, where)
            start, before, stop = entry["start"], stop, entry["stop"]
            follows = before in (None, start) and 0 <= start < stop
            if not follows or entry["name"] != _name(start, stop):
                raise InputError(f"{where}: expected files that follow each other, got {shown(entry['name'])}")
            path = self.folder / entry["name"]
            if not path.is_file() or file_digest(path) != entry["sha256"]:
                problem = "was altered since it was saved" if path.is_file() else "does not exist"
                raise InputError(f"resume: the replay file {path} {problem}")
        held = stop - state["files"][0]["start"] if stop else 0
        if state["total_added"] != (stop or 0) or held < min(state["total_added"], state["capacity"]):
            raise InputError(
                f"{where}: expected files of {state['total_added']} transitions, got {held} up to {stop}"
            )

    def load(self, buffer: MacroReplayBuffer, state: dict[str, Any]) -> None:
        """Fill an empty buffer as it was when ``state`` was made; tensors are mapped, not read twice.

        Raises:
            InputError: a file that is missing, altered or of another shape, or a buffer of another capacity; the
                buffer is still empty.
        """
        self.check(state)
        if state["capacity"] != buffer.capacity:
            raise InputError(
                f"replay_buffer_size: expected {state['capacity']} as when it was saved, got {buffer.capacity}"
            )
        for entry in state["files"]:
            path = self.folder / entry["name"]
            rows = load_checkpoint(path, "replay", "resume", memory_map=True)
            buffer.put_rows(entry["start"], entry["stop"], rows)
        with reading("resume: replay", "the state of a generator"):
            buffer.restore_counters(state["total_added"], state["generator"])
        self._files = [dict(f) for f in state["files"]]


def _name(start: int, stop: int) -> str:
    return f"{start:09d}-{stop:09d}.pt"
