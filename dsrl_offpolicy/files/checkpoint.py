"""Checkpoint files: tensors and plain values only, never pickled code.

Ours are safetensors files, whatever their suffix. Format versions 1 and 2 and published policies are torch's own
archives.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.files.atomic import write_atomically
from dsrl_offpolicy.files.formats import FORMAT_VERSION, migrate
from dsrl_offpolicy.files.plain import READ_ERRORS, shown
from dsrl_offpolicy.files.tensor_file import is_tensor_file, read_tensor_file, tensor_file

UNFINISHED = "unfinished"
"""Folder, within that of a run of Stage 0 or 1, of the saves from which it goes on."""
DEEPEST, MOST_VALUES = 64, 2_000_000
"""Bounds on what a file may hold: levels of nesting, and values when everything is written out."""

_DAMAGE = (SafetensorError, EOFError, AssertionError, struct.error, zlib.error, zipfile.BadZipFile)


def save_checkpoint(path: Path, kind: str, content: Mapping[str, Any]) -> None:
    """Write a file of a ``kind`` (``base_policy``, ``stage1``, ``stage2``, ``replay``), whole or not at all.

    Args:
        path: the file; its folder is made.
        kind: what it holds.
        content: tensors and plain values.

    Raises:
        InputError: they cannot be written (a full disk, no permission); what stood at ``path`` still does.
    """
    with write_atomically(path) as temporary:
        temporary.write_bytes(tensor_file({"kind": kind, "format_version": FORMAT_VERSION, **content}))


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_tensors(
    path: Path, what: str, flag: str, device: str | torch.device = "cpu", *, memory_map: bool = False
) -> Any:
    """Read a file of tensors and plain values, whatever they are.

    Args:
        path: the file.
        what: what is expected in it, for an error.
        flag: the setting to name in an error.
        device: where its tensors go.
        memory_map: leave tensors in the file until they are read.

    Raises:
        InputError: no such file, damaged, or holding code.
    """
    path = Path(path).expanduser()
    try:
        problem = (
            None if path.is_file() else "is not a file" if path.exists() else f"does not exist{_progress(path)}"
        )
    except (OSError, ValueError) as error:  # a name that no file can have
        problem = " ".join(str(error).split())
    if problem is not None:
        raise InputError(f"{flag}: expected a {what}, {path} {problem}")
    try:
        if is_tensor_file(path):
            content = read_tensor_file(path, device, memory_map=memory_map)
        else:  # of format version 1 or 2, or published
            _check_sums(path)
            content = torch.load(path, map_location=device, weights_only=True, mmap=memory_map)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{flag}: expected a checkpoint of tensors, {path} holds other code or is damaged"
        ) from error
    except (*READ_ERRORS, *_DAMAGE) as error:
        cause = type(error).__name__
        raise InputError(f"{flag}: expected a {what}, {path} cannot be read ({cause})") from error
    problem = _not_plain(content)
    if problem is not None:
        raise InputError(f"{flag}: expected a {what}, {path} holds {problem}")
    return content


def _check_sums(path: Path) -> None:
    """Raise where a record of torch's archive is not what its CRC-32 says: torch itself does not look at it."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            if any(r.compress_type != zipfile.ZIP_STORED for r in records):  # torch stores them; a bomb packs them
                raise ValueError("its records are packed")
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"{damaged} is damaged")


def _not_plain(content: Any) -> str | None:
    """What no writer of checkpoints puts into a file, and no reader must meet; None where there is nothing of it.

    A few bytes can stand for a tensor, or for nested lists, that fill any memory.
    """
    left, seen = [(content, 0)], 0
    while left:
        value, depth = left.pop()
        seen += 1
        if depth > DEEPEST or seen > MOST_VALUES:
            return "values nested without end"
        if isinstance(value, Mapping):
            left += [(inner, depth + 1) for inner in value.values()]
        elif isinstance(value, list | tuple | set):
            left += [(inner, depth + 1) for inner in value]
        elif isinstance(value, int) and abs(value) >= 2**63:
            return "a whole number beyond 64 bits"
        elif isinstance(value, Tensor):
            if value.layout != torch.strided or value.is_quantized or value.is_complex() or value.is_meta:
                return "a tensor that is no plain table of numbers"
            held = value.untyped_storage().nbytes() // value.element_size()
            if max(value.shape, default=0) > held or value.numel() > held:
                return "a tensor that is larger than its data"
    return None


