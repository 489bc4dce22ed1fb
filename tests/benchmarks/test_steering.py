"""benchmarks/steering.py with a ``dsrl`` that only writes files: what runs, what goes on, what the page says."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path

import pytest
import yaml

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import steering  # noqa: E402

FAKE = """
import json, os, pathlib, signal, sys
command, *rest = sys.argv[1:]
flags = dict(zip(rest[::2], rest[1::2]))
here = pathlib.Path(__file__).parent
with (here / "commands").open("a") as file:
    file.write(" ".join(sys.argv[1:]).replace(str(here), "") + " " + os.environ["OMP_NUM_THREADS"] + "\\n")
out = pathlib.Path(flags.get("--resume") or flags["--out"])
if command == "demos":
    out.write_text("")
    out.with_suffix(".json").write_text("")
    sys.exit()
if "--fails" in flags:
    print("dsrl: error: this one cannot work")
    sys.exit(2)
out.mkdir(exist_ok=True)
if "--resume" not in flags:
    (out / "config.yaml").write_text(json.dumps({"env_id": flags["--env_id"], "seed": int(flags["--seed"])}))
    (out / "run.json").write_text('{"kind": "stage2"}')
    (out / "checkpoints").mkdir()
    (out / "checkpoints" / "last.pt").write_text("a save")
    points = json.loads(flags.get("--points", "{}")).get(flags["--seed"], [])
    rows = [{"group": "eval", "env_steps": x, "minutes": x / 100, "success_once": y,
             "success_once_low": y / 2, "success_once_high": y} for x, y in points]
    (out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
    if "--waits" in flags:
        (here / "started").write_text(str(os.getpid()))
        signal.pause()
if command == "eval":
    rate = float(flags["--seed"]) / 10
    row = {"success_once": rate, "success_once_low": 0.0, "success_once_high": 1.0}
    rows = [{"policy": policy, **row} for policy in ("w = 0", "stage1 deterministic")]
    (out / "evaluation.json").write_text(json.dumps(rows))
choosing = {"choice": {"env_steps": int(flags["--chooses"])}} if "--chooses" in flags else {}
(out / "summary.json").write_text(json.dumps({"minutes": 3.0, **choosing}))
"""


def run_flags(points: dict[str, list[list[float]]]) -> str:
    return f"--env_id {{task}} --seed {{seed}} --points '{json.dumps(points, separators=(',', ':'))}'"


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a plan; ``dsrl`` is the one above."""
    fake = tmp_path / "fake.py"
    fake.write_text(FAKE)
    monkeypatch.setattr(steering, "DSRL", [sys.executable, str(fake)])

    def plan(**changes: object) -> Path:
        content = {
            "seeds": [1, 2],
            "tasks": {"a-task": None},
            "words": {"recording": "--episodes 3"},
            "shared": {
                "demos": "demos --env_id {task} --seed {seed} {recording}",
                "base": "pretrain --env_id {task} --seed {seed} --demo_path {demos}",
            },
            "variants": {"sac": "stage2 --env_id {task} --seed {seed} --awsc_checkpoint {base}"},
            **changes,
        }
        (tmp_path / "plan.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        return tmp_path / "plan.yaml"

    return plan


def commands(tmp_path: Path) -> list[str]:
    return (tmp_path / "commands").read_text().splitlines()


def run(tmp_path: Path, plan: Path, jobs: int = 1) -> int:
    return steering.main(["run", str(plan), "--out", str(tmp_path / "runs"), "--jobs", str(jobs)])


def test_shared_pieces_are_made_once_and_nothing_twice(tmp_path, write):
    both = dict.fromkeys(("one", "two"), "stage2 --env_id {task} --seed {seed} --awsc_checkpoint {base}")
    plan = write(seeds=[7], variants=both)
    assert run(tmp_path, plan) == 0
    place = "/runs/a-task/seed7"
    base = f"--awsc_checkpoint {place}/base/run/checkpoints/last.pt"
    made = [
        f"demos --env_id a-task --seed 7 --episodes 3 --out {place}/demos/demos.h5 1",
        f"pretrain --env_id a-task --seed 7 --demo_path {place}/demos/demos.h5 --out {place}/base/run "
        "--torch_threads 1 1",
        f"stage2 --env_id a-task --seed 7 {base} --out {place}/one/run --torch_threads 1 1",
        f"stage2 --env_id a-task --seed 7 {base} --out {place}/two/run --torch_threads 1 1",
    ]
    assert commands(tmp_path) == made
    assert run(tmp_path, plan, jobs=3) == 0
    assert commands(tmp_path) == made


def test_a_cell_that_fails_stops_only_what_needs_it(tmp_path, write, capsys):
    failing = "stage2 --env_id {task} --seed {seed} --fails yes"
    variants = {"bad": failing, "after": "stage2 --stage1_checkpoint {bad}", "good": "eval --env_id x --seed 1"}
    assert run(tmp_path, write(seeds=[1], variants=variants), jobs=2) == 1
    said = capsys.readouterr()
    assert "3 of 5 cells have ended" in said.out
    assert "a-task, seed 1, bad: exit status 2: dsrl: error: this one cannot work" in said.err
    assert "a-task, seed 1, after: not run, it needs bad" in said.err
    mended = {**variants, "bad": "eval --env_id x --seed 1", "after": "eval --env_id x --seed 1"}
    assert run(tmp_path, write(seeds=[1], variants=mended)) == 0


def test_another_command_than_the_one_that_made_a_cell_is_refused(tmp_path, write, capsys):
    assert run(tmp_path, write(seeds=[1])) == 0
    before = commands(tmp_path)
    assert run(tmp_path, write(seeds=[1], words={"recording": "--episodes 4"})) == 2
    assert "a-task, seed 1, demos: expected the command with which it began" in capsys.readouterr().err
    assert commands(tmp_path) == before


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_an_interrupted_run_goes_on(tmp_path, write, capfd, number):
    plan = write(seeds=[1], variants={"sac": "stage2 --env_id {task} --seed {seed} --waits yes"})
    os.mkfifo(tmp_path / "started")
    harness = multiprocessing.get_context("fork").Process(target=run, args=(tmp_path, plan))
    harness.start()
    child = int((tmp_path / "started").read_text())  # waits until the run has written its first save
    os.kill(harness.pid, number)
    harness.join(60)
    if number == signal.SIGKILL:
        assert run(tmp_path, plan) == 1  # the run itself was not killed, and is left alone
        assert "another process is at work in" in capfd.readouterr().err
        os.kill(child, signal.SIGKILL)
        with (tmp_path / "runs/a-task/seed1/sac/.lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # waits until the run has ended
    else:
        assert "steering: interrupted" in capfd.readouterr().err
    assert run(tmp_path, plan) == 0
    assert [line.split()[0] for line in commands(tmp_path)] == ["demos", "pretrain", "stage2", "stage2"]
    assert commands(tmp_path)[-1] == "stage2 --resume /runs/a-task/seed1/sac/run 1"


def test_what_ended_while_nobody_looked_is_not_run_again(tmp_path, write):
    plan = write(seeds=[1], variants={"table": "eval --env_id {task} --seed {seed}"})
    assert run(tmp_path, plan) == 0
    before = commands(tmp_path)
    record = tmp_path / "runs/a-task/seed1/table/cell.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "status": None}))  # killed before it noted
    assert run(tmp_path, plan) == 0
    assert commands(tmp_path) == before
    record.write_text(json.dumps({**json.loads(record.read_text()), "status": None}))
    (record.parent / "run" / "summary.json").unlink()
    assert run(tmp_path, plan) == 0  # an evaluation has nothing to resume from: it starts over
    assert len(commands(tmp_path)) == len(before) + 1


def test_the_page(tmp_path, write):
    sac = {"1": [[0, 0.2], [100, 0.8], [200, 1]], "2": [[0, 0.2], [100, 0.4], [200, 0.6]]}
    plan = write(
        shared={"auto": "stage1 --env_id {task} --seed {seed} --chooses 1234"},
        variants={
            "sac": f"stage2 {run_flags(sac)}",
            "long": f"stage2 {run_flags({s: [[0, 0.2], [200, 0.2], [2000, 0.6]] for s in '12'})} --from {{auto}}",
            "short": f"stage2 {run_flags({'1': [[0, 0.2]]})}",
            "bad": "stage2 --fails yes",
        },
        tables={"controls": "eval --env_id {task} --seed {seed} --stage1_checkpoint {auto}"},
    )  # fmt: skip
    assert run(tmp_path, plan) == 1
    assert steering.main(["page", str(tmp_path / "runs"), "--to", str(tmp_path / "docs")]) == 0
    text = (tmp_path / "docs" / "steering.md").read_text()
    # sac: success 1 and .6: mean .8; two runs have the resampled means .6 (1/4), .8 (1/2) and 1 (1/4), so the
    # 95 % interval is [.6, 1]. Areas over the common 0 to 200: ((.2 + .8) / 2 + (.8 + 1) / 2) / 2 = .7 and
    # ((.2 + .4) / 2 + (.4 + .6) / 2) / 2 = .4. Seed 1 reaches .8 at 100, seed 2 never.
    assert "| sac | 1 2 | 80 [60, 100] | 55 [40, 70] | 200 | 100, - | - | 3.0 |" in text
    # long: .2 all the way to 200 env steps, .6 at its own end, 2000.
    assert "| long | 1 2 | 60 [60, 60] | 20 [20, 20] | 2,000 | -, - | 1,234 | 3.0 |" in text
    # Tables: .1 and .2.
    assert "| w = 0 | 1 2 | 15 [10, 20] | | | | - | |" in text
    assert "| stage1 deterministic, controls | 1 2 | 15 [10, 20] | | | | 1,234 | |" in text
    assert "| short" not in text and "- short, seed 1: left out, expected two evaluations or more, got 1" in text
    assert "- bad, seed 1: has not ended" in text
    assert "    dsrl stage2 --fails yes --out FOLDER/a-task/seed1/bad/run --torch_threads 1" in text
    assert str(tmp_path) not in text
    assert "from 0 to 200 env steps" in text
    assert (tmp_path / "docs" / "steering-a-task.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"variant": {}}, "unknown key 'variant'; did you mean variants?"),
        ({"variants": {}}, "expected one of seeds, tasks and variants at least"),
        ({"variants": {"sac": "stage2 {bsae}"}}, "unknown placeholder {bsae} for a-task; did you mean base"),
        ({"shared": {"base": "pretrain {demos}", "demos": "demos"}}, "shared: base: unknown placeholder {demos}"),
        ({"variants": {"a b": "stage2"}}, "variants: expected a name of letters, digits and . + - _, got 'a b'"),
        ({"variants": {"base": "stage2"}}, "variants: expected every name once, got 'base' twice"),
        ({"variants": {"sac": "--seed 1"}}, "variants: sac: expected a command of dsrl, got '--seed 1'"),
        ({"variants": {"sac": "stage2 --out 'x"}}, "variants: sac: expected a command of dsrl"),
        ({"seeds": [1, 1]}, "expected every seed once"),
        ({"level": 80}, "a level in (0, 1]"),
        ({"seeds": "all"}, "seeds: expected a list, got 'all'"),
    ],
)  # fmt: skip
def test_a_bad_plan_is_one_line(tmp_path, write, capsys, changes, said):
    assert run(tmp_path, write(**changes)) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"steering: error: {tmp_path / 'plan.yaml'}: ") and error.count("\n") == 1
    assert said in error
    assert not (tmp_path / "runs").exists()


def test_nothing_to_show_is_one_line(tmp_path, write, capsys):
    write()
    assert steering.main(["page", str(tmp_path)]) == 2  # the plan stands there, and no cell
    assert "expected a variant or a table that has ended" in capsys.readouterr().err
    assert run(tmp_path, tmp_path / "none.yaml") == 2
    assert "none.yaml: expected a YAML file, it does not exist" in capsys.readouterr().err
    assert run(tmp_path, write(), jobs=0) == 2
    assert "--jobs: expected 1 or more, got 0" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["steering.yaml", "steering_tiny.yaml"])
def test_the_shipped_plans_can_be_read(name):
    plan = steering.read_plan(BENCHMARKS / name)
    cells = steering.cells_of(plan, Path("runs"))
    each = len(plan.shared) + len(plan.variants) + len(plan.tables)
    assert len(cells) == len(plan.tasks) * len(plan.seeds) * each
    assert not [cell.command for cell in cells if "{" in cell.command]
