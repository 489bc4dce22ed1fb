"""Tensors and plain values in one safetensors file: no code, and nothing to unpickle.

The tensors stand under their dotted paths. Everything else is JSON in the header, with ``{"__tensor__": path}``
where a tensor belongs, ``{"__tuple__": [...]}`` for tuples and ``{"__items__": [[key, value], ...]}`` for mappings
whose keys are not text. The JSON also holds a SHA-256 of all of it, since safetensors does not see a flipped bit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

HEADER, DIGEST = "dsrl_offpolicy", "sha256"
TENSOR, TUPLE, ITEMS = "__tensor__", "__tuple__", "__items__"
CHANNELS_LAST = "__channels_last__"
"""In place of ``TENSOR`` for a tensor in that memory format: the fused Adam needs moments to lie as weights do."""


def is_tensor_file(path: Path) -> bool:
    """Return whether a file begins as a safetensors file does: eight bytes of length, then JSON."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def tensor_file(content: Mapping[str, Any]) -> bytes:
    """Return the bytes of a file that holds tensors and plain values."""
    tensors: dict[str, Tensor] = {}
    plain = _without_tensors(content, "", tensors)
    return save(tensors, {HEADER: json.dumps({DIGEST: _digest(plain, tensors), **plain})})


def read_tensor_file(path: Path, device: str | torch.device, *, memory_map: bool = False) -> dict[str, Any]:
    """Read what :func:`tensor_file` wrote.

    Args:
        path: the file.
        device: where its tensors go.
        memory_map: rather leave them in the file until they are read.

    Raises:
        ValueError, LookupError, TypeError or SafetensorError: it is another file, or damaged.
    """
    while True:
        opened = _identity(path)
        try:
            return _read(path, device, memory_map)
        except Exception:
            # safe_open opens a file twice: where a run saved in between, a header met the tensors of another.
            if _identity(path) == opened:
                raise


def _read(path: Path, device: str | torch.device, memory_map: bool) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        plain = json.loads(file.metadata()[HEADER])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if plain.pop(DIGEST) != _digest(plain, tensors):
        raise ValueError("it is damaged")
    if not memory_map:
        tensors = {name: value.to(device, copy=True) for name, value in tensors.items()}
    content: dict[str, Any] = _with_tensors(plain, tensors)
    return content


def _identity(path: Path) -> tuple[int, int, int]:
    """What tells a file from another that takes its place."""
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_mtime_ns


def _digest(plain: Any, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(plain).encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _without_tensors(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        while name in tensors:  # {"a": {"b": ...}, "a.b": ...}
            name += "'"
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        last = value.ndim == 4 and value.is_contiguous(memory_format=torch.channels_last)
        return {CHANNELS_LAST if last and not value.is_contiguous() else TENSOR: name}
    if isinstance(value, Mapping):
        inner = {key: _without_tensors(v, f"{name}.{key}".lstrip("."), tensors) for key, v in value.items()}
        return inner if all(isinstance(key, str) for key in inner) else {ITEMS: list(inner.items())}
    if isinstance(value, list | tuple):
        values = [_without_tensors(v, f"{name}.{i}", tensors) for i, v in enumerate(value)]
        return values if isinstance(value, list) else {TUPLE: values}
    return value


def _with_tensors(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_with_tensors(inner, tensors) for inner in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {TENSOR}:
        return tensors[value[TENSOR]]
    if value.keys() == {CHANNELS_LAST}:
        return tensors[value[CHANNELS_LAST]].contiguous(memory_format=torch.channels_last)
    if value.keys() == {TUPLE}:
        return tuple(_with_tensors(inner, tensors) for inner in value[TUPLE])
    pairs = value[ITEMS] if value.keys() == {ITEMS} else value.items()
    return {key: _with_tensors(inner, tensors) for key, inner in pairs}
