"""Prove that a change of the code changes no number: record tiny seeded runs before and after, and compare.

    python scripts/same_numbers.py record OUT_DIR [metaworld maniskill quickstart]    # the package on PYTHONPATH
    python scripts/same_numbers.py compare REFERENCE_DIR OUT_DIR                      # status 1 where one differs

Only the command line is used, so any version of the package can be recorded. Compared, bit for bit:
demonstrations, metrics, evaluations, summaries, replay buffers, and the last and best checkpoints. Minutes and
rates are left out. ``group/name`` is the same name as ``name``, and a tensor may move to another path that ends
in the same word. What only OUT_DIR has is a note. Record both on one machine, with one build of torch.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

LEFT_OUT = {"minutes", "env_steps_per_s", "gradient_steps_per_s", "group", "kind", "format_version"}
"""Last words of names that are left out: wall-clock, and labels of rows and files."""
NETS = "--actor_hidden_dims 16 --critic_hidden_dims 16"
BASE = (
    "--velocity_widths 16 --embed_dim 8 --critic_hidden_dims 16 --denoising_steps 2 --device cpu --torch_threads 1"
)
LATENT = f"{NETS} --awsc_checkpoint {{stage0}} --device cpu --torch_threads 1"
LEVER = "--env_id lever-pull-v3 --num_envs 2 --max_episode_steps 36"
STAGE1 = f"""stage1 {LEVER} {LATENT} --demo_path {{demos}} --total_iters 60 --batch_size 16 --log_freq 5
    --num_candidates 8 --verify_states 16 --verify_samples 4"""
STAGE2 = f"""stage2 {LEVER} {LATENT} --total_timesteps 800 --warmup_steps 192 --utd_ratio 2 --batch_size 8
    --log_freq 10 --eval_freq 400 --eval_episodes 2 --save_freq 200 --train_episode_steps 40 --anneal_from 0.5"""
DSRL = [sys.executable, "-m", "dsrl_offpolicy.cli"]
PROBE = [sys.executable, "-c", "import mani_skill, sapien; sapien.render.get_device_summary()"]
LIFT = "--env_id LiftPegUpright-v1 --num_envs 1 --max_episode_steps 16"
# A name that ends in "-resumed" gets a SIGTERM after its first rows and goes on.
GROUPS = {
    "metaworld": {
        "demos": "demos --env_id lever-pull-v3 --episodes 6 --demo_steps 90",
        "stage0": f"pretrain {LEVER} {BASE} --demo_path {{demos}} --total_iters 60 --batch_size 16 --log_freq 10",
        "stage1-fresh": f"{STAGE1} --candidate_pool 0 --eval_freq 0",
        "stage1-pool": f"{STAGE1} --candidate_pool 16 --distill_q --eval_freq 30 --eval_episodes 2",
        "stage1-resumed": f"{STAGE1} --candidate_pool 16 --distill_q --eval_freq 0 --total_iters 600",
        "stage2-entropy": f"{STAGE2} --compile off --reward_mode dense --reward_scale 0.1",
        "stage2-kl": f"""{STAGE2} --compile off --regularizer kl --stage1_checkpoint {{stage1-pool}} --init_critic
            --warmup_policy stage1 --critic_burnin_steps 20 --actor_update_every 2""",
        "stage2-resumed": f"{STAGE2} --compile off --actor_update_every 2 --total_timesteps 1600",
        "stage2-compiled": f"{STAGE2} --compile on --total_timesteps 400",
        "eval": f"""eval {LEVER} --awsc_checkpoint {{stage0}} --stage1_checkpoint {{stage1-pool}} --episodes 4
            --stage2_checkpoint {{stage2-kl}} --constants 2 --screening_episodes 2 --device cpu""",
    },
    "maniskill": {
        "demos": "demos --env_id LiftPegUpright-v1 --demonstrator scripted --episodes 3 --demo_steps 12",
        "stage0": f"pretrain {LIFT} {BASE} --demo_path {{demos}} --total_iters 20 --batch_size 8 --log_freq 5",
        "stage1": f"""stage1 {LIFT} {LATENT} --demo_path {{demos}} --total_iters 10 --batch_size 4 --log_freq 2
            --num_candidates 4 --verify_states 4 --verify_samples 2 --eval_freq 5 --eval_episodes 1""",
        "stage2": f"""stage2 {LIFT} {LATENT} --stage1_checkpoint {{stage1}} --total_timesteps 80 --warmup_steps 16
            --utd_ratio 2 --batch_size 4 --log_freq 2 --eval_freq 40 --eval_episodes 1 --compile off""",
    },
    "quickstart": {"run": "quickstart --budget 0.02 --device cpu --torch_threads 1"},
}  # fmt: skip


def dsrl(argv: list[str], stop_after_rows_in: Path | None = None) -> None:
    """Run ``dsrl ARGV`` to its end, or stop it by SIGTERM once that file has three rows."""
    with subprocess.Popen(
        [*DSRL, *argv],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        while stop_after_rows_in is not None and process.poll() is None:
            if stop_after_rows_in.exists() and stop_after_rows_in.read_text().count("\n") >= 3:
                os.killpg(process.pid, signal.SIGTERM)
                break
            time.sleep(0.01)
        said = process.communicate()[1]
    if process.returncode != (143 if stop_after_rows_in else 0):
        sys.exit(f"dsrl {shlex.join(argv)}: status {process.returncode}\n{said}")


def record(out: Path, groups: list[str]) -> None:
    for group in groups:
        if group == "maniskill" and subprocess.run(PROBE, capture_output=True).returncode:
            print("maniskill: left out, it or a Vulkan device is missing here")
            continue
        written: dict[str, Path] = {}  # what later commands of the group read
        for name, command in GROUPS[group].items():
            start, folder = time.monotonic(), out / group / (name + ".h5" if name == "demos" else name)
            argv = [*shlex.split(command.format_map(written)), "--out", str(folder)]
            dsrl(argv, folder / "metrics.jsonl" if name.endswith("-resumed") else None)
            if name.endswith("-resumed"):
                dsrl([argv[0], "--resume", str(folder)])
            written[name] = folder if name == "demos" else next((folder / "checkpoints").glob("last.*"), folder)
            print(f"{group}/{name}: {time.monotonic() - start:.0f} s", flush=True)


def flat(value: Any, path: str) -> dict[str, Any]:
    """Every leaf of nested mappings and lists, by its path."""
    if isinstance(value, dict | list | tuple):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        return {name: leaf for key, inner in pairs for name, leaf in flat(inner, f"{path}/{key}").items()}
    return {} if path.rpartition("/")[2] in LEFT_OUT or "/replay/files/" in path else {path: value}


def load(file: Path) -> Any:
    """What a file of tensors or JSON holds."""
    if file.suffix == ".json":
        return json.loads(file.read_text())
    if zipfile.is_zipfile(file):  # torch's own archive
        return torch.load(file, weights_only=True)
    from dsrl_offpolicy.files.tensor_file import read_tensor_file

    return read_tensor_file(file, "cpu")


def contents(run: Path) -> dict[str, Any]:
    """Every number, text and tensor of a run folder or a file of demonstrations that is compared, by its path."""
    found: dict[str, Any] = {}
    if run.suffix == ".h5" and run.exists():
        with h5py.File(run) as h5:
            h5.visititems(lambda name, node: found.update({name: node[()]}) if hasattr(node, "shape") else None)
        arrays = {name: v for name, v in found.items() if isinstance(v, np.ndarray)}
        return {name: torch.from_numpy(v) for name, v in arrays.items() if v.dtype.kind in "biuf"}
    metrics = run / "metrics.jsonl"
    rows = metrics.read_text().splitlines() if metrics.exists() else []
    found["metrics/rows"] = len(rows)
    for i, row in enumerate(rows):
        found |= flat(json.loads(row), f"row {i}")
    folder = run / "checkpoints"
    for file in (run / "evaluation.json", run / "summary.json", *sorted(folder.rglob("*"))):
        inside = str(file.relative_to(folder if folder in file.parents else run).with_suffix(""))
        if inside.startswith(("evaluation", "summary", "last", "best")) and file.is_file():
            found |= flat(load(file), inside)
    parts = [load(file) for file in sorted((run / "replay").glob("*.*"))]
    for name in parts[0] if parts else ():  # however many files hold it
        if isinstance(parts[0][name], torch.Tensor):
            found[f"replay/{name}"] = torch.cat([part[name] for part in parts])
    return found


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        alike = a.dtype == b.dtype and a.shape == b.shape
        return alike and a.contiguous().numpy().tobytes() == b.contiguous().numpy().tobytes()
    return not isinstance(a, torch.Tensor) and not isinstance(b, torch.Tensor) and (a == b or repr(a) == repr(b))


def last_word(path: str) -> str:
    return [word for word in re.split(r"[/.]", path) if not word.isdigit()][-1]


def differences(a: dict[str, Any], b: dict[str, Any]) -> Iterator[tuple[bool, str]]:
    """What is not the same, and whether it counts: tensors, changed numbers, missing rows and evaluations do."""
    met = set()
    for path, leaf in a.items():
        tensor, (head, _, tail) = isinstance(leaf, torch.Tensor), path.partition("/")
        near = [] if path in b else [name for name in b if name.startswith(f"{head}/")]
        if tensor:
            moved = (name for name in near if last_word(name) == last_word(path) and same(leaf, b[name]))
        else:
            moved = (name for name in near if name.endswith(f"/{tail}"))
        other = path if path in b else next(moved, None)
        met.add(other)
        if other is None:
            yield tensor or head.startswith(("row ", "evaluation")), f"{path} is missing"
        elif not same(leaf, b[other]):
            yield not isinstance(leaf, str), f"{path}: {'another tensor' if tensor else f'{leaf}, now {b[other]}'}"
    yield from ((False, f"{path} is new") for path in b if path not in met)


def compare(a: Path, b: Path) -> int:
    files = [file for pattern in ("*.h5", "metrics.jsonl", "evaluation.json") for file in a.rglob(pattern)]
    names = sorted({(f if f.suffix == ".h5" else f.parent).relative_to(a) for f in files})
    failed = 0
    for name in names:
        if not (b / name.parts[0]).exists():
            print(f"{name}: not recorded in {b}")
            continue
        held = contents(a / name)
        found = list(differences(held, contents(b / name)))
        wrong, notes = ([what for counts, what in found if counts is wanted] for wanted in (True, False))
        if wrong:
            print(f"{name}: {wrong[0]}" + (f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""))
        else:
            tensors = sum(isinstance(leaf, torch.Tensor) for leaf in held.values())
            print(f"{name}: identical ({held.get('metrics/rows', 0)} rows, {tensors} tensors)")
        for note in notes[:3] + ([f"and {len(notes) - 3} more"] if len(notes) > 3 else []):
            print(f"    note: {note}")
        failed += bool(wrong)
    print(f"{failed} of {len(names)} differ")
    return 1 if failed or not names else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    recording, comparing = verbs.add_parser("record"), verbs.add_parser("compare")
    recording.add_argument("out", type=Path)
    recording.add_argument("groups", nargs="*", help=f"of {', '.join(GROUPS)}; default: all")
    comparing.add_argument("reference", type=Path)
    comparing.add_argument("out", type=Path)
    given = parser.parse_args()
    if given.verb == "compare":
        return compare(given.reference, given.out)
    if unknown := set(given.groups) - set(GROUPS):
        parser.error(f"groups: expected some of {', '.join(GROUPS)}, got {', '.join(sorted(unknown))}")
    record(given.out, given.groups or list(GROUPS))
    return 0


if __name__ == "__main__":
    sys.exit(main())
