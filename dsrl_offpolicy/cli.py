"""``dsrl``: one command per job. The scripts in ``train/`` are the same code."""

from __future__ import annotations

import importlib
import os
import sys
import threading
from collections.abc import Sequence
from typing import NoReturn

from dsrl_offpolicy.errors import LEFT_BEHIND, did_you_mean

COMMANDS = {
    "quickstart": ("dsrl_offpolicy.commands.quickstart", "run demonstrations, Stages 0, 1, 2 and the final table"),
    "demos": ("dsrl_offpolicy.commands.demos", "record scripted experts or motion plans"),
    "pretrain": ("dsrl_offpolicy.train.pretrain_stage0", "Stage 0: train a base policy and its action critic"),
    "stage1": (
        "dsrl_offpolicy.train.train_stage1_offline",
        "Stage 1: warm-start the latent policy offline",
    ),
    "stage2": ("dsrl_offpolicy.train.train_stage2_online", "Stage 2: improve the latent policy online"),
    "ppo": ("dsrl_offpolicy.train.train_ppo", "improve the latent policy on-policy (extra sb3)"),
    "eval": ("dsrl_offpolicy.commands.evaluate", "evaluate base policy, controls and latent policies"),
}
TOOLS = {
    "probe": (
        "dsrl_offpolicy.commands.probe",
        "does a base policy depend on its noise, and what is there to gain?",
    ),
    "serve": ("dsrl_offpolicy.commands.serve", "serve a base policy to runs elsewhere (extra remote)"),
    "compare": (
        "dsrl_offpolicy.commands.compare",
        "RUN_DIR...: compare Stage 2 runs over seeds, with intervals",
    ),
    "export": ("dsrl_offpolicy.commands.export", "RUN_DIR --out FOLDER: write a steered policy to share"),
    "report": (
        "dsrl_offpolicy.commands.report",
        "RUN_DIR...: one HTML file with verdict, curves, health and settings (extra report)",
    ),
    "completion": ("dsrl_offpolicy.commands.completion", "SHELL: a script that completes all this in bash or zsh"),
    "checkpoint": ("dsrl_offpolicy.commands.checkpoint", "inspect FILE: show what a checkpoint holds"),
    "doctor": (
        "dsrl_offpolicy.commands.doctor",
        "RUN_DIR: check a run's health; env: check that an environment works here",
    ),
}
"""Commands that are no job: they leave no run folder."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status. Where nobody reads its output any more, it ends without a word."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        try:
            return _command(arguments)
        finally:
            sys.stdout.flush()  # here, where a closed pipe can still be told from other errors
    except BrokenPipeError:  # who reads our output, such as head, has enough of it
        _drop_output()
        return 141  # as a shell reports a process that SIGPIPE ended


def _command(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from dsrl_offpolicy import __version__

        print(__version__)
        return 0
    name, *rest = arguments
    commands = {**COMMANDS, **TOOLS}
    if name not in commands:
        hint = did_you_mean(name, commands) or f"; valid: {', '.join(commands)}"
        print(f"dsrl: error: unknown command {name!r}{hint}", file=sys.stderr)
        return 2
    module = importlib.import_module(commands[name][0])
    all_of_them = (COMMANDS, TOOLS) if name == "completion" else ()
    status: int = module.main(rest, *all_of_them)
    return status


def _drop_output() -> None:
    """Let nothing that is still to be written, at the interpreter's end too, meet the closed pipe."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _usage() -> str:
    lines = ["usage: dsrl COMMAND [--config FILE.yaml] [--flags]   (dsrl COMMAND --help lists its flags)", ""]
    lines += [f"  {name:<11} {what}" for name, (_, what) in {**COMMANDS, **TOOLS}.items()]
    return "\n".join(lines)


def run() -> NoReturn:
    """Run a command and end the process, without waiting for work that an interrupted run left behind."""
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    if any(thread.name == LEFT_BEHIND for thread in threading.enumerate()):
        os._exit(status)  # the interpreter would wait for torch's compiler, up to minutes
    sys.exit(status)


if __name__ == "__main__":
    run()
