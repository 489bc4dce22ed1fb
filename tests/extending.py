"""The files that the pages of ``docs/extending`` show, as a user has them: alone in a folder of their own."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
import warm_start

PAGES = Path(__file__).resolve().parents[1] / "docs" / "extending"
FILE = re.compile(r"^`(\w+\.py)`:\n\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def shown_files() -> dict[str, str]:
    """The complete files of all pages, by name."""
    return {name: text for page in sorted(PAGES.glob("*.md")) for name, text in FILE.findall(page.read_text())}


def module_of(path: Path) -> ModuleType:
    """A file as a module that no other test sees."""
    spec = importlib.util.spec_from_file_location(f"shown_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_files(folder: Path) -> Path:
    """Write the files, weights for the policy and demonstrations in the format of the page. Returns the folder."""
    folder.mkdir(exist_ok=True)
    for name, text in shown_files().items():
        (folder / name).write_text(text)
    torch.manual_seed(0)
    torch.save(module_of(folder / "my_ddim.py").DDIMPolicy().state_dict(), folder / "noise.pt")
    _write_demonstrations(folder)
    return folder


def _write_demonstrations(folder: Path, episodes: int = 6) -> None:
    family = module_of(folder / "my_family.py")
    env = family.Point(images=False)
    obs, actions, success, steps = [], [], [], []
    for seed in range(episodes):
        seen, done = env.reset(seed=seed)[0], False
        obs.append(seen["state"])
        begun = len(actions)
        while not done:
            way = family.GOALS[seen["instruction"]] - seen["state"][0]
            actions.append(np.clip([10 * way, 0.1], -0.9, 0.9))
            seen, _, _, _, info = env.step(actions[-1])
            obs.append(seen["state"])
            success.append(done := bool(info["success"]))
        steps.append(len(actions) - begun)
    np.savez(folder / "mine.npz", env_id="point", obs=obs, actions=actions, success=success, steps=steps)


def start(folder: Path, *argv: object) -> warm_start.Job:
    """``dsrl ARGV`` as a process in the folder."""
    return warm_start.start("dsrl_offpolicy.cli:run", argv, cwd=folder)


def finish(process: warm_start.Job) -> tuple[int, str]:
    """Exit status, and what it said on standard error."""
    _, said = process.communicate(timeout=240)
    return process.returncode, said


def run(folder: Path, *argv: object) -> str:
    """A command that ends well; what it said on standard error."""
    status, said = finish(start(folder, *argv))
    assert status == 0, said
    return said
