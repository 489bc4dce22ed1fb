"""Values from files against annotated types."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.files.plain import check_fields, checked, from_plain, reading, shown


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (1, int, True),
        (True, int, False),
        (1.0, int, False),
        (1, float, True),
        (True, float, False),
        ("1", float, False),
        (True, bool, True),
        (None, int | None, True),
        ("a", int | None, False),
        ("sparse", Literal["sparse", "dense"], True),
        ("none", Literal["sparse", "dense"], False),
        (["sparse"], Literal["sparse", "dense"], False),
        ((1, 2, 3), tuple[int, ...], True),
        ((), tuple[int, ...], True),
        ((1, "2"), tuple[int, ...], False),
        ([1, 2], tuple[int, ...], True),
        ((1, 2), tuple[int, int], True),
        ((1, 2, 3), tuple[int, int], False),
        ([{"a": 1}], list[dict[str, float]], True),
        ([{"a": "1"}], list[dict[str, float]], False),
        ({1: 1}, dict[str, int], False),
        (object(), Any, True),
    ],
)
def test_a_value_is_of_an_annotated_type_or_not(value, hint, expected):
    with nullcontext() if expected else pytest.raises(InputError, match=r"^x: .*expected .*, got "):
        checked(value, hint, "x")


@dataclass(frozen=True)
class Shape:
    widths: tuple[int, ...]
    scale: float
    mode: Literal["max", "flatten"] = "max"


def test_a_dataclass_is_rebuilt_from_lists_and_defaults():
    assert from_plain(Shape, {"widths": [3, 4], "scale": 2}, "x") == Shape((3, 4), 2)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"widths": [3]}, "x: expected a field 'scale', got none"),
        ({"widths": [3], "scale": 1.0, "height": 2}, "got also 'height'"),
        ({"widths": [3, "4"], "scale": 1.0}, r"x: widths\[1\]: expected a whole number, got '4'"),
        ({"widths": [3], "scale": "1\n2"}, r"x: scale: expected a number, got '1\\n2'"),
        ({"widths": [3], "scale": 1.0, "mode": "min"}, "x: mode: expected max, flatten, got 'min'"),
        ([3], "x: expected fields by name, got a value of type list"),
        (None, "x: expected fields by name, got None"),
    ],
)
def test_what_does_not_fit_is_named(values, says):
    with pytest.raises(InputError, match=says) as error:
        from_plain(Shape, values, "x")
    assert "\n" not in str(error.value)


def test_a_mapping_may_hold_more_than_is_asked_and_optional_names_may_be_missing():
    check_fields({"a": 1, "b": 2}, {"a": int}, "x")
    check_fields({}, {"a": int}, "x", optional=["a"])
    with pytest.raises(InputError, match="x: a: expected a whole number, got '1'"):
        check_fields({"a": "1"}, {"a": int}, "x", optional=["a"])


def test_what_python_raises_while_reading_is_one_line_and_our_own_errors_pass():
    with (
        pytest.raises(InputError, match=r"x: expected numbers, got: two lines \(ValueError\)"),
        reading("x", "numbers"),
    ):
        raise ValueError("two\nlines")
    with pytest.raises(InputError, match="ours"), reading("x", "numbers"):
        raise InputError("ours")
    with pytest.raises(KeyboardInterrupt), reading("x", "numbers"):
        raise KeyboardInterrupt


@pytest.mark.parametrize("value", ["x" * 10_000, 10**6000, list(range(10_000)), {"a": "\n"}, object()], ids=type)
def test_values_are_shown_briefly(value):
    assert shown(value) == f"a value of type {type(value).__name__}"
