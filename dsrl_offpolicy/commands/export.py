"""``dsrl export RUN_DIR --out FOLDER``: a folder to share: the latent policy, what it steers, and a model card."""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dsrl_offpolicy import __version__ as VERSION
from dsrl_offpolicy.analysis.run_folder import RATES, RunFolder, read_runs
from dsrl_offpolicy.base_policies.loading import load_base_policy
from dsrl_offpolicy.base_policies.shortcut_flow import DEFAULT_WEIGHTS
from dsrl_offpolicy.commands.arguments import OneLineParser
from dsrl_offpolicy.commands.hub import Hub
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.files.checkpoint import load_checkpoint, save_checkpoint
from dsrl_offpolicy.tracking.run import create_run_folder
from dsrl_offpolicy.train.programs import BASE_PROGRAM, STEERED_PROGRAM, export_programs
from dsrl_offpolicy.train.steered_policy import LATENT_POLICY, MANIFEST, Exported
from dsrl_offpolicy.train.steering_files import load_steering

PROG = "dsrl export"
KEPT = ("steering", "policy", "base_fingerprint", "env_id")
"""Of a checkpoint; optimisers, critics and counters stay behind."""
CHECKPOINTS = {"last": "last.pt", "best": "best_eval_success_once.pt"}
PROGRAMS_CARD = f"""
Without dsrl_offpolicy, in torch alone:

    import torch

    steered = torch.export.load("{STEERED_PROGRAM}").module()
    actions, noise = steered(state, torch.randn(len(state), T, W))     # images: steered(state, rgb, noise)

`{BASE_PROGRAM}` takes the same and returns the base policy's whole chunk, [B, T, A].
"""
OPTIONS = ("obs_horizon", "pred_horizon", "act_horizon", "instruction")
"""Settings of a base policy besides its weights."""


def run(arguments: argparse.Namespace) -> Path:
    """Write the folder. Returns it.

    Raises:
        InputError: no run of Stage 2 with a checkpoint, a base policy that is no file where it is to be copied, or
            a folder that exists, or a hub that does not take it.
    """
    hub = Hub(arguments.push_to_hub) if arguments.push_to_hub is not None else None
    source = Path(arguments.run_dir).expanduser()
    stage2 = next((found for found in read_runs(source) if found.kind == "stage2"), None)
    if stage2 is None:
        raise InputError(f"RUN_DIR: expected a run of Stage 2 or a quickstart that reached it, got {source}")
    checkpoint = stage2.path / "checkpoints" / CHECKPOINTS[arguments.checkpoint]
    content = load_checkpoint(checkpoint, "stage2", "RUN_DIR", "cpu")
    base, options = _base_of(stage2)
    bundled = Path(base).expanduser() if arguments.with_base else None
    if bundled is not None and not bundled.is_file():
        raise InputError(f"--with_base: expected a base policy that is a file, the run's is {base}")
    counters = content.get("counters")
    steps = counters.get("env_steps") if isinstance(counters, Mapping) else None
    manifest = Exported(
        version=1,
        env_id=str(stage2.settings["env_id"]),
        base="base_policy.pt" if bundled else base,
        base_in_folder=bundled is not None,
        base_options=options,
        env_steps=steps if isinstance(steps, int) else 0,
    )
    programs = _programs(base, options, checkpoint) if arguments.format == "torch_export" else {}
    card = model_card(stage2, manifest, _table(source, stage2), arguments.checkpoint, bool(programs))
    folder = create_run_folder(Path(arguments.out).expanduser(), "")
    save_checkpoint(folder / LATENT_POLICY, "stage2", {name: content[name] for name in KEPT if name in content})
    if bundled is not None:
        shutil.copyfile(bundled, folder / manifest.base)
    (folder / MANIFEST).write_text(json.dumps(manifest.plain(), indent=2) + "\n")
    (folder / "README.md").write_text(card)
    for name, program in programs.items():
        (folder / name).write_bytes(program)
    written = ["latent policy", MANIFEST, "README.md", *(["base policy"] if bundled else []), *programs]
    print(f"{folder}: {', '.join(written)}")
    if hub is not None:
        print(hub.push(folder))
    return folder


def _base_of(stage2: RunFolder) -> tuple[str, dict[str, str | int]]:
    """The base policy of a run, and what else it takes to load it."""
    settings = stage2.settings
    base = settings.get("base") or settings.get("awsc_checkpoint")
    if not isinstance(base, str):
        raise InputError(f"{stage2.path / 'config.yaml'}: expected a base policy, got none")
    options: dict[str, str | int] = {name: settings[name] for name in OPTIONS if settings.get(name) is not None}
    if settings.get("weights") not in (None, DEFAULT_WEIGHTS):
        options["weights"] = settings["weights"]
    return base, options


