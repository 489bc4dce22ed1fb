"""How a job becomes a command: its settings, its exit status, and its errors in one line."""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar, cast

from dsrl_offpolicy.configs.loading import override, parse_job, read_settings, take_flag
from dsrl_offpolicy.errors import InputError, is_out_of_memory
from dsrl_offpolicy.tracking.progress import STYLES, Style, use_style
from dsrl_offpolicy.train.run import Interrupted

Config = TypeVar("Config")


def command(job: type[Config], shipped_yaml: str, name: str) -> Callable[[Callable[[Config], Any]], Callable]:
    """Return :func:`parsed_command` of a job whose settings are always the same dataclass."""
    return parsed_command(lambda argv: parse_job(job, shipped_yaml, name, argv), name)


def parsed_command(
    parse: Callable[[Sequence[str]], Config], name: str
) -> Callable[[Callable[[Config], Any]], Callable]:
    """Turn a job ``run(config)`` into a ``main(argv)`` that returns an exit status.

    0 where the job ended well; 2, with one line on standard error, where something the user gave is wrong.
    """

    def decorate(run: Callable[[Config], Any]) -> Callable[[Sequence[str] | None], int]:
        @functools.wraps(run)
        def main(argv: Sequence[str] | None = None) -> int:
            logging.getLogger("gymnasium").setLevel(logging.CRITICAL)
            threading.excepthook = _tell_unless_files
            try:
                flags, style = _take_progress(sys.argv[1:] if argv is None else argv)
                use_style(style)
                config = parse(flags)
                # Whoever reads rows of JSON reads nothing else; what is for people goes where errors go.
                with contextlib.redirect_stdout(sys.stderr if style == "json" else sys.stdout):
                    run(config)
            except InputError as error:
                print(f"{name}: error: {error}", file=sys.stderr)
                return 2
            except BrokenPipeError:  # who reads the output has enough of it, as cli.main knows
                raise
            except OSError as error:  # a full disk, a folder that may not be written
                print(f"{name}: error: cannot read or write a file: {error}", file=sys.stderr)
                return 2
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                said = " ".join(str(error).split())[:200]
                print(f"{name}: error: not enough memory for these sizes: {said}", file=sys.stderr)
                return 2
            except Interrupted as stop:
                print(f"{name}: {stop}", file=sys.stderr)
                return stop.exit_status
            except KeyboardInterrupt:
                print(f"{name}: interrupted", file=sys.stderr)
                return 130
            return 0

        return main

    return decorate


def _take_progress(argv: Sequence[str]) -> tuple[list[str], Style]:
    """Take ``--progress STYLE`` out of the flags: it is no setting of the run, and goes beside ``--resume`` too.

    Raises:
        InputError: no such style.
    """
    rest, values = take_flag(argv, "--progress")
    for value in values:
        if value not in STYLES:
            found = value if value is not None else "nothing"
            raise InputError(f"--progress: expected {', '.join(STYLES[:-1])} or {STYLES[-1]}, got {found}")
    return rest, cast(Style, values[-1]) if values else "auto"


def _tell_unless_files(args: threading.ExceptHookArgs) -> None:
    """TensorBoard's thread cannot write on a full disk; the main thread hears of it and tells in one line."""
    if not issubclass(args.exc_type, OSError):
        threading.__excepthook__(args)


def config_of_run(config: Config, shipped_yaml: str | None) -> Config:
    """Return the settings of the run folder that ``config.resume`` names, or ``config`` where it names none.

    Raises:
        InputError: no such run, or other settings given beside ``resume``.
    """
    resume: Path | None = config.resume  # type: ignore[attr-defined]
    if resume is None:
        return config
    for field in fields(config):  # type: ignore[arg-type]
        if field.name != "resume" and getattr(config, field.name) != field.default:
            raise InputError(
                f"--{field.name}: expected nothing beside --resume, which takes the run's own settings"
            )
    path = resume.expanduser() / "config.yaml"
    if not path.is_file():
        raise InputError(f"resume: expected a run folder, {path} does not exist")
    settings = read_settings(path)
    if not settings:
        raise InputError(f"{path}: expected a mapping of settings, got an empty file")
    of_run = override(type(config), shipped_yaml, settings, str(path))
    return replace(of_run, resume=resume.expanduser())  # type: ignore[type-var]
