"""The map of the rooms in docs/ is what the imports say today."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from test_imports import LEVELS

SCRIPT = Path(__file__).parents[1] / "scripts" / "draw_rooms.py"


@pytest.fixture(scope="module")
def draw_rooms():
    spec = importlib.util.spec_from_file_location("draw_rooms", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_committed_map_is_current(draw_rooms):
    assert draw_rooms.stale() == [], "run python scripts/draw_rooms.py"


def test_the_levels_are_those_that_the_test_of_imports_holds(draw_rooms):
    assert [set(rooms) for rooms in reversed(draw_rooms.levels())] == LEVELS


def test_imports_inside_functions_and_names_in_strings_count(draw_rooms, tmp_path, monkeypatch):
    package = tmp_path / "house"
    for room in ("attic", "hall", "cellar"):
        (package / room).mkdir(parents=True)
        (package / room / "__init__.py").write_text(f'"""The {room}."""\n')
    (package / "attic" / "a.py").write_text(
        "from house.hall import stairs\nimport house.attic.b\n"
        "def down():\n    import house.cellar.wine\n"
        "LATER = 'house.hall.door:Door'\nNOT_ONE = 'house.hall of fame'\n"
    )
    (package / "hall" / "h.py").write_text("KINDS = {'red': 'house.cellar.wine:Red'}\n")
    monkeypatch.setattr(draw_rooms, "PACKAGE", package)
    assert draw_rooms.used_rooms("attic") == ({"hall", "cellar"}, set())
    assert draw_rooms.used_rooms("hall") == (set(), {"cellar"})


def test_arrows_that_follow_from_others_are_left_out(draw_rooms):
    imports = {"a": {"b", "c"}, "b": {"c"}, "c": set()}
    assert draw_rooms.arrows(imports) == [("a", "b"), ("b", "c")]


def test_a_room_without_a_docstring_is_named(draw_rooms, tmp_path, monkeypatch):
    (tmp_path / "mute.py").write_text("X = 1\n")
    monkeypatch.setattr(draw_rooms, "ROOT", tmp_path)
    with pytest.raises(ValueError, match=r"mute\.py has no docstring"):
        draw_rooms.purpose(tmp_path / "mute.py")
