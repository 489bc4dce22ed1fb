"""The script of ``dsrl completion`` in a real bash."""

from __future__ import annotations

import shutil
import subprocess
from argparse import ArgumentParser
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import pytest

from dsrl_offpolicy import cli
from dsrl_offpolicy.agents.stage2_config import Stage2Config
from dsrl_offpolicy.commands.completion import completed_parser
from dsrl_offpolicy.configs.jobs import (
    DemosConfig,
    EvalConfig,
    PPOConfig,
    QuickstartConfig,
    Stage0Config,
    Stage1Config,
)

# Puts the words of a command line where bash has them, calls what completes dsrl, and prints what it offers.
ASK = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
$(complete -p dsrl | sed 's/.*-F \\([^ ]*\\).*/\\1/')
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(run_command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    done = run_command(["completion", "bash"])
    assert done.status == 0, done.err
    path = tmp_path_factory.mktemp("completion") / "dsrl.bash"
    path.write_text(done.out)
    return path


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["dsrl", "sta"], {"stage1", "stage2"}),
        (["dsrl", "stage2", "--utd"], {"--utd_ratio"}),
        (["dsrl", "stage2", "--init_c"], {"--init_critic"}),
        (["dsrl", "quickstart", "--bud"], {"--budget"}),
        (["dsrl", "quickstart", "--utd"], set()),
        (["dsrl", "export", "--with"], {"--with_base"}),
        (["dsrl", "stage2", "--env_id", "x", "--num_e"], {"--num_envs"}),
        (["dsrl", "stage2", "--pres"], {"--preset"}),
        (["dsrl", "stage2", "--compile", ""], {"auto", "on", "off"}),
        (["dsrl", "stage2", "--target_entropy", ""], {"auto"}),
        (["dsrl", "export", "--checkpoint", ""], {"last", "best"}),
    ],
)
def test_bash_offers_commands_and_flags(script: Path, words: list[str], offered: set[str]) -> None:
    if shutil.which("bash") is None:
        pytest.skip("needs bash")
    done = subprocess.run(["bash", "-c", ASK, "ask", script, *words], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == offered, done.stderr


@pytest.fixture(scope="module")
def parser() -> ArgumentParser:
    return completed_parser(cli.COMMANDS, cli.TOOLS)


@pytest.mark.parametrize(
    ("command", "job"),
    [
        ("demos", DemosConfig), ("pretrain", Stage0Config), ("stage1", Stage1Config), ("stage2", Stage2Config),
        ("ppo", PPOConfig), ("eval", EvalConfig), ("quickstart", QuickstartConfig),
    ],
)  # fmt: skip
def test_every_flag_of_a_job_is_offered_and_no_other(parser: ArgumentParser, command: str, job: type) -> None:
    (commands,) = (action for action in parser._actions if action.choices is not None)
    offered = {flag for action in commands.choices[command]._actions for flag in action.option_strings}
    kinds = get_type_hints(job, include_extras=True)
    flags = {f"--{field.name}" for field in fields(job)}
    flags |= {f"--no_{field.name}" for field in fields(job) if kinds[field.name] is bool}
    taken = {"--config", "--progress", *(["--preset"] if job is Stage2Config else [])}
    assert offered == flags | taken


def test_it_is_not_there_for_other_shells(run_command) -> None:
    done = run_command(["completion", "teletype"])
    assert done.status == 2 and len(done.error_lines) == 1 and "teletype" in done.err and "bash" in done.err
