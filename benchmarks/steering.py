"""Ways to steer x tasks x seeds from one YAML: run the cells that are missing, then write the results page.

    python benchmarks/steering.py run benchmarks/steering.yaml --out runs/steering [--jobs 8]
    python benchmarks/steering.py page runs/steering [--to docs/results]

The YAML's commands are those of ``dsrl``, without ``--out`` and ``--torch_threads``. ``{task}``, ``{seed}`` and
the ``words`` (a task's own come first) stand for text, and the name of a command further up for the file that it
makes: demonstrations, or the last checkpoint. ``shared`` pieces are made once for a task and seed, every entry of
``variants`` is a row of the page, and ``tables`` (``dsrl eval``) are its baselines.

A cell that has ended is not run again, and one that was interrupted goes on from its last save. A cell that fails
does not stop the others: it is reported, and the exit status is 1.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from argparse import RawDescriptionHelpFormatter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steering_page import write_page

from dsrl_offpolicy.commands.arguments import OneLineParser
from dsrl_offpolicy.configs.loading import override, read_settings
from dsrl_offpolicy.errors import InputError, did_you_mean
from dsrl_offpolicy.files.atomic import write_atomically
from dsrl_offpolicy.train import run as training

DSRL = [sys.executable, "-m", "dsrl_offpolicy.cli"]
FOLDER = "FOLDER"
"""Stands for the folder of all cells, so that a command reads the same wherever that is."""
STAGES = {s.command.removeprefix("dsrl "): s for s in vars(training).values() if isinstance(s, training.Stage)}
"""Commands whose interrupted runs go on; others begin anew."""
PLAN = "plan.yaml"
PLACEHOLDER = re.compile(r"\{([\w .+-]*)\}")


@dataclass(frozen=True)
class Plan:
    """What the YAML says; tasks bring words of their own."""

    seeds: tuple[int, ...]
    tasks: dict[str, dict[str, str] | None]
    variants: dict[str, str]
    shared: dict[str, str] = field(default_factory=dict)
    tables: dict[str, str] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)
    level: float = 0.8


@dataclass(frozen=True)
class Cell:
    """One ``dsrl`` command and its folder; ``needs`` are cells whose files it reads."""

    task: str
    seed: int
    name: str
    part: str
    command: str
    folder: Path
    needs: tuple[Cell, ...]

    def __str__(self) -> str:
        return f"{self.task}, seed {self.seed}, {self.name}"

    @property
    def out(self) -> Path:
        """The run folder, or the demonstrations."""
        return self.folder / _out(self.command)

    @property
    def record(self) -> dict[str, Any]:
        """The ``command`` that began and its exit ``status``: None while it runs or was interrupted."""
        path = self.folder / "cell.json"
        found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return found

    def note(self, status: int | None) -> None:
        """Write the record."""
        with write_atomically(self.folder / "cell.json") as temporary:
            temporary.write_text(json.dumps({"command": self.command, "status": status}) + "\n")

    @property
    def ended(self) -> bool:
        """Whether there is nothing left to do."""
        return self.record.get("status", 1) == 0


def _out(command: str) -> str:
    return "demos.h5" if command.split()[:1] == ["demos"] else "run"


def read_plan(path: Path) -> Plan:
    """Read the YAML.

    Raises:
        InputError: it cannot be read, or something in it has no meaning.
    """
    if not path.is_file():
        raise InputError(f"{path}: expected a YAML file, it does not exist")
    plan: Plan = override(Plan, None, read_settings(path), str(path))
    names = ["task", "seed"]
    for part in ("tasks", "words", "shared", "variants", "tables"):
        for name in getattr(plan, part):
            if not re.fullmatch(r"\w[\w.+-]*", name):
                raise InputError(f"{path}: {part}: expected a name of letters, digits and . + - _, got {name!r}")
            if name in names:
                raise InputError(f"{path}: {part}: expected every name once, got {name!r} twice")
            names += [name] * (part != "tasks")
    if not (plan.seeds and plan.tasks and plan.variants):
        raise InputError(f"{path}: expected one of seeds, tasks and variants at least, got none")
    if len(set(plan.seeds)) < len(plan.seeds) or not 0 < plan.level <= 1:
        raise InputError(f"{path}: expected every seed once and a level in (0, 1], got {plan.seeds}, {plan.level}")
    try:
        cells_of(plan, Path(FOLDER))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return plan


def cells_of(plan: Plan, folder: Path) -> list[Cell]:
    """Return every cell, after those that it needs; raises InputError for an unknown placeholder."""
    return [
        cell
        for task, own in plan.tasks.items()
        for seed in plan.seeds
        for cell in _cells(plan, folder, {**plan.words, **(own or {})}, task, seed)
    ]


def _cells(plan: Plan, folder: Path, words: Mapping[str, str], task: str, seed: int) -> Iterator[Cell]:
    known, above = {"task": task, "seed": str(seed)}, dict[str, Cell]()
    for part in ("shared", "variants", "tables"):
        for name, template in getattr(plan, part).items():
            where, place = f"{part}: {name}", f"{task}/seed{seed}/{name}"
            text = PLACEHOLDER.sub(lambda found: words.get(found[1], found[0]), template)
            used = list(dict.fromkeys(PLACEHOLDER.findall(text)))
            for word in used:
                if word not in known:
                    valid = [*words, *known]
                    hint = did_you_mean(word, valid) or f"; valid: {', '.join(valid)}"
                    raise InputError(f"{where}: unknown placeholder {{{word}}} for {task}{hint}")
            command = " ".join(PLACEHOLDER.sub(lambda found: known[found[1]], text).split())
            if re.match(r"-|$", command) or command.count("'") % 2 or command.count('"') % 2:
                raise InputError(f"{where}: expected a command of dsrl, got {command!r}")
            command += f" --out {FOLDER}/{place}/{_out(command)}"
            command += "" if command.startswith("demos ") else " --torch_threads 1"
            needs = tuple(above[word] for word in used if word in above)
            above[name] = cell = Cell(task, seed, name, part, command, folder / place, needs)
            known[name] = f"{FOLDER}/{place}/{cell.out.name}"
            known[name] += "" if cell.out.suffix else "/checkpoints/last.pt"
            yield cell


def check_commands(cells: Sequence[Cell]) -> None:
    """Refuse a plan whose commands are not those that made what is there; what failed may change.

    Raises:
        InputError: naming the cell and its folder.
    """
    for cell in cells:
        record = cell.record
        if record and record["command"] != cell.command and not record["status"]:
            raise InputError(
                f"{cell}: expected the command with which it began, {record['command']!r}, got {cell.command!r}; "
                f"choose another --out, or delete {cell.folder} and what was made from it"
            )


class Runner:
    """Runs cells, so many at once; ``problems`` says of every cell that did not end why.

    Args:
        folder: of all cells.
        jobs: cells at once.
    """

    def __init__(self, folder: Path, jobs: int) -> None:
        self.folder, self.jobs = folder, jobs
        self.problems: dict[Cell, str] = {}
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._stopping = False

    def run(self, cells: Sequence[Cell]) -> None:
        """Run what has not ended, in this order as far as cells do not wait for others.

        On KeyboardInterrupt the running commands are asked to save and to end, and waited for.
        """
        waiting, running = [cell for cell in cells if not cell.ended], dict[Future[str], Cell]()
        with ThreadPoolExecutor(self.jobs) as pool:
            try:
                while waiting or running:
                    for cell in list(waiting):
                        missing = [need.name for need in cell.needs if need in self.problems]
                        if missing:
                            self.problems[cell] = f"not run, it needs {missing[0]}"
                            waiting.remove(cell)
                        elif len(running) < self.jobs and all(need.ended for need in cell.needs):
                            running[pool.submit(self._run, cell)] = cell
                            waiting.remove(cell)
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        cell, problem = running.pop(future), future.result()
                        if problem:
                            self.problems[cell] = problem
            except KeyboardInterrupt:
                self._stopping = True
                for process in list(self._processes):
                    process.terminate()
                wait(running)
                raise

    def _run(self, cell: Cell) -> str:
        """Run, resume, or find that it has ended; returns what went wrong, or nothing."""
        cell.folder.mkdir(parents=True, exist_ok=True)
        with (cell.folder / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return f"another process is at work in {cell.folder}"
            try:
                resume = _make_ready(cell)
                status = 0 if resume is None else self._process(cell, resume, lock.fileno())
            except (InputError, OSError) as error:
                return str(error)
            interrupted = self._stopping and status != 0
            cell.note(None if interrupted else status)
        return "interrupted" if interrupted else _why(cell, status) if status else ""

    def _process(self, cell: Cell, resume: bool, lock: int) -> int:
        """Run the command to its end; returns its exit status. It holds the lock, should we be killed."""
        words = shlex.split(cell.command)
        if resume:
            words = [words[0], "--resume", f"{FOLDER}/{cell.out.relative_to(self.folder)}"]
        cell.note(None)
        began = time.monotonic()
        print(f"{cell}: {'goes on' if resume else 'begins'}", flush=True)
        with (cell.folder / "output.txt").open("ab") as output:
            output.write(f"$ dsrl {shlex.join(words)}\n".encode())
            output.flush()
            process = subprocess.Popen(
                [*DSRL, *(word.replace(f"{FOLDER}/", f"{self.folder}/") for word in words)],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, pass_fds=[lock],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
            self._processes.add(process)
            if self._stopping:
                process.terminate()
            status = process.wait()
            self._processes.discard(process)
        print(f"{cell}: exit status {status} after {(time.monotonic() - began) / 60:.1f} minutes", flush=True)
        return status


def _make_ready(cell: Cell) -> bool | None:
    """Whether the cell resumes; None where it has ended. What nothing can resume is deleted."""
    stage = STAGES.get(cell.command.split()[0])
    if cell.out.suffix:
        files = [cell.out, cell.out.with_suffix(".json")]
        if all(file.is_file() for file in files):
            return None
        for file in files:
            file.unlink(missing_ok=True)
        return False
    changed = cell.record.get("command", cell.command) != cell.command
    if not changed and (cell.out / "summary.json").is_file() and (stage is None or stage.has_ended(cell.out)):
        return None
    if not changed and stage is not None and stage.saves(cell.out).exist():
        return True
    if cell.out.exists():
        shutil.rmtree(cell.out)
    return False


def _why(cell: Cell, status: int) -> str:
    path = cell.folder / "output.txt"
    lines = path.read_text(errors="replace").split("\n")
    said = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f"exit status {status}: {said[:200]} ({path})"


def run(yaml: Path, folder: Path, jobs: int) -> int:
    """Run a plan's cells; returns 1 where some did not end."""
    if jobs < 1:
        raise InputError(f"--jobs: expected 1 or more, got {jobs}")
    plan = read_plan(yaml)
    cells = cells_of(plan, folder)
    check_commands(cells)
    with write_atomically(folder / PLAN) as temporary:
        shutil.copyfile(yaml, temporary)
    runner = Runner(folder, jobs)
    runner.run(cells)
    print(f"{len(cells) - len(runner.problems)} of {len(cells)} cells have ended")
    for cell, problem in runner.problems.items():
        print(f"{cell}: {problem}", file=sys.stderr)
    return 1 if runner.problems else 0


def page(folder: Path, to: Path) -> int:
    """Write the page of the cells that have ended."""
    plan = read_plan(folder / PLAN)
    print(f"wrote {write_page(to, plan, cells_of(plan, folder))}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status, 2 where something given is wrong."""
    parser = OneLineParser(prog="steering", description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=OneLineParser)
    runs = commands.add_parser("run", help="run the cells that have not ended")
    runs.add_argument("yaml", type=Path)
    runs.add_argument("--out", type=Path, required=True, help="folder of all cells")
    runs.add_argument("--jobs", type=int, default=os.cpu_count(), help="cells at once; default: as many as cores")
    pages = commands.add_parser("page", help="write the results page")
    pages.add_argument("folder", type=Path)
    pages.add_argument("--to", type=Path, default=Path("docs/results"), help="folder of the page and its plots")
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        options = parser.parse_args(argv)
        if options.command == "page":
            return page(options.folder, options.to)
        return run(options.yaml, options.out, options.jobs)
    except InputError as error:
        print(f"steering: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("steering: interrupted; the same command goes on", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
