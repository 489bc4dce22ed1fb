"""What clients and servers of remote base policies say to each other: openpi's websocket protocol.

Every message is one binary frame of msgpack. Arrays are written as openpi's ``msgpack_numpy`` writes them. The
server speaks first, with its metadata; then every request has one answer. A text frame is an error, in one line.
Nothing is ever pickled, and nothing that came in is trusted before its size and type are checked. Imports msgpack:
the extra ``remote``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgpack
import numpy as np
from msgspec import Meta

from dsrl_offpolicy.contracts import PolicyInfo
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.files.plain import from_plain, shown

VERSION = 1
"""Of what stands under ``MARK``; openpi's protocol itself has none."""

MARK = "dsrl"
"""Key of the server's metadata, and of requests whose arrays have a batch axis."""

RESERVED = (MARK, "noise", "features", "actions")
"""Keys of a request that are no part of its observation."""

MOST_ROWS = 4096
"""Of one request. Also the longest list and the most lists and mappings in a message."""

MIB = 2**20
MOST_AXES = 8
DTYPE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248])")


@dataclass(frozen=True)
class ServedPolicy:
    """What a server says of its policy, under ``MARK`` in its metadata.

    Attributes:
        version: of this part of the protocol.
        info: of the policy.
        fingerprint: of the policy.
        needs_observation: it decodes from more than features, so that a request to decode brings the observation.
        invertible: it can turn actions into noise.
        max_message_bytes: largest message that the server takes.
        example: one row of an observation of the right shapes; empty for states, and images, as ``info`` says.
    """

    version: int
    info: PolicyInfo
    fingerprint: str
    needs_observation: bool
    invertible: bool
    max_message_bytes: int
    example: Mapping[str, Any]

    def metadata(self) -> dict[str, Any]:
        """Return the server's first message."""
        rows = self.info.executed_rows
        info = vars(self.info) | {"executed_rows": [rows.start, rows.stop]}
        return {MARK: {**vars(self), "info": info, "example": dict(self.example)}}

    @classmethod
    def from_metadata(cls, message: Any, where: str) -> ServedPolicy:
        """Read a server's first message.

        Raises:
            InputError: not a server of ours, another version, or values that cannot be.
        """
        said = message.get(MARK) if isinstance(message, Mapping) else None
        if not isinstance(said, Mapping):
            raise InputError(
                f"{where}: this server does not say what it serves ({MARK!r} is not in its metadata); serve the "
                "policy with `dsrl serve`, or have the server say it"
            )
        version = said.get("version")
        if version != VERSION:
            raise InputError(
                f"{where}: the server speaks version {shown(version)} of the protocol, this client version "
                f"{VERSION}; install the same dsrl_offpolicy on both sides"
            )
        held = from_plain(_Served, {k: v for k, v in said.items() if k in _Served.__annotations__}, where)
        first, last = held.info.executed_rows
        info = PolicyInfo(**{**vars(held.info), "executed_rows": slice(first, last)})
        return cls(**{**vars(held), "info": info})

    def same_policy(self, other: ServedPolicy) -> bool:
        """Return whether another server serves the same policy, whatever else it says."""
        return (self.fingerprint, self.info) == (other.fingerprint, other.info)


Dim = Annotated[int, Meta(ge=0, le=10**6)]
Some = Annotated[int, Meta(ge=1, le=10**6)]
Name = Annotated[str, Meta(max_length=200)]


@dataclass(frozen=True)
class _Info:
    """``PolicyInfo`` as plain values, within bounds."""

    obs_horizon: Some
    state_dim: Dim
    feature_dim: Some
    latent_shape: tuple[Some, Some]
    action_shape: tuple[Some, Some]
    executed_rows: tuple[Dim, Some]
    env_id: Name = ""
    control_mode: Name = ""
    image_channels: Dim = 0
    image_size: tuple[Some, Some] | None = None


