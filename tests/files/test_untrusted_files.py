"""No file runs code: nothing in the package unpickles, and every command refuses real malicious files."""

from __future__ import annotations

import ast
import json
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import dsrl_offpolicy
from dsrl_offpolicy.files.checkpoint import file_digest, read_tensors

PACKAGE = Path(dsrl_offpolicy.__file__).parent
MARKER = "executed"

UNSAFE_CALLS = {
    "pickle.load", "pickle.loads", "pickle.Unpickler", "cloudpickle.load", "cloudpickle.loads", "dill.load",
    "dill.loads", "joblib.load", "marshal.load", "marshal.loads", "shelve.open", "yaml.load", "yaml.load_all",
    "yaml.full_load", "yaml.unsafe_load", "yaml.full_load_all", "yaml.unsafe_load_all", "torch.jit.load",
    "torch.package.PackageImporter", "torch.serialization.add_safe_globals", "torch.serialization.safe_globals",
    "torch.hub.load", "eval", "exec",
}  # fmt: skip


def _name(node: ast.expr) -> str:
    """``a.b.c`` of a call's function; empty for anything else."""
    if isinstance(node, ast.Attribute):
        inner = _name(node.value)
        return f"{inner}.{node.attr}" if inner else ""
    return node.id if isinstance(node, ast.Name) else ""


