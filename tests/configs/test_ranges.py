"""Sizes and values that no run survives are refused by name, before anything is built."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from dsrl_offpolicy.agents.stage2_config import Stage2Config
from dsrl_offpolicy.configs.jobs import Stage0Config, Stage1Config
from dsrl_offpolicy.configs.loading import parse_job
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.train.command import parsed_command

YAML = {
    Stage0Config: "stage0_pretrain.yaml",
    Stage1Config: "stage1_offline.yaml",
    Stage2Config: "stage2_online.yaml",
}


@pytest.mark.parametrize(
    ("job", "flags", "says"),
    [
        (Stage2Config, "--replay_buffer_size 1000000000000000", "expected a whole number <= 1000000000, got"),
        (
            Stage2Config,
            "--actor_hidden_dims 1000000 1000000",
            r"actor_hidden_dims\[0\]: expected .* <= 16384, got",
        ),
        (
            Stage2Config,
            "--torch_threads 100000000",
            "torch_threads: expected a whole number <= 1024, got 100000000",
        ),
        (Stage2Config, "--init_temperature 1e39", r"init_temperature: expected a number <= .*, got 1e\+39"),
        (Stage2Config, "--action_magnitude 1e308", r"action_magnitude: expected a number <= .*, got 1e\+308"),
        (Stage2Config, "--action_magnitude -inf", "action_magnitude: expected a number > 0"),
        (Stage2Config, "--seed 9223372036854775808", "seed: expected a whole number <= 9223372036854775807, got"),
        (Stage0Config, "--batch_size 1", "batch_size: expected a whole number >= 2, got 1"),
        (Stage0Config, "--denoising_steps 3", "--denoising_steps.*3"),
        (Stage0Config, "--embed_dim 7", "embed_dim: expected a whole number that's a multiple of 2, got 7"),
        (Stage1Config, "--num_candidates 1", "num_candidates: expected a whole number >= 2, got 1"),
    ],
)
def test_a_value_out_of_range_is_refused_in_one_line(job, flags, says):
    with pytest.raises(InputError, match=says) as error:
        parse_job(job, YAML[job], "dsrl", flags.split())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["action_magnitude: .inf", "action_magnitude: inf"])
def test_the_plain_gaussian_can_be_said_in_yaml(tmp_path, text):
    (tmp_path / "own.yaml").write_text(text)
    argv = ["--config", str(tmp_path / "own.yaml")]
    assert parse_job(Stage2Config, "stage2_online.yaml", "dsrl", argv).action_magnitude == math.inf


def test_a_choice_that_is_none_names_the_choices(tmp_path):
    (tmp_path / "own.yaml").write_text("steer_mode: half")
    with pytest.raises(InputError, match=r"own.yaml: steer_mode: expected full, act_horizon, repeat, got 'half'"):
        parse_job(Stage2Config, "stage2_online.yaml", "dsrl", ["--config", str(tmp_path / "own.yaml")])


@pytest.mark.parametrize("allocate", [torch.empty, np.empty], ids=["torch", "numpy"])
def test_memory_that_does_not_suffice_is_one_line(allocate, capsys):
    main = parsed_command(lambda argv: None, "dsrl job")(lambda config: allocate(2**50))
    assert main([]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("dsrl job: error: not enough memory for these sizes: ") and "allocate" in line


def test_another_error_of_torch_is_not_taken_for_it():
    main = parsed_command(lambda argv: None, "dsrl job")(lambda config: torch.zeros(2) + torch.zeros(3))
    with pytest.raises(RuntimeError, match="size of tensor"):
        main([])


def test_help_whose_reader_has_enough_ends_in_silence():
    process = subprocess.Popen(
        [sys.executable, "-m", "dsrl_offpolicy.cli", "stage2", "--help"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait() == 141
