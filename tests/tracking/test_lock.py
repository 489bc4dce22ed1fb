"""One process works in a run folder, and the system frees it however that process ends."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.tracking.run import _lock

HOLD = (
    "import sys, pathlib; from dsrl_offpolicy.tracking.run import _lock; lock = _lock(pathlib.Path(sys.argv[1])); "
)
HOLD += "print('held', flush=True); sys.stdin.read()"


def test_a_folder_in_which_a_process_works_is_refused_until_it_is_killed(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    with pytest.raises(InputError, match="another process is at work"):
        _lock(tmp_path)
    process.kill()
    process.communicate()
    _lock(tmp_path).release()
