"""``dsrl doctor env --env_id ID``: whether an environment works on this machine, its spaces and its speed."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from dsrl_offpolicy.configs.jobs import DoctorEnvConfig
from dsrl_offpolicy.diagnostics.environment import examine_environment
from dsrl_offpolicy.envs.simulators import simulator_of
from dsrl_offpolicy.envs.spec import EnvSpec
from dsrl_offpolicy.train.wiring import command


def run(config: DoctorEnvConfig) -> dict[str, Any]:
    """Examine the environment and print what was found. Returns it."""
    spec = EnvSpec(
        config.env_id,
        reward_mode="sparse" if simulator_of(config.env_id) == "maniskill" else "dense",
        control_mode=config.control_mode,
        sim_backend=config.sim_backend,
        render_backend=config.render_backend,
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


def main(argv: Sequence[str] | None = None) -> int:
    """``dsrl doctor env [--flags]``; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: dsrl doctor env --env_id ID [--control_mode MODE] [--flags]")
        return 0 if arguments else 2
    if arguments[0] != "env":
        print(f"dsrl doctor: error: expected 'env', got {arguments[0]!r}", file=sys.stderr)
        return 2
    return examine(arguments[1:])


if __name__ == "__main__":
    sys.exit(main())