def _imported_names(tree: ast.AST) -> dict[str, str]:
    """The names that a module's imports bind, and what they stand for."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def unsafe_calls(source: str) -> Iterator[str]:
    """What in a module could run code that a file holds."""
    tree = ast.parse(source)
    names = _imported_names(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        first, _, rest = _name(node.func).partition(".")
        called = ".".join(part for part in (names.get(first, first), rest) if part)
        keywords = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
        if called in UNSAFE_CALLS:
            yield called
        if called in ("torch.load", "torch.serialization.load") and keywords.get("weights_only") is not True:
            yield f"{called} without weights_only=True"
        if "allow_pickle" in keywords and keywords["allow_pickle"] is not False:
            yield f"{called} with allow_pickle"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_in_the_package_unpickles(path):
    assert list(unsafe_calls(path.read_text())) == []


@pytest.mark.parametrize(
    "source",
    [
        "import torch; torch.load(f)",
        "import torch; torch.load(f, weights_only=False)",
        "import torch as t; t.load(f, weights_only=flag)",
        "from torch import load; load(f)",
        "from torch import load as read; read(f)",
        "import pickle; pickle.loads(b)",
        "from pickle import Unpickler as U; U(f).load()",
        "import yaml; yaml.load(f, yaml.SafeLoader)",
        "import numpy as np; np.load(f, allow_pickle=True)",
        "eval(text)",
    ],
)
def test_the_search_finds_what_it_is_for(source):
    assert len(list(unsafe_calls(source))) == 1


class Malicious:
    """An object whose unpickling makes a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def legacy_save(content: Any, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def plain_pickle(content: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(content, protocol=2))


def bare_pickle(content: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(next(v for v in content.values() if isinstance(v, Malicious)), protocol=2))


WAYS: list[Callable[[Any, Path], None]] = [torch.save, legacy_save, plain_pickle, bare_pickle]


@pytest.fixture
def folder(golden_files: Path) -> Path:
    return golden_files


def poison(path: Path, marker: Path, save: Callable[[Any, Path], None]) -> None:
    """The same content with one entry more, whose loading would run code."""
    save({**read_tensors(path, "file", "test"), "extra": Malicious(marker)}, path)


def test_the_payload_is_real(tmp_path):
    for number, save in enumerate(WAYS):
        marker = tmp_path / str(number)
        save({"extra": Malicious(marker)}, tmp_path / "file")
        if save in (torch.save, legacy_save):
            torch.load(tmp_path / "file", weights_only=False)
        else:
            pickle.loads((tmp_path / "file").read_bytes())
        assert marker.is_dir()


def assert_refused(done: Any, marker: Path, name: str) -> None:
    assert done.status == 2
    assert len(done.error_lines) == 1 and "Traceback" not in done.err and name in done.err, done.err
    assert not marker.exists()


BASE = "--awsc_checkpoint {f}/base_policy.pt --env_id reach-v3 "
OFFERS = [
    ("base_policy.pt", "checkpoint inspect {f}/base_policy.pt"),
    ("base_policy.pt", "stage1 --demo_path {f}/none.h5 " + BASE),
    ("base_policy.pt", "stage2 " + BASE),
    ("base_policy.pt", "eval " + BASE),
    ("stage1.pt", "checkpoint inspect {f}/stage1.pt"),
    ("stage1.pt", "stage2 --actor_hidden_dims 4 --stage1_checkpoint {f}/stage1.pt " + BASE),
    ("stage1.pt", "eval --stage1_checkpoint {f}/stage1.pt " + BASE),
    ("stage2/checkpoints/last.pt", "checkpoint inspect {f}/stage2/checkpoints/last.pt"),
    ("stage2/checkpoints/last.pt", "eval --stage2_checkpoint {f}/stage2/checkpoints/last.pt " + BASE),
]


@pytest.mark.parametrize("save", WAYS)
def test_every_way_to_hide_code_in_a_checkpoint_is_refused(folder, tmp_path, run_command, save):
    poison(folder / "stage1.pt", tmp_path / MARKER, save)
    done = run_command(["checkpoint", "inspect", folder / "stage1.pt"])
    assert_refused(done, tmp_path / MARKER, str(folder / "stage1.pt"))


@pytest.mark.parametrize(("file", "line"), OFFERS)
def test_every_command_that_loads_a_checkpoint_refuses_a_malicious_one(folder, tmp_path, run_command, file, line):
    poison(folder / file, tmp_path / MARKER, torch.save)
    out = [] if "inspect" in line else ["--out", tmp_path / "run"]
    done = run_command([*line.format(f=folder).split(), *out])
    assert_refused(done, tmp_path / MARKER, str(folder / file))
    assert not (tmp_path / "run").exists()


def certify(folder: Path) -> None:
    """Make the manifest of a run say that its checkpoints are as they were saved."""
    checkpoints = folder / "stage2" / "checkpoints"
    manifest = json.loads((checkpoints / "manifest.json").read_text())
    manifest["sha256"] = [file_digest(checkpoints / name) for name in ("last.pt", "previous.pt")]
    (checkpoints / "manifest.json").write_text(json.dumps(manifest))


def test_a_malicious_run_checkpoint_is_refused_though_its_digest_is_right(folder, tmp_path, run_command):
    for name in ("last.pt", "previous.pt"):
        poison(folder / "stage2" / "checkpoints" / name, tmp_path / MARKER, torch.save)
    certify(folder)
    done = run_command(["stage2", "--resume", folder / "stage2"])
    assert_refused(done, tmp_path / MARKER, "last.pt")


def test_a_malicious_replay_file_is_refused_though_all_digests_are_right(folder, tmp_path, run_command):
    files = sorted((folder / "stage2" / "replay").iterdir())
    poison(files[-1], tmp_path / MARKER, torch.save)
    for name in ("last.pt", "previous.pt"):
        path = folder / "stage2" / "checkpoints" / name
        content = read_tensors(path, "file", "test")
        for entry in content["replay"]["files"]:
            entry["sha256"] = file_digest(folder / "stage2" / "replay" / entry["name"])
        torch.save(content, path)
    certify(folder)
    config = folder / "stage2" / "config.yaml"
    config.write_text(config.read_text().replace("device: auto", "device: cpu"))  # where they were made
    done = run_command(["stage2", "--resume", folder / "stage2"])
    assert_refused(done, tmp_path / MARKER, files[-1].name)


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.mkdir [{0}]", "!!python/object/new:os.mkdir [{0}]"])
def test_yaml_with_code_is_refused(folder, tmp_path, run_command, tag):
    text = f"seed: {tag.format(tmp_path / MARKER)}\n"
    (tmp_path / "own.yaml").write_text(text)
    done = run_command(["stage2", "--config", tmp_path / "own.yaml", *BASE.format(f=folder).split()])
    assert_refused(done, tmp_path / MARKER, "own.yaml")
    (folder / "stage2" / "config.yaml").write_text(text)
    assert_refused(run_command(["stage2", "--resume", folder / "stage2"]), tmp_path / MARKER, "config.yaml")


@pytest.mark.parametrize("command", ["pretrain", "stage1"])
def test_demonstrations_that_are_a_pickle_are_refused(folder, tmp_path, run_command, command):
    demos = tmp_path / "demos.h5"
    plain_pickle({"extra": Malicious(tmp_path / MARKER)}, demos)
    flags = ["--demo_path", demos, "--env_id", "reach-v3", "--out", tmp_path / "run"]
    flags += BASE.format(f=folder).split()[:2] if command == "stage1" else []
    plain_pickle({"extra": Malicious(tmp_path / MARKER)}, demos.with_suffix(".json"))
    assert_refused(run_command([command, *flags]), tmp_path / MARKER, "demos.json")
    demos.with_suffix(".json").write_text('{"env_info": {"env_id": "reach-v3"}, "episodes": [{}]}')
    assert_refused(run_command([command, *flags]), tmp_path / MARKER, "demos.h5")
