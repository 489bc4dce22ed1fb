"""The last checkpoint of a run and the one before: never both lost, and no damage taken for whole."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.files.formats import FORMAT_VERSION
from dsrl_offpolicy.train.saves import Saves


@pytest.fixture
def checkpoints(tmp_path: Path) -> Saves:
    found = Saves(tmp_path / "checkpoints", "stage2")
    save(found, 1)
    save(found, 2)
    return found


def save(checkpoints: Saves, number: int) -> None:
    checkpoints.save({"number": number, "weights": torch.full((50,), float(number))})


def flip(path: Path) -> None:
    """One bit within the weights."""
    content = bytearray(path.read_bytes())
    content[content.index(torch.tensor([2.0]).numpy().tobytes() * 10) + 3] ^= 1
    path.write_bytes(bytes(content))


def number(checkpoints: Saves) -> int:
    content = checkpoints.load()
    assert torch.equal(content["weights"], torch.full((50,), float(content["number"])))
    return content["number"]


def test_the_last_and_the_previous_are_kept(checkpoints):
    assert number(checkpoints) == 2
    assert {p.name for p in checkpoints.folder.iterdir()} == {"last.pt", "previous.pt", "manifest.json"}
    (checkpoints.folder / "last.pt").unlink()
    assert number(checkpoints) == 1


def test_an_altered_file_is_noticed_and_never_certified(checkpoints, capsys):
    flip(checkpoints.folder / "last.pt")
    assert number(checkpoints) == 1
    assert "altered or cut since it was saved; resuming from previous.pt" in capsys.readouterr().err
    # The run goes on and saves again: the damaged file does not become the previous one.
    save(checkpoints, 3)
    assert number(checkpoints) == 3
    (checkpoints.folder / "last.pt").write_bytes(b"torn")
    assert number(checkpoints) == 1


def test_what_a_checkpoint_needs_besides_counts_too(checkpoints):
    def check(content):
        if content["number"] == 2:
            raise InputError("its replay file is gone")

    assert checkpoints.load(check)["number"] == 1


def test_nothing_whole_is_an_error_that_says_all(checkpoints):
    for name in ("last.pt", "previous.pt"):
        (checkpoints.folder / name).write_bytes(b"torn")
    with pytest.raises(InputError, match=r"last\.pt was altered.*previous\.pt was altered"):
        checkpoints.load()
    with pytest.raises(InputError, match="nothing was saved in"):
        Saves(checkpoints.folder / "other", "stage2").load()


def test_without_a_manifest_the_files_are_taken_as_they_are(checkpoints, capsys):
    (checkpoints.folder / "manifest.json").write_text("{")
    assert number(checkpoints) == 2
    assert "manifest.json cannot be read" in capsys.readouterr().err
    save(checkpoints, 3)
    assert number(checkpoints) == 3
    (checkpoints.folder / "last.pt").unlink()  # the one before was kept all the same
    assert number(checkpoints) == 2


def test_a_file_system_without_links_copies(checkpoints, monkeypatch):
    def no_links(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", no_links)
    save(checkpoints, 3)
    assert number(checkpoints) == 3
    (checkpoints.folder / "last.pt").unlink()
    assert number(checkpoints) == 2


def test_a_save_that_fails_leaves_both_as_they_were(checkpoints, monkeypatch):
    before = {p.name: p.read_bytes() for p in checkpoints.folder.iterdir()}

    def full(content, handle):
        handle.write(b"half of a file")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(InputError, match="No space left on device"):
        save(checkpoints, 3)
    assert {p.name: p.read_bytes() for p in checkpoints.folder.iterdir()} == before


def test_the_manifest_tells_versions(checkpoints):
    manifest = json.loads((checkpoints.folder / "manifest.json").read_text())
    assert manifest["versions"]["torch"] == torch.__version__.split("+")[0] or manifest["versions"]["torch"]
    assert manifest["format_version"] == FORMAT_VERSION and len(manifest["sha256"]) == 2
