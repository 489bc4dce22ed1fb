"""What is written is what is read, types and all, and nothing about it can be altered unseen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.files.atomic import write_atomically
from dsrl_offpolicy.files.checkpoint import load_checkpoint, save_checkpoint


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "best.pt"


def test_tensors_of_every_type_and_nested_values_come_back_as_they_were(path):
    tensors = [
        torch.tensor([1.5, float("nan")]), torch.tensor(7), torch.get_rng_state(), torch.tensor([True, False]),
        torch.zeros(2, 3, dtype=torch.float64), torch.ones(3, dtype=torch.bfloat16),
        torch.arange(6).reshape(2, 3).T, torch.zeros(1).expand(4), torch.zeros(0),
    ]  # fmt: skip
    plain = {
        "none": None,
        "inf": float("-inf"),
        "tuple": (1, [2.5, ("x",)]),
        "empty": {},
        "keys": {0: "a", 1: [True]},
    }
    save_checkpoint(path, "stage1", {"tensors": tensors, **plain})
    found = load_checkpoint(path, "stage1", "x")
    assert {name: found[name] for name in plain} == plain
    for one, other in zip(tensors, found["tensors"], strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        assert torch.equal(one.nan_to_num(), other.nan_to_num())


def test_an_optimiser_goes_on_from_it(path):
    net = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    save_checkpoint(path, "stage1", {"optimizer": optimizer.state_dict()})
    optimizer.load_state_dict(load_checkpoint(path, "stage1", "x")["optimizer"])
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.999) and len(optimizer.state) == 2


def test_the_moments_of_a_convolution_lie_in_memory_as_its_weights_do(path):
    # The fused Adam reads weights and moments by their place in memory: moments that came back in another order
    # would move other weights than their own.
    weight = torch.arange(54.0).reshape(2, 3, 3, 3).contiguous(memory_format=torch.channels_last)
    save_checkpoint(path, "stage2", {"last": weight, "first": weight.contiguous()})
    found = load_checkpoint(path, "stage2", "test")
    assert torch.equal(found["last"], weight) and found["last"].stride() == weight.stride() == (27, 1, 9, 3)
    assert torch.equal(found["first"], weight) and found["first"].stride() == (27, 9, 3, 1)


def test_names_that_meet_do_not_hide_each_other(path):
    save_checkpoint(path, "stage1", {"a": {"b": torch.zeros(1)}, "a.b": torch.ones(1)})
    found = load_checkpoint(path, "stage1", "x")
    assert (found["a"]["b"].item(), found["a.b"].item()) == (0, 1)


def test_any_library_of_safetensors_reads_it(path):
    save_checkpoint(path, "stage1", {"policy": {"net.weight": torch.ones(2, 3)}, "steps": 7})
    with safe_open(path, "np") as file:
        assert file.keys() == ["policy.net.weight"] and file.get_tensor("policy.net.weight").shape == (2, 3)
        assert json.loads(file.metadata()["dsrl_offpolicy"])["steps"] == 7


@pytest.mark.parametrize(
    ("old", "new"), [(b'"steps\\": 7', b'"steps\\": 8'), (b"[2,3]", b"[3,2]"), (b"F32", b"I32")]
)
def test_a_header_that_was_altered_is_seen(path, old, new):
    save_checkpoint(path, "stage1", {"weight": torch.ones(2, 3), "steps": 7})
    content = path.read_bytes()
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new))
    with pytest.raises(InputError, match="cannot be read"):
        load_checkpoint(path, "stage1", "x")


def test_whole_numbers_beyond_64_bits_are_refused(path):
    save_checkpoint(path, "stage1", {"steps": [2**63]})
    with pytest.raises(InputError, match="a whole number beyond 64 bits"):
        load_checkpoint(path, "stage1", "x")


def test_a_writer_that_stops_half_way_leaves_the_old_file_alone(path):
    path.write_text("old")
    with pytest.raises(TypeError), write_atomically(path) as temporary:
        temporary.write_text("ne") + "w"
    with write_atomically(path) as temporary:
        assert path.read_text() == "old"
        temporary.write_text("new")
    assert path.read_text() == "new" and list(path.parent.iterdir()) == [path]


def test_a_folder_that_cannot_be_made_is_one_line(path):
    path.write_text("a file")
    with pytest.raises(InputError, match="cannot be written: "):
        save_checkpoint(path / "inside.pt", "stage1", {})


def test_a_file_that_a_run_replaces_while_it_is_opened_is_read_again(path, monkeypatch):
    # safetensors reads the header, then opens the file by its name again: a save in between is not damage.
    save_checkpoint(path, "stage1", {"weight": torch.zeros(9)})
    open_again = torch.UntypedStorage.from_file
    saves = iter([{"weight": torch.ones(9)}, {"weight": torch.full((99,), 2.0)}])

    def save_and_open(*args, **kwargs):
        for content in saves:
            save_checkpoint(path, "stage1", content)
            break
        return open_again(*args, **kwargs)

    monkeypatch.setattr(torch.UntypedStorage, "from_file", save_and_open)
    assert torch.equal(load_checkpoint(path, "stage1", "x")["weight"], torch.full((99,), 2.0))
    assert next(saves, None) is None
