"""``--precision``: what is refused, what ``auto`` takes, and that Stages 0, 1 and 2 train in it and resume."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
import yaml
from stoppable_runs import FLAGS, rows
from stopped_job import start as start_job
from tiny_worlds import TINY_BASE, TINY_STAGE1

from dsrl_offpolicy.configs.jobs import Stage0Config
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.models.layers import mlp
from dsrl_offpolicy.models.precision import Product
from dsrl_offpolicy.train import precision as module
from dsrl_offpolicy.train.precision import product_seconds, settled, start_precision, supported

CPU = torch.device("cpu")
PRODUCTS = [Product(1, 4, 8), Product(2, 8, 8)]


def machine(monkeypatch: pytest.MonkeyPatch, **seconds: float) -> None:
    """A machine that has these precisions and takes so long for them."""
    monkeypatch.setattr(module, "supported", lambda device: list(seconds))
    monkeypatch.setattr(module, "product_seconds", lambda names, *rest: {name: seconds[name] for name in names})


@pytest.mark.parametrize(
    ("seconds", "taken"),
    [
        ({"fp32": 2.0, "bf16": 1.0}, "bf16"),
        ({"fp32": 1.0, "bf16": 2.0}, "fp32"),
        ({"fp32": 1.05, "bf16": 1.0}, "fp32"),  # a gain of 5 % is not worth it
        ({"fp32": 3.0, "bf16": 1.0, "tf32": 2.0}, "bf16"),
        ({"fp32": 3.0, "bf16": 2.0, "tf32": 1.0}, "tf32"),
    ],
)
def test_auto_takes_the_fastest_and_says_so(seconds, taken, monkeypatch) -> None:
    machine(monkeypatch, **seconds)
    found, note = settled("auto", PRODUCTS, 16, CPU)
    assert found == taken
    assert f"auto takes {taken}" in note and all(f"{n} {1e3 * s:.2f} ms" for n, s in seconds.items())


def test_without_bf16_instructions_auto_is_fp32_and_bf16_is_taken_with_a_note(monkeypatch) -> None:
    machine(monkeypatch, fp32=1.0)
    found, note = settled("auto", PRODUCTS, 16, CPU)
    assert found == "fp32" and "this processor has no bf16 instructions" in note
    found, note = settled("bf16", PRODUCTS, 16, CPU)
    assert found == "bf16" and "will be slow" in note
    assert settled("fp32", PRODUCTS, 16, CPU) == ("fp32", "")
    machine(monkeypatch, fp32=1.0, bf16=1.0)
    assert settled("bf16", PRODUCTS, 16, CPU) == ("bf16", "")


def test_a_processor_is_asked_for_its_instructions(monkeypatch) -> None:
    for has, found in (
        ({"avx2": True}, ["fp32"]),
        ({"avx512_bf16": True}, ["fp32", "bf16"]),
        ({"avx512_bf16": False, "amx_bf16": True}, ["fp32", "bf16"]),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has=has: has)
        assert supported(CPU) == found


def test_the_timing_measures_every_precision_it_is_asked_for() -> None:
    before = torch.get_float32_matmul_precision()
    state = torch.get_rng_state()
    seconds = product_seconds(["fp32", "bf16"], PRODUCTS, 16, CPU)
    assert seconds.keys() == {"fp32", "bf16"} and min(seconds.values()) > 0
    assert torch.get_float32_matmul_precision() == before
    assert torch.equal(torch.get_rng_state(), state)


def test_what_auto_took_stands_in_the_settings_and_in_the_networks(monkeypatch, capsys) -> None:
    machine(monkeypatch, fp32=2.0, bf16=1.0)
    net = mlp(2, (4,), 1, torch.nn.ReLU, layer_norm=False)
    assert start_precision(Stage0Config(precision="auto"), net, 16, CPU) == Stage0Config(precision="bf16")
    assert net.products == torch.bfloat16
    assert capsys.readouterr().err.startswith("precision: auto takes bf16")


def test_tf32_is_refused_on_a_processor_in_one_line(tiny_demos, run_command, tmp_path) -> None:
    with pytest.raises(InputError, match=r"precision: expected auto, fp32 or bf16 .*tf32"):
        settled("tf32", PRODUCTS, 16, CPU)
    argv = ["pretrain", "--demo_path", tiny_demos, "--out", tmp_path / "run", "--device", "cpu", *TINY_BASE]
    done = run_command([*argv, "--precision", "tf32"])
    assert done.status == 2 and len(done.error_lines) == 1 and "precision" in done.err
    assert not (tmp_path / "run").exists()


STAGES = {
    "stage0": ["pretrain", *TINY_BASE],
    "stage1": ["stage1", *TINY_STAGE1],
    "stage1, cloning": [
        "stage1", *TINY_STAGE1, "--method", "noise_cloning", "--cloning_iters", 8, "--choosing_episodes", 1,
        "--screening_episodes", 1, "--inversion_tolerance", 1.0,
    ],
    "stage2": ["stage2", *FLAGS.split(), "--total_timesteps", "320", "--eval_freq", "0"],
}  # fmt: skip


def files(stage: str, demos: Path, base: Path, reach: Path) -> list[object]:
    if stage == "stage2":
        return ["--awsc_checkpoint", reach]
    return ["--demo_path", demos, *([] if stage == "stage0" else ["--awsc_checkpoint", base])]


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_trains_in_bf16_near_fp32(
    stage, tiny_demos, tiny_base, reach_base, run_command, tmp_path
) -> None:
    argv = [*STAGES[stage], *files(stage, tiny_demos, tiny_base, reach_base), "--device", "cpu"]
    found = {}
    for precision in ("fp32", "bf16"):
        folder = tmp_path / precision
        done = run_command([*argv, "--precision", precision, "--out", folder])
        assert done.status == 0, done.err
        assert yaml.safe_load((folder / "config.yaml").read_text())["precision"] == precision
        found[precision] = rows(folder)
        if stage == "stage1, cloning":
            found[precision] = [json.loads((folder / "summary.json").read_text())["choice"]["held_out_nll"]]
    assert found["fp32"] != found["bf16"]
    for name in ("critic_loss", "flow_loss", "nll_loss", "8"):  # of cloning after its 8 steps
        for one, other in zip(found["fp32"], found["bf16"], strict=True):
            if name in one:
                assert other[name] == pytest.approx(one[name], rel=0.05, abs=0.05), name


def test_a_bf16_run_resumes_to_the_bit_and_in_nothing_else(tiny_demos, run_command, tmp_path) -> None:
    argv = ["pretrain", "--demo_path", tiny_demos, *TINY_BASE, "--precision", "bf16", "--device", "cpu"]
    whole, folder = tmp_path / "whole", tmp_path / "run"
    assert run_command([*argv, "--out", whole]).status == 0
    step = "dsrl_offpolicy.agents.awsc:AWSCAgent.update"
    status, _ = start_job(step, 13, signal.SIGTERM, [*argv, "--out", folder])
    assert status == 143
    config = folder / "config.yaml"
    text = config.read_text()
    config.write_text(text.replace("precision: bf16", "precision: fp32"))
    done = run_command(["pretrain", "--resume", folder])
    assert done.status == 2 and "precision: expected 'bf16', with which the run began" in done.err
    config.write_text(text)
    done = run_command(["pretrain", "--resume", folder])
    assert done.status == 0, done.err
    assert rows(folder) == rows(whole)


def test_a_run_from_before_the_setting_resumes_in_fp32(golden_files, run_command) -> None:
    config = golden_files / "stage2" / "config.yaml"
    assert "precision" not in config.read_text()
    done = run_command(["stage2", "--resume", golden_files / "stage2"])
    assert done.status == 0, done.err
    config.write_text(config.read_text() + "precision: bf16\n")
    done = run_command(["stage2", "--resume", golden_files / "stage2"])
    assert done.status == 2
