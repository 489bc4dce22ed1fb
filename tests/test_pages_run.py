"""Code blocks of pages run as they stand: shell by bash, with ``dsrl`` at tiny sizes, and Python as it is."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from glob import glob
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from test_imports import PACKAGE
from tiny_worlds import TINY_STAGE1, TINY_WIDTHS

DOCS = PACKAGE.parent / "docs"
BLOCK = re.compile(
    r"^```(?:bash|python)\n(.*?)^```$|((?:^ {4}[^\n]*\n(?:\n(?= {4}))?)+)", re.MULTILINE | re.DOTALL
)
"""A fenced block, or one that is indented."""

SMALL = ["--num_envs", "1", "--max_episode_steps", "16"]
SIZES = {
    "probe": [*SMALL, "--episodes", "4", "--constants", "1", "--states", "4", "--noises", "4"],
    "stage1": [*SMALL, *TINY_STAGE1, "--eval_freq", "6", "--eval_episodes", "2"],
    "stage2": [
        *SMALL, *TINY_WIDTHS, "--total_timesteps", "96", "--warmup_steps", "32", "--batch_size", "4",
        "--log_freq", "2", "--eval_freq", "96", "--eval_episodes", "2",
    ],
}  # fmt: skip
"""Flags that make a command small, behind those that a page shows."""

NOTES_ITSELF = f"""#!{sys.executable}
import json, os, sys
with open(os.environ["NOTED"], "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
"""


def blocks(page: Path) -> list[str]:
    """Code of a page, in its order."""
    found = BLOCK.findall(page.read_text())
    return [fenced or re.sub(r"^ {4}", "", indented, flags=re.MULTILINE) for fenced, indented in found]


def parts(page: Path) -> list[tuple[bool, str]]:
    """Code of a page, cut where Python follows shell or shell follows Python, and whether each part is Python."""
    found: list[tuple[bool, str]] = []
    for block in blocks(page):
        python = False
        for i, paragraph in enumerate(re.split(r"\n\n(?! )", block)):
            begins = re.match(r"(from|import) \w", paragraph) is not None
            further = python and not paragraph.startswith("dsrl ")
            python = begins or further
            if i and python == found[-1][0]:
                found[-1] = (python, f"{found[-1][1]}\n\n{paragraph}")
            else:
                found.append((python, paragraph))
    return found


def commands(block: str, folder: Path) -> list[list[str]]:
    """What bash calls ``dsrl`` with; its loops, variables and conditions are bash's."""
    noted, binaries = folder / "noted.jsonl", folder / "bin"
    noted.unlink(missing_ok=True)
    binaries.mkdir(exist_ok=True)
    for name in ("dsrl", "pip"):
        (binaries / name).write_text(NOTES_ITSELF if name == "dsrl" else "#!/bin/sh\n")
        (binaries / name).chmod(0o755)
    told = {**os.environ, "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}", "NOTED": str(noted)}
    subprocess.run(["bash", "-eu", "-c", block], cwd=folder, env=told, check=True, timeout=60)
    return [json.loads(line) for line in noted.read_text().splitlines()] if noted.exists() else []


@pytest.fixture
def folder(tmp_path: Path, monkeypatch, tiny_base, tiny_demos, golden_files: Path) -> Iterator[Path]:
    """Where a reader sits: a base policy, demonstrations, a run that was interrupted."""
    place = tmp_path / "place"
    place.mkdir()
    shutil.copy(tiny_base, place / "last.pt")
    for suffix in (".h5", ".json"):
        shutil.copy(tiny_demos.with_suffix(suffix), place / f"demos{suffix}")
    shutil.copytree(golden_files / "stage2", place / "runs" / "my-run")
    settings = place / "runs" / "my-run" / "config.yaml"
    values = yaml.safe_load(settings.read_text())
    settings.write_text(yaml.safe_dump({**values, "total_timesteps": values["total_timesteps"] + 16}))
    example = (DOCS.parent / "examples" / "steer_your_own_policy.py").read_text()
    (place / "my_policy.py").write_text(example.replace("class MyPolicy", "class DDIMPolicy"))
    for folder in ("checkpoints", "runs/my_base/checkpoints"):
        (place / folder).mkdir(parents=True)
        shutil.copy(tiny_base, place / folder / "last.pt")
    monkeypatch.chdir(place)
    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "HF_HUB_OFFLINE": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield place
    sys.modules.pop("my_policy", None)


PAGES = ["../README", "deploying", "index", "latent_env", "loggers", "resuming", "seed_commands", "tuning"]
NOT_HERE = re.compile(r"make |git clone|cd |sudo |--push_to_hub|\[--|: \{")
"""What builds the environment, leaves the folder or the machine, and what is no code."""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", PAGES)
def test_the_blocks_of_a_page_run(page: str, folder: Path, run_command):
    for library in {"loggers": ["trackio"], "seed_commands": ["wandb"], "index": ["plotly"]}.get(page, []):
        pytest.importorskip(library, reason=f"needs {library}, which the extra dev installs")
    names: dict[str, Any] = what_a_robot_sees(folder / "last.pt")
    ran = 0
    for python, text in parts(DOCS / f"{page}.md"):
        if NOT_HERE.search(text):
            continue
        ran += 1
        if python:
            exec(text, names)
            continue
        for argv in commands(text.replace("seed in 1 2 3", "seed in 1"), folder):
            if argv[0] == "export":  # two of them write to one folder
                shutil.rmtree(folder / "shared", ignore_errors=True)
                names |= what_a_robot_sees(base_of(folder / "runs" / "my-run"))
            named = [found for given in argv for found in (sorted(glob(given)) if "*" in given else [given])]
            done = run_command([*named, *([] if "--resume" in argv else SIZES.get(argv[0], []))])
            assert done.status == 0, f"{argv}: {done.err}"
    assert ran


def base_of(run: Path) -> str:
    settings = yaml.safe_load((run / "config.yaml").read_text())
    return str(settings.get("base") or settings["awsc_checkpoint"])


def what_a_robot_sees(base: Path | str) -> dict[str, Any]:
    """``obs`` and ``state``, a ``latent``, and the sizes of the noise, of a base policy."""
    from dsrl_offpolicy import load_base_policy

    info = load_base_policy(base).info
    state = torch.zeros(2, info.obs_horizon, info.state_dim)
    rows, width = info.latent_shape
    return {"obs": state, "state": state, "latent": torch.zeros(2, rows, width), "T": rows, "W": width}


def test_bash_reads_the_blocks(tmp_path: Path):
    block = "for seed in 1 2; do\n    dsrl stage2 --seed $seed \\\n        --out 'a b'\ndone\n"
    assert commands(block, tmp_path) == [["stage2", "--seed", str(seed), "--out", "a b"] for seed in (1, 2)]
    page = tmp_path / "page.md"
    indented = "    dsrl a\n\n    dsrl b\n\n    import c\n\n    c.d()\n"
    page.write_text(f"x\n\n{indented}\ny\n\n```python\nimport torch\n```\n")
    assert parts(page) == [(False, "dsrl a\n\ndsrl b"), (True, "import c\n\nc.d()\n"), (True, "import torch\n")]
