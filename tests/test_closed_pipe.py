"""``dsrl ... | head -1``: who has read enough is not told of a broken pipe. Real processes and pipes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("argv", "unbuffered"),
    [(["--help"], True), (["stage2", "--help-all"], False)],  # printing breaks; flushing at the end does
)
def test_a_closed_pipe_ends_a_command_without_a_word(argv: list[str], unbuffered: bool) -> None:
    reader, writer = os.pipe()
    os.close(reader)  # before the command writes its first byte
    environment = {**os.environ, "PYTHONUNBUFFERED": "1" if unbuffered else ""}
    with os.fdopen(writer) as pipe:
        done = subprocess.run(
            [sys.executable, "-m", "dsrl_offpolicy", *argv],
            stdout=pipe, stderr=subprocess.PIPE, env=environment, text=True, timeout=240,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (141, "")  # 128 + SIGPIPE, as a shell reports other programs
