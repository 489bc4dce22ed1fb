"""Checkpoint files: whole or not at all, tensors only, and errors that name what does not fit."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.files.checkpoint import load_checkpoint, load_weights, read_tensors, save_checkpoint

CONTENT = {"weights": {"a": torch.arange(3.0)}, "steps": 7, "name": "x"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "deep" / "last.pt"
    save_checkpoint(path, "stage1", CONTENT)
    return path


def _refused(path: Path, kind: str = "stage1") -> str:
    with pytest.raises(InputError) as error:
        load_checkpoint(path, kind, "stage1_checkpoint")
    message = str(error.value)
    assert message.startswith("stage1_checkpoint: expected") and "\n" not in message
    assert str(path) in message
    return message


def test_what_is_saved_is_loaded(file):
    content = load_checkpoint(file, "stage1", "stage1_checkpoint")
    assert content["steps"] == 7 and content["name"] == "x" and content["kind"] == "stage1"
    assert torch.equal(content["weights"]["a"], torch.arange(3.0))


def test_missing_file(tmp_path):
    assert "does not exist" in _refused(tmp_path / "nowhere.pt")


def test_wrong_kind_names_both(file):
    message = _refused(file, "base_policy")
    assert "base_policy" in message and "stage1" in message.removeprefix("stage1_checkpoint")


def test_another_format_version(file):
    content = read_tensors(file, "file", "test")
    torch.save({**content, "format_version": 99}, file)
    assert "99" in _refused(file)


@pytest.mark.parametrize("content", [[1, 2], {"weights": 1}, torch.zeros(2)])
def test_a_torch_file_that_is_no_checkpoint(tmp_path, content):
    path = tmp_path / "other.pt"
    torch.save(content, path)
    _refused(path)


class _Code:
    def __reduce__(self):
        return os.mkdir, ("executed_by_the_pickle",)


def test_pickled_code_is_refused_and_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path, save in ((tmp_path / "torch.pt", torch.save), (tmp_path / "plain.pt", _pickle)):
        save({"kind": "stage1", "format_version": 1, "weights": _Code()}, path)
        assert "code" in _refused(path)
    assert not (tmp_path / "executed_by_the_pickle").exists()


def _pickle(content, path: Path) -> None:
    path.write_bytes(pickle.dumps(content))


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.99])
def test_truncated_file(file, part):
    data = file.read_bytes()
    file.write_bytes(data[: int(part * len(data))])
    _refused(file)


@pytest.mark.parametrize("text", ["hello", "x", "kind: stage1\n", "\x00\x01\x02"])
def test_a_file_that_is_something_else_entirely(tmp_path, text):
    path = tmp_path / "notes.pt"
    path.write_text(text)
    _refused(path)


def test_saving_leaves_nothing_beside_the_file_and_replaces_it_whole(file):
    save_checkpoint(file, "stage1", {"steps": 8})
    assert [p.name for p in file.parent.iterdir()] == ["last.pt"]
    assert load_checkpoint(file, "stage1", "x")["steps"] == 8
    assert "weights" not in load_checkpoint(file, "stage1", "x")


def test_a_save_that_fails_keeps_the_old_file_and_leaves_nothing_behind(file, monkeypatch):
    def fail(path, content):
        path.open("wb").write(content[:100])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(InputError, match=r"last\.pt: cannot be written: no space"):
        save_checkpoint(file, "stage1", {"steps": 8})
    monkeypatch.undo()
    assert load_checkpoint(file, "stage1", "x")["steps"] == 7
    assert [p.name for p in file.parent.iterdir()] == ["last.pt"]


def _weights(**changes) -> dict[str, torch.Tensor]:
    return {**nn.Linear(3, 2).state_dict(), **changes}


def test_weights_that_fit_are_loaded():
    module, weights = nn.Linear(3, 2), _weights()
    load_weights(module, weights, "here")
    assert torch.equal(module.weight, weights["weight"])


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (_weights(weight=torch.zeros(2, 5)), ["weight", "(2, 3)", "(2, 5)"]),
        ({"weight": torch.zeros(2, 3)}, ["bias", "(2,)", "none"]),
        (_weights(extra=torch.zeros(4)), ["extra", "none", "(4,)"]),
    ],
)
def test_the_tensor_that_does_not_fit_is_named(weights, words):
    module = nn.Linear(3, 2)
    before = module.weight.clone()
    with pytest.raises(InputError) as error:
        load_weights(module, weights, "here")
    message = str(error.value)
    assert message.startswith("here: tensor") and "\n" not in message
    for word in words:
        assert word in message
    assert torch.equal(module.weight, before)  # all or nothing


def _cycle() -> list:
    value: list = []
    value.append(value)
    return value


def _doubling(levels: int) -> list:
    value: list = []
    for _ in range(levels):
        value = [value, value]
    return value


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (torch.zeros(1).expand(10**12), "larger than its data"),  # 4 TB, if written out
        (torch.zeros(0, 10**12), "larger than its data"),
        (torch.zeros(2, 2).to_sparse(), "no plain table of numbers"),
        (torch.zeros(2, dtype=torch.complex64), "no plain table of numbers"),
        (_cycle(), "nested without end"),
        (_doubling(40), "nested without end"),  # 2^40 lists, if written out
    ],
    ids=["expanded", "empty", "sparse", "complex", "cycle", "doubling"],
)
def test_a_few_bytes_that_stand_for_more_than_any_memory_holds_are_refused(file, value, says):
    torch.save({**CONTENT, "kind": "stage1", "format_version": 2, "extra": [value]}, file)
    assert file.stat().st_size < 10_000
    assert says in _refused(file)


@pytest.mark.parametrize("version", [2, 3])
def test_a_flipped_bit_in_a_weight_is_seen(file, version):
    if version == 2:
        torch.save({**CONTENT, "kind": "stage1", "format_version": 2}, file)
    content = bytearray(file.read_bytes())
    content[content.index(torch.arange(3.0).numpy().tobytes()) + 5] ^= 1
    file.write_bytes(bytes(content))
    assert "cannot be read" in _refused(file)


def test_packed_records_are_refused(file):
    """torch stores records as they are; packed, 300 bytes can stand for 300 kB."""
    torch.save({**CONTENT, "kind": "stage1", "format_version": 2}, file)
    with zipfile.ZipFile(file) as whole:
        records = {info.filename: whole.read(info) for info in whole.infolist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in records.items():
            packed.writestr(name, content)
    assert "weights" in torch.load(file, weights_only=True)  # torch would take it
    with pytest.raises(InputError, match="cannot be read"):
        load_checkpoint(file, "stage1", "flag")