def _programs(base: str, options: Mapping[str, str | int], checkpoint: Path) -> dict[str, bytes]:
    """The files of ``--format torch_export``."""
    given: dict[str, Any] = dict(options)
    policy = load_base_policy(base, "cpu", **given)
    latent_policy, _ = load_steering(checkpoint, "stage2", "RUN_DIR", policy, torch.device("cpu"))
    return export_programs(policy, latent_policy)


def _table(source: Path, stage2: RunFolder) -> list[tuple[str, str, str]]:
    """Success with its interval and episodes, by policy: of a quickstart's table, else of the last evaluation."""
    path = source / "evaluation.json"
    if path.is_file():
        rows = [row for row in json.loads(path.read_text()) if isinstance(row, dict)]
        return [(str(row["policy"]), _rate(row), str(row["episodes"])) for row in rows]
    if not stage2.evaluations:
        return []
    last = stage2.evaluations[-1]
    name = f"stage2, after {int(last['env_steps']):,} env steps"
    return [(name, _rate(last), str(stage2.settings.get("eval_episodes", "")))]


def _rate(row: Mapping[str, Any]) -> str:
    value, low, high = (100 * float(row[name]) for name in RATES)
    return f"{value:.0f} [{low:.0f}, {high:.0f}]"


def model_card(
    stage2: RunFolder, manifest: Exported, table: Sequence[tuple[str, str, str]], checkpoint: str, programs: bool
) -> str:
    """Return the text of README.md: what it is, how well it does, how to load it and how it was made."""
    where = "in this folder" if manifest.base_in_folder else f"`{manifest.base}`, not in this folder"
    base = "" if manifest.base_in_folder else ', base="PATH_OR_SPEC"'
    rows = "".join(f"| {name} | {rate} | {episodes} |\n" for name, rate, episodes in table)
    results = f"| policy | success, % [95 % interval] | episodes |\n|---|---|---|\n{rows}" if rows else ""
    settings = {
        name: value
        for name, value in stage2.settings.items()
        if value is not None and name not in ("out", "resume", "base", "awsc_checkpoint", "track", "wandb_project")
    }
    without = PROGRAMS_CARD if programs else ""
    listed = "\n".join(f"    {name}: {json.dumps(value)}" for name, value in settings.items())
    return f"""---
library_name: dsrl_offpolicy
tags: [robotics, reinforcement-learning, dsrl]
---
# {manifest.env_id}, steered by DSRL

A latent policy chooses the noise of a frozen base policy ({where}). The base policy's weights are as they were.
Checkpoint `{checkpoint}` of Stage 2, {manifest.env_steps:,} env steps. Made by dsrl_offpolicy {VERSION}.

{results or "This run was not evaluated."}
## Use

    from dsrl_offpolicy import load_steered_policy

    policy = load_steered_policy("PATH_OF_THIS_FOLDER"{base})
    actions = policy(obs)     # states [B, o, S] or a mapping -> the rows to execute, [B, H, A]
{without}
## How it was made

    {shlex.join(["dsrl", "stage2", "--config", "settings.yaml", "--base", manifest.base])}

`settings.yaml`:

{listed}
"""


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog=PROG, description="Write a folder to share, which load_steered_policy loads.")
    parser.add_argument("run_dir", metavar="RUN_DIR", help="run folder of Stage 2, or of a quickstart")
    parser.add_argument("--out", required=True, help="folder to write, which must not exist yet")
    parser.add_argument("--checkpoint", choices=list(CHECKPOINTS), default="last", help="which weights")
    parser.add_argument(
        "--format", choices=["checkpoint", "torch_export"], default="checkpoint",
        help="torch_export: also programs that run in torch alone, held against the policies to 1e-5",
    )  # fmt: skip
    parser.add_argument("--with_base", action="store_true", help="copy the base policy's file into the folder")
    parser.add_argument(
        "--push_to_hub", metavar="OWNER/NAME",
        help="also upload the folder to this repository of Hugging Face's hub; a new one is private",
    )  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``dsrl export RUN_DIR --out FOLDER``; return the exit status, 2 where something given is wrong."""
    try:
        run(_parser().parse_args(argv))
    except InputError as error:
        print(f"{PROG}: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # who reads the output has enough of it, as cli.main knows
        raise
    except OSError as error:
        print(f"{PROG}: error: cannot read or write a file: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
