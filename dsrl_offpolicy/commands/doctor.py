"""``dsrl doctor RUN_DIR``: whether a run is healthy. ``dsrl doctor env --env_id ID``: whether an environment works
on this machine, its spaces and its speed."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dsrl_offpolicy.analysis.run_folder import RunFolder, read_runs
from dsrl_offpolicy.analysis.run_health import check_run
from dsrl_offpolicy.analysis.verdict import Verdict
from dsrl_offpolicy.commands.doctor_env import examine_environment
from dsrl_offpolicy.configs.jobs import DoctorEnvConfig
from dsrl_offpolicy.envs.family import find_family
from dsrl_offpolicy.envs.spec import EnvSpec
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.train.command import command


def run(config: DoctorEnvConfig) -> dict[str, Any]:
    """Examine the environment and print what was found. Returns it."""
    spec = EnvSpec(
        config.env_id,
        reward_mode=find_family(config.env_id, config.env_family).common_reward_mode,
        control_mode=config.control_mode,
        sim_backend=config.sim_backend,
        render_backend=config.render_backend,
        env_family=config.env_family,
    )
    report = examine_environment(spec, config.seconds)
    if config.json:
        print(json.dumps(report, indent=2))
    else:
        _print(report)
    return report


def _print(report: dict[str, Any]) -> None:
    table = Table(show_header=False)
    for name, value in report.items():
        if isinstance(value, dict):
            table.add_section()
            for part, content in value.items():
                table.add_row(f"{name}: {part}", _text(content))
        else:
            table.add_row(name, _text(value))
    Console().print(table)
    print("env_steps_per_s: one environment, random chunks of 8; images are drawn once per chunk")


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


examine = command(DoctorEnvConfig, "doctor_env.yaml", "dsrl doctor env")(run)


USAGE = """usage: dsrl doctor RUN_DIR [--json]
       dsrl doctor env --env_id ID [--control_mode MODE] [--flags]

RUN_DIR is the run folder of Stage 0, 1 or 2, at its end or not, or of a quickstart.
Exit status: 0 where no check fails, 1 where one does, 2 where the folder cannot be read."""
SHOWN = {True: "pass", False: "FAIL", None: "-"}


def check(path: Path, *, as_json: bool) -> int:
    """Print the verdicts on a run folder. Returns the exit status.

    Raises:
        InputError: no run folder, or one that cannot be read.
    """
    checked = [(run, check_run(run.config, run.rows, run.summary)) for run in read_runs(path)]
    failed = sum(verdict.ok is False for _, verdicts in checked for verdict in verdicts)
    if as_json:
        runs = [
            {"path": str(run.path), "stage": run.kind, "verdicts": [asdict(verdict) for verdict in verdicts]}
            for run, verdicts in checked
        ]
        print(json.dumps({"healthy": failed == 0, "runs": runs}, indent=2))
    else:
        for run, verdicts in checked:
            _print_verdicts(run, verdicts)
        print(f"{failed} check(s) fail" if failed else "no check fails")
    return 1 if failed else 0


def _print_verdicts(run: RunFolder, verdicts: Sequence[Verdict]) -> None:
    state = "at its end" if run.finished else "not at its end"
    table = Table(title=f"{run.kind}, {state}: {run.path}", title_justify="left", show_lines=True)
    failing = any(verdict.ok is False for verdict in verdicts)
    for column in ("check", "", "found", "expected", *(["remedy"] if failing else [])):
        table.add_column(column)
    for verdict in verdicts:
        cells = [verdict.name, SHOWN[verdict.ok], verdict.found, verdict.expected]
        table.add_row(*cells, *([verdict.remedy] if failing else []), style="red" if verdict.ok is False else None)
    Console(width=None if sys.stdout.isatty() else 110, markup=False, highlight=False).print(table)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``dsrl doctor RUN_DIR [--json]`` or ``dsrl doctor env [--flags]``; return the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if arguments else 2
    if arguments[0] == "env":
        return examine(arguments[1:])
    try:
        folders = [argument for argument in arguments if argument != "--json"]
        unknown = [argument for argument in folders if argument.startswith("-")]
        if unknown:
            raise InputError(f"unknown flag {unknown[0]}; valid: --json")
        if len(folders) != 1:
            raise InputError(f"RUN_DIR: expected one run folder (or 'env'), got {' '.join(folders) or 'none'}")
        return check(Path(folders[0]).expanduser(), as_json="--json" in arguments)
    except InputError as error:
        print(f"dsrl doctor: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
