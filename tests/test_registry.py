"""The five kinds of things that come in by name: what is unknown, broken or not installed is told in one line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_worlds import TASK, snapshot

from dsrl_offpolicy.agents.steering_agent import SteeringAgent
from dsrl_offpolicy.contracts import BasePolicy
from dsrl_offpolicy.demos.format import DemoFormat
from dsrl_offpolicy.envs.families.maniskill import how_to_install
from dsrl_offpolicy.envs.family import EnvFamily
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.registry import ALGORITHMS, BASE_POLICIES, DEMO_FORMATS, ENV_FAMILIES, SINKS, Registry
from dsrl_offpolicy.tracking.sink import Sink

BROKEN = """
from dsrl_offpolicy.agents.steering_agent import SteeringAgent
from dsrl_offpolicy.contracts import BasePolicy
from dsrl_offpolicy.demos.format import DemoFormat
from dsrl_offpolicy.envs.families.maniskill import how_to_install
from dsrl_offpolicy.envs.family import EnvFamily
from dsrl_offpolicy.tracking.sink import Sink
class Unrelated: pass
class LackingBasePolicy(BasePolicy): pass
class LackingEnvFamily(EnvFamily): pass
class LackingSteeringAgent(SteeringAgent): pass
class LackingDemoFormat(DemoFormat): pass
class LackingSink(Sink): pass
class UnbuildableFamily(EnvFamily):
    def __init__(self): raise RuntimeError("no\\nlicence")
    def tasks(self): return []
    def make(self, spec): return None
