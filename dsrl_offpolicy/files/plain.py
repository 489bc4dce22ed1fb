"""Plain values from files: whether they are of the types that a dataclass annotates."""

from __future__ import annotations

import math
import types
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, fields
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from dsrl_offpolicy.errors import InputError

T = TypeVar("T")

READ_ERRORS = (
    OSError, LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RuntimeError, MemoryError,
)  # fmt: skip
"""What python, torch and h5py raise on content that is not what it should be."""


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type, looking into tuples, lists and dictionaries.

    A whole number is a float; a truth value is no number, and neither is one beyond 64 bits.
    """
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, arg) for arg in args)
    if origin is Literal:
        return isinstance(value, str) and value in args
    if origin is tuple and args[1:] != (...,):
        return isinstance(value, tuple) and len(value) == len(args) and all(map(fits, value, args))
    if origin in (tuple, list):
        return isinstance(value, origin) and all(fits(inner, args[0]) for inner in value)
    if origin is dict:
        return isinstance(value, dict) and all(fits(k, args[0]) and fits(v, args[1]) for k, v in value.items())
    if hint is int or hint is float:
        if isinstance(value, int):
            return not isinstance(value, bool) and abs(value) < 2**63
        return hint is float and isinstance(value, float)
    return hint is Any or isinstance(value, hint or types.NoneType)


def is_finite_number(value: Any) -> bool:
    """Whether a value is a number, not beyond 64 bits where it is whole, and neither NaN nor infinity."""
    return fits(value, float) and math.isfinite(value)


def check_fields(values: Any, hints: Mapping[str, Any], where: str, optional: Collection[str] = ()) -> None:
    """Hold a mapping from a file against the names and types that it must have; it may have others.

    Args:
        values: what the file holds.
        hints: type by name.
        where: the place to name in an error.
        optional: names that may be missing.

    Raises:
        InputError: no mapping, a name that is missing, or a value of another type.
    """
    if not isinstance(values, Mapping):
        raise InputError(f"{where}: expected the fields {', '.join(hints)}, got {shown(values)}")
    for name, hint in hints.items():
        if name in values and not fits(values[name], hint):
            expected = hint.__name__ if isinstance(hint, type) else hint
            raise InputError(f"{where}: {name}: expected {expected}, got {shown(values[name])}")
        if name not in values and name not in optional:
            raise InputError(f"{where}: expected a field {name!r}, got none")


def from_plain(cls: type[T], values: Any, where: str) -> T:
    """A dataclass from the mapping that a file holds, in which lists stand for tuples.

    Raises:
        InputError: fields that are missing, unknown or of another type.
    """
    known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    optional = [name for name, f in known.items() if f.default is not MISSING]
    if isinstance(values, Mapping):
        values = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    hints = get_type_hints(cls)
    check_fields(values, {name: hints[name] for name in known}, where, optional)
    unknown = [name for name in values if name not in known]
    if unknown:
        raise InputError(f"{where}: expected the fields {', '.join(known)}, got also {shown(unknown[0])}")
    return cls(**values)


def shown(value: Any) -> str:
    """A value for an error: short, and on one line."""
    brief = isinstance(value, float | None) or (isinstance(value, int) and abs(value) < 2**64)
    if brief or (isinstance(value, str) and len(value) <= 60):
        return repr(value)
    return f"a value of type {type(value).__name__}"


@contextmanager
def reading(where: str, expected: str) -> Iterator[None]:
    """Inside, only what a file holds is taken apart, so that what python or torch raise there is the file's fault.

    Raises:
        InputError: in place of whatever was raised.
    """
    try:
        yield
    except InputError:
        raise
    except READ_ERRORS as error:
        problem = " ".join(str(error).split())[:200]
        raise InputError(
            f"{where}: expected {expected}, got: {problem or 'nothing'} ({type(error).__name__})"
        ) from error
