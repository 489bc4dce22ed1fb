"""The script of ``dsrl completion`` in a real bash."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

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
    ],
)
def test_bash_offers_commands_and_flags(script: Path, words: list[str], offered: set[str]) -> None:
    if shutil.which("bash") is None:
        pytest.skip("needs bash")
    done = subprocess.run(["bash", "-c", ASK, "ask", script, *words], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == offered, done.stderr


def test_it_is_not_there_for_other_shells(run_command) -> None:
    done = run_command(["completion", "teletype"])
    assert done.status == 2 and len(done.error_lines) == 1 and "teletype" in done.err and "bash" in done.err