@dataclass(frozen=True)
class _Served:
    """``ServedPolicy`` as plain values, within bounds."""

    version: int
    info: _Info
    fingerprint: Annotated[str, Meta(min_length=1, max_length=200)]
    max_message_bytes: Annotated[int, Meta(ge=1024, le=2**40)]
    needs_observation: bool = False
    invertible: bool = False
    example: dict[str, Any] = field(default_factory=dict)


def pack(message: Mapping[str, Any]) -> bytes:
    """Write a message.

    Raises:
        InputError: an array of other things than numbers, or a value that msgpack does not have.
    """
    try:
        packed: bytes = msgpack.packb(message, default=_pack_array)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"a message to a remote policy: {' '.join(str(error).split())[:200]}") from error
    return packed


def _pack_array(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic) and not DTYPE.fullmatch(value.dtype.str):
        raise TypeError(f"expected arrays of numbers, got dtype {value.dtype}")
    if isinstance(value, np.ndarray):
        return {
            b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape,
        }  # fmt: skip
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    raise TypeError(f"expected numbers, text, arrays, lists and mappings, got {type(value).__name__}")


def unpack(data: str | bytes, what: str) -> dict[str, Any]:
    """Read a message that anybody may have sent. Arrays are copies, in the machine's byte order.

    Args:
        data: one frame.
        what: to name in an error.

    Raises:
        InputError: text, no msgpack, no mapping, more lists and mappings than a message needs, an array whose
            dtype is no plain number, or whose bytes are not those of its shape.
    """
    if isinstance(data, str):
        raise InputError(f"{what}: expected a binary frame of msgpack, got text")
    left = MOST_ROWS

    def counted(value: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise InputError(f"{what}: expected at most {MOST_ROWS} lists and mappings, got more")
        return value

    try:
        message = msgpack.unpackb(
            data,
            object_hook=lambda mapping: _unpack_array(counted(mapping), what),
            list_hook=counted,
            max_array_len=MOST_ROWS,
            max_map_len=MOST_ROWS,
            max_ext_len=0,
        )
    except InputError:
        raise
    except (ValueError, TypeError, LookupError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        said = " ".join(str(error).split())[:120]
        raise InputError(f"{what}: expected msgpack, got: {said or type(error).__name__}") from error
    if not isinstance(message, dict) or not all(isinstance(key, str) for key in message):
        raise InputError(f"{what}: expected a mapping with names as keys, got {_kind(message)}")
    return message


def _unpack_array(mapping: dict[Any, Any], what: str) -> Any:
    if b"__ndarray__" in mapping:
        data: Any = mapping.get(b"data")
        shape: Any = mapping.get(b"shape")
        dtype = _dtype(mapping.get(b"dtype"), what)
        is_shape = (
            isinstance(shape, list)
            and len(shape) <= MOST_AXES
            and all(type(length) is int and length >= 0 for length in shape)
        )
        if not is_shape:
            raise InputError(f"{what}: expected the shape of an array of at most {MOST_AXES} axes, got another")
        needed = math.prod(shape) * dtype.itemsize  # whole numbers of Python: they do not overflow
        if not isinstance(data, bytes) or len(data) != needed:
            got = f"{len(data)}" if isinstance(data, bytes) else "none"
            raise InputError(f"{what}: expected {needed} bytes for an array of shape {shape}, got {got}")
        return np.ndarray(shape, dtype, data).astype(dtype.newbyteorder("="))
    if b"__npgeneric__" in mapping:
        dtype, value = _dtype(mapping.get(b"dtype"), what), mapping.get(b"data")
        if not isinstance(value, bool | int | float):
            raise InputError(f"{what}: expected a number of dtype {dtype}, got {_kind(value)}")
        return dtype.type(value)
    return mapping


def _dtype(name: Any, what: str) -> np.dtype:
    if not isinstance(name, str) or not DTYPE.fullmatch(name):
        raise InputError(
            f"{what}: expected an array of plain numbers (bool, int, uint or float), got dtype {shown(name)}"
        )
    return np.dtype(name)


def _kind(value: Any) -> str:
    return "a mapping with other keys" if isinstance(value, dict) else type(value).__name__