"""

KINDS: dict[str, tuple[str, Callable[[str], list[object]]]] = {
    "BasePolicy": ("base", lambda name: ["stage2", "--env_id", TASK, "--base", name]),
    "EnvFamily": ("env_family", lambda name: ["stage2", "--env_id", TASK, "--base", "BASE", "--env_family", name]),
    "SteeringAgent": ("algo", lambda name: ["stage2", "--env_id", TASK, "--base", "BASE", "--algo", name]),
    "DemoFormat": ("demo_format", lambda name: ["pretrain", "--demo_path", "DEMOS", "--demo_format", name]),
    "Sink": ("loggers", lambda name: ["stage2", "--env_id", TASK, "--base", "BASE", "--loggers", name]),
}


@pytest.fixture
def refused(tmp_path, monkeypatch, run_command, tiny_base, tiny_demos) -> Callable[[str, str], str]:
    """Gives a name to the flag of a kind, and returns the one line that refuses it and leaves nothing behind."""
    (tmp_path / "broken_kinds.py").write_text(BROKEN)
    (tmp_path / "raising_kinds.py").write_text("x = 1\nraise RuntimeError('no\\nlicence')\n")
    (tmp_path / "thirsty_kinds.py").write_text("import diffusers_of_mine\n")
    (tmp_path / "crooked_kinds.py").write_text("class Mine(:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in [name for name in sys.modules if name.endswith("_kinds")]:
        monkeypatch.delitem(sys.modules, name)

    def refuse(kind: str, name: str) -> str:
        flag, command = KINDS[kind]
        before = snapshot(tmp_path)
        files = {"BASE": tiny_base, "DEMOS": tiny_demos}
        done = run_command([files.get(str(word), word) for word in command(name)])
        assert done.status == 2 and len(done.error_lines) == 1, done.err
        assert f"{flag}: " in done.err, done.err
        assert snapshot(tmp_path) == before
        return done.err

    return refuse


@pytest.mark.parametrize(
    ("kind", "unknown", "near", "others"),
    [
        ("BasePolicy", "shortcut_flaw:x", "shortcut_flow", "awsc"),
        ("EnvFamily", "metawrld", "metaworld", "maniskill, robosuite, robot, gymnasium"),
        ("SteeringAgent", "sacc", "sac", "module:Class"),
        ("DemoFormat", "maniskill_hdf", "maniskill_hdf5", "module:Class"),
        ("Sink", "tensorbord", "tensorboard", "wandb"),
    ],
)
def test_an_unknown_kind_is_answered_with_the_nearest_and_the_list(refused, kind, unknown, near, others):
    said = refused(kind, unknown)
    assert f"did you mean {near}?" in said and others in said


@pytest.mark.parametrize("kind", KINDS)
def test_a_class_that_is_something_else_or_lacks_methods_is_told_the_contract(refused, kind):
    for name, problem in (("Unrelated", f"no subclass of {kind}"), (f"Lacking{kind}", "does not define ")):
        said = refused(kind, f"broken_kinds:{name}")
        assert f".{kind} that defines " in said and f"broken_kinds:{name}" in said and problem in said, said


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("absent_kinds:Mine", ["absent_kinds"]),
        ("raising_kinds:Mine", ["RuntimeError: no licence", "raising_kinds.py, line 2"]),
        ("thirsty_kinds:Mine", ["No module named 'diffusers_of_mine'"]),
        ("crooked_kinds:Mine", ["SyntaxError"]),
        ("broken_kinds:Unrelatd", ["broken_kinds has no Unrelatd", "did you mean Unrelated?"]),
        ("broken_kinds:", ["broken_kinds has no class", "module:Class"]),
    ],
)
def test_a_module_or_class_that_is_not_there_is_named(refused, kind, name, words):
    said = refused(kind, name)
    assert all(word in said for word in words), said


def test_a_class_that_cannot_be_made_is_told_where_it_raised(refused):
    said = refused("EnvFamily", "broken_kinds:UnbuildableFamily")
    assert "cannot be made: RuntimeError: no licence (broken_kinds.py, line " in said


@pytest.mark.parametrize(
    ("registry", "base"),
    [
        (BASE_POLICIES, BasePolicy), (ENV_FAMILIES, EnvFamily), (ALGORITHMS, SteeringAgent),
        (DEMO_FORMATS, DemoFormat), (SINKS, Sink),
    ],
)  # fmt: skip
def test_every_kind_that_is_built_in_is_there(registry: Registry, base: type):
    for name in registry.builtin:
        assert issubclass(registry.find(name, "flag", base), base)


@pytest.mark.parametrize(
    ("library", "extra"), [("mani_skill", "maniskill"), ("wandb", "track"), ("trackio", "trackio")]
)
def test_a_library_that_is_not_installed_names_the_extra(library, extra, tmp_path, monkeypatch):
    Path(tmp_path, f"needs_{extra}.py").write_text(f"import {library}.sub\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, library, None)  # as if it were not installed
    with pytest.raises(InputError, match=rf"cannot be imported.*pip install 'dsrl_offpolicy\[{extra}\]'"):
        ENV_FAMILIES.find(f"needs_{extra}:Mine", "env_family", EnvFamily)


def test_tracking_and_a_task_without_their_library_name_the_extra(tmp_path, monkeypatch, run_command, tiny_base):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setitem(sys.modules, "mani_skill", None)
    small = ["--total_timesteps", 96, "--warmup_steps", 32, "--eval_freq", 0, "--num_envs", 1]
    for flags, cure in (
        (["--env_id", TASK, "--track", *small], "dsrl_offpolicy[track]"),
        (["--env_id", "PickCube-v1", "--env_family", "maniskill"], how_to_install()),
    ):
        done = run_command(["stage2", "--base", tiny_base, *flags])
        assert done.status == 2 and len(done.error_lines) == 1, done.err
        assert cure in done.err, done.err


def test_an_installed_package_gives_its_class_a_short_name(tmp_path, monkeypatch):
    installed = tmp_path / "their_formats-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: their-formats\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("[dsrl_offpolicy.demo_formats]\nnpz = their_npz_format:Npz\n")
    (tmp_path / "their_npz_format.py").write_text(
        "from dsrl_offpolicy.demos.format import DemoFormat\n"
        "class Npz(DemoFormat): recognises = describe = trajectories = None\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert DEMO_FORMATS.names() == ["lerobot_v3", "robomimic_hdf5", "maniskill_hdf5", "npz"]
    assert DEMO_FORMATS.find("npz", "demo_format", DemoFormat).__name__ == "Npz"
