"""Imports go down only, from the command line to the contracts."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import dsrl_offpolicy

PACKAGE = Path(dsrl_offpolicy.__file__).parent

# Rooms by level: a module imports from lower levels and from its own room, never from a neighbour on its level.
# ``errors`` stands lowest, since every room raises them.
LEVELS = [
    {"errors"},
    {"files", "registry", "rewards", "seeding"},
    {"configs", "contracts"},
    {"tracking"},
    {"models", "buffers", "demos", "envs"},
    {"base_policies"},
    {"agents", "rollouts", "evaluation"},
    {"analysis"},
    {"train"},
    {"commands"},
    {"cli"},
]
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
FACADE = PACKAGE / "__init__.py"
"""``from dsrl_offpolicy import load_base_policy``: imports its one name when it is asked for."""

ENTRY = PACKAGE / "__main__.py"
"""``python -m dsrl_offpolicy``: calls the command line."""

MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p not in (FACADE, ENTRY))


def _room(dotted: str) -> str:
    return dotted.split(".")[1]


def _imports(path: Path) -> list[tuple[str, bool]]:
    """Every module that a file imports, lazily or not, as a dotted name; and whether at its top level."""
    tree = ast.parse(path.read_text())
    here = path.relative_to(PACKAGE.parent).with_suffix("").parts
    found = []
    for node in ast.walk(tree):
        top = node in tree.body
        if isinstance(node, ast.Import):
            found += [(alias.name, top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(here[: len(here) - node.level]) if node.level else ""
            module = ".".join(p for p in (base, node.module or "") if p)
            for alias in node.names:
                below = PACKAGE.parent.joinpath(*module.split("."), alias.name)
                is_module = below.is_dir() or below.with_suffix(".py").is_file()
                found.append((f"{module}.{alias.name}" if is_module else module, top))
    return found


def test_every_room_has_its_level():
    rooms = {_room(".".join(p.relative_to(PACKAGE.parent).with_suffix("").parts)) for p in MODULES}
    assert rooms <= set(LEVEL), f"rooms without a level in this test: {sorted(rooms - set(LEVEL))}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down_only(path):
    room = _room(".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts))
    for module, _ in _imports(path):
        if not module.startswith("dsrl_offpolicy."):
            continue
        other = _room(module)
        assert other == room or LEVEL[other] < LEVEL[room], f"{room} (level {LEVEL[room]}) imports {module}"


def test_the_command_line_names_only_existing_jobs():
    from dsrl_offpolicy.cli import COMMANDS, TOOLS

    for module, _ in {**COMMANDS, **TOOLS}.values():
        assert (PACKAGE.parent / Path(*module.split("."))).with_suffix(".py").is_file()
        assert _room(module) in ("train", "commands")


@pytest.mark.parametrize(
    ("library", "rooms"),
    [
        ("wandb", {"tracking"}), ("trackio", {"tracking"}), ("metaworld", {"envs", "demos"}),
        ("mani_skill", {"envs", "demos"}), ("ray", {"rollouts"}),
    ],
)  # fmt: skip
def test_optional_and_heavy_libraries_are_imported_where_they_are_adapted_and_only_when_used(library, rooms):
    for path in MODULES:
        room = _room(".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts))
        for module, top in _imports(path):
            if module.split(".")[0] == library:
                assert room in rooms and not top, f"{path.relative_to(PACKAGE)} imports {module}"


def _modules_loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return set(done.stdout.split())


def test_environment_workers_do_not_import_torch():
    loaded = _modules_loaded_by("import dsrl_offpolicy.envs.vector")
    assert "dsrl_offpolicy.envs.macro_step" in loaded and "dsrl_offpolicy.envs.family" in loaded
    assert "torch" not in loaded


def test_help_of_the_command_line_does_not_import_torch():
    assert "torch" not in _modules_loaded_by("from dsrl_offpolicy.cli import main; main(['--help'])")


def test_loading_a_policy_and_an_interval_import_neither_the_compiler_nor_all_of_statistics(golden_files):
    uses = f"load_base_policy({str(golden_files / 'base_policy.pt')!r}); wilson_interval(1, 2)"
    loaded = _modules_loaded_by(
        "from dsrl_offpolicy.base_policies.loading import load_base_policy; "
        f"from dsrl_offpolicy.evaluation.intervals import wilson_interval; {uses}"
    )
    assert "dsrl_offpolicy.base_policies.shortcut_flow" in loaded
    assert not loaded & {"torch._dynamo", "sympy", "scipy.stats"}


def test_no_module_is_named_utils_or_helpers():
    assert not [p for p in MODULES if p.stem in ("utils", "helpers", "common", "misc")]
