"""scripts/setup_software_rendering.sh takes the mirror that the machine already uses, in either style of apt."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "setup_software_rendering.sh"

STANZA = """# the company's
Types: deb deb-src
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/our.gpg

Types: deb
URIs: http://mirror.example/security
Suites: bookworm-security
Components: main
"""
STYLES = {
    "list": (
        "sources.list",
        "deb http://mirror.example/security bookworm-security main\n"
        "# deb http://old.example/debian bookworm main\n"
        "deb [arch=amd64 signed-by=/k.gpg]  http://mirror.example/debian  bookworm main contrib\n",
        "list\ndeb [arch=amd64 signed-by=/k.gpg] http://mirror.example/debian bookworm-backports main\n",
    ),
    "sources": (
        "sources.list.d/debian.sources",
        STANZA,
        "sources\nTypes: deb\nURIs: http://mirror.example/debian\nSuites: bookworm-backports\n"
        "Components: main contrib\nSigned-By: /usr/share/keyrings/our.gpg\n",
    ),
}


def source_of(folder: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "APT_FOLDER": str(folder)}
    return subprocess.run(
        ["bash", str(SCRIPT), "--source"], capture_output=True, text=True, env=environment, check=False
    )


@pytest.mark.parametrize("style", STYLES)
def test_backports_come_from_the_machines_own_mirror(style, tmp_path):
    name, content, expected = STYLES[style]
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / name).write_text(content)
    done = source_of(tmp_path)
    assert (done.returncode, done.stdout) == (0, expected), done.stderr


def test_a_machine_without_a_source_is_told_and_no_host_is_named(tmp_path):
    done = source_of(tmp_path)
    assert done.returncode == 1 and "add bookworm-backports to your sources" in done.stderr
    assert "http" not in SCRIPT.read_text()