def load_checkpoint(
    path: Path, kind: str, flag: str, device: str | torch.device = "cpu", *, memory_map: bool = False
) -> dict[str, Any]:
    """Read a file of a ``kind``, of this format version or an earlier one.

    Args:
        path: the file.
        kind: what it must be.
        flag: the setting to name in an error.
        device: where its tensors go.
        memory_map: leave tensors in the file until they are read.

    Raises:
        InputError: no such file, not a checkpoint of tensors, another kind or an unknown format version.
    """
    content = read_tensors(path, f"{kind} checkpoint", flag, device, memory_map=memory_map)
    return check_kind(content, path, kind, flag)


def check_kind(content: Any, path: Path, kind: str, flag: str) -> dict[str, Any]:
    """Return the content of a file that was read, once it is of ``kind``, brought to this format version.

    Raises:
        InputError: another kind or an unknown format version.
    """
    found = content.get("kind") if isinstance(content, dict) else None
    if not isinstance(found, str) or found != kind:
        got = shown(found) if isinstance(found, str) else "something else"
        raise InputError(f"{flag}: expected a {kind} checkpoint, {path} is {got}{_progress(path)}")
    return migrate(content, kind, flag, str(path))


def _progress(path: Path) -> str:
    """How far the unfinished run is in whose folder ``path`` lies; empty where it lies in none."""
    folder = path.parent if path.parent.name == UNFINISHED else path.parent.parent / UNFINISHED
    try:
        return f": its run {json.loads((folder / 'manifest.json').read_text())['progress']}"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def load_weights(
    module: nn.Module,
    weights: Mapping[str, Tensor],
    where: str,
    stored_name: Callable[[str], str] = lambda name: name,
) -> None:
    """Load a state dict whole, or name the first tensor that does not fit.

    Args:
        module: what takes the weights.
        weights: tensors by their stored name.
        where: the place to name in an error.
        stored_name: from the module's name of a tensor to its stored name.

    Raises:
        InputError: a tensor that is missing, unexpected, of another shape or no finite numbers; the module is as
            it was.
    """
    check_weights(module, weights, where, stored_name)
    names = {stored_name(name): name for name in module.state_dict()}
    module.load_state_dict({names[name]: value for name, value in weights.items()})


def check_weights(
    module: nn.Module,
    weights: Mapping[str, Tensor],
    where: str,
    stored_name: Callable[[str], str] = lambda name: name,
) -> None:
    """Check what :func:`load_weights` checks beforehand; ``module`` may be on the device ``meta``."""
    if not isinstance(weights, Mapping):
        raise InputError(f"{where}: expected tensors by name, got {shown(weights)}")
    expected = {stored_name(name): value for name, value in module.state_dict().items()}
    for name in [*expected, *weights]:
        value = weights.get(name)
        if value is not None and not isinstance(value, Tensor):
            raise InputError(f"{where}: tensor {name}: expected a tensor, got {shown(value)}")
        shape, found = ("none" if v is None else tuple(v.shape) for v in (expected.get(name), value))
        if shape != found:
            raise InputError(f"{where}: tensor {name}: expected shape {shape}, got {found}")
        if value is not None and value.is_floating_point() != expected[name].is_floating_point():
            raise InputError(f"{where}: tensor {name}: expected {expected[name].dtype}, got {value.dtype}")
        # -inf is the logarithm of a temperature of zero.
        if value is not None and value.is_floating_point() and not bool((value < torch.inf).all()):
            raise InputError(f"{where}: tensor {name}: expected finite numbers, got NaN or infinity")
