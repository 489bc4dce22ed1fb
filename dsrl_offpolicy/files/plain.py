"""Values from files and settings, held by msgspec against the types that a class annotates."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict, TypeVar, get_args, get_type_hints

import msgspec
from msgspec import Meta

from dsrl_offpolicy.errors import InputError

T = TypeVar("T")

Number = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | Annotated[float, Meta(ge=-1.7e308, le=1.7e308)]
"""Neither NaN nor infinity, and not beyond 64 bits where it is whole."""

READ_ERRORS = (
    OSError, LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RuntimeError, MemoryError,
)  # fmt: skip
"""What python, torch and h5py raise on content that is not what it should be."""

_NAMES = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "array": "a list",
          "object": "fields by name", "null": "nothing"}  # fmt: skip


def checked(values: Any, cls: Any, where: str, *, strict: bool = True) -> Any:
    """Convert values from outside to the type that they should be; lists stand for tuples.

    A whole number is a float; a truth value is no number.

    Args:
        values: mappings, lists, tensors and plain values.
        cls: a dataclass, a TypedDict or another annotated type; ``msgspec.Meta`` holds ranges.
        where: the place to name in an error; empty where the name of a field says it.
        strict: numbers must not be written as text.

    Raises:
        InputError: naming the value that does not fit, what was expected and what came.
    """
    try:
        return msgspec.convert(values, cls, strict=strict, dec_hook=_from_text)
    except msgspec.ValidationError as error:
        raise InputError(": ".join(filter(None, (where, _explained(str(error), values, cls))))) from error
    except READ_ERRORS as error:  # it takes a tensor for a mapping
        raise InputError(f"{where}: a value has the wrong type ({type(error).__name__})") from error


def _from_text(cls: type, value: Any) -> Any:
    return Path(value) if cls is Path and isinstance(value, str) else value


def _explained(said: str, values: Any, cls: Any) -> str:
    """What msgspec says, in our words: ``field: expected ..., got ...``."""
    said, _, path = said.partition(" - at `$")
    path = path.strip("`.")
    keys = re.findall(r"\w+", path)
    missing = re.fullmatch("Object missing required field `(.*)`", said)
    if missing:
        return f"{path}: expected a field {missing[1]!r}, got none".removeprefix(": ")
    if said.startswith("Invalid enum value"):
        hint = get_type_hints(cls).get(keys[0]) if keys else cls
        choices = [value for part in (hint, *get_args(hint)) for value in get_args(part)]
        said = f"expected {', '.join(str(c) for c in choices if isinstance(c, str | int))}"
    expected = re.sub(r"`(.*?)`", lambda m: " or ".join(_NAMES.get(n, n) for n in m[1].split(" | ")), said)
    expected, _, got = expected.partition(", got ")
    if "..." not in path:
        for key in keys:
            values = values[int(key) if isinstance(values, list | tuple) else key]
        got = f"{len(values)} values" if " of length" in expected else shown(values)
    return f"{path}: {expected[0].lower()}{expected[1:]}, got {got}".removeprefix(": ")


def is_finite_number(value: Any) -> bool:
    """Return whether a value is a number, not beyond 64 bits where it is whole, and neither NaN nor infinity."""
    try:
        return msgspec.convert(value, Number) is not None
    except msgspec.ValidationError:
        return False


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
    types = {name: NotRequired[hint] if name in optional else hint for name, hint in hints.items()}
    checked(values, TypedDict("Fields", types), where)  # type: ignore[operator]


def from_plain(cls: type[T], values: Any, where: str) -> T:
    """Build a dataclass from the mapping that a file holds.

    Raises:
        InputError: fields that are missing, unknown or of another type.
    """
    built: T = checked(values, cls, where)
    known = [f.name for f in fields(cls)]  # type: ignore[arg-type]
    unknown = [name for name in values if name not in known]
    if unknown:
        raise InputError(f"{where}: expected the fields {', '.join(known)}, got also {shown(unknown[0])}")
    return built


def shown(value: Any) -> str:
    """Return a value as an error shows it: short, and on one line."""
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
