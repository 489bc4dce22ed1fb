"""``dsrl`` in processes of their own that start warm: forked off one that has imported everything, and is idle.

A job is as real as one from a shell: it has its own session, environment variables, working directory and standard
error, starts its environment workers itself, hears signals, and ends as the interpreter ends. Only the seconds of
its imports are spent once, by ``python tests/warm_start.py FD``, the server, which reads orders from a socket.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

# What a run of Stage 2 ends up with.
IMPORTS = (
    "dsrl_offpolicy.train.train_stage2_online",
    "dsrl_offpolicy.commands.evaluate",
    "dsrl_offpolicy.commands.serve",
    "dsrl_offpolicy.analysis.curves",
    "dsrl_offpolicy.base_policies.shortcut_flow",
    "dsrl_offpolicy.tracking.sinks.tensorboard",
    "dsrl_offpolicy.envs.families.gymnasium",
    "dsrl_offpolicy.envs.families.maniskill",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "metaworld",
    "scipy.special",
    "torch._dynamo",
)


class Job:
    """A running job, with what tests use of a ``Popen``."""

    def __init__(self, channel: socket.socket, stderr: IO[str], stdout: IO[str] | None) -> None:
        self._channel, self._reports, self._stderr, self.stdout = channel, channel.makefile("r"), stderr, stdout
        self.pid = int(self._reports.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit status, or minus the signal that ended it; None while it runs."""
        return self._status(0)

    def communicate(self, timeout: float) -> tuple[None, str]:
        """Wait for the end; return what was said on standard error."""
        if self._status(timeout) is None:
            os.killpg(self.pid, signal.SIGKILL)
            raise subprocess.TimeoutExpired(f"job {self.pid}", timeout)
        self._stderr.seek(0)
        return None, self._stderr.read()

    def send_signal(self, number: int) -> None:
        """Send a signal to the job, and not to its workers."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def _status(self, timeout: float) -> int | None:
        if self.returncode is None and select.select([self._channel], [], [], timeout)[0]:
            self.returncode = int(self._reports.readline())
        return self.returncode


def start(
    function: str,
    argv: Sequence[object],
    *,
    cwd: Path | None = None,
    path: Sequence[str] = (),
    stdout: bool = False,
) -> Job:
    """Run ``function`` (``module:name``, which takes ``sys.argv``) in a process that leads a session of its own.

    Args:
        function: as ``dsrl_offpolicy.cli:run``, the installed command: it finds no modules in ``cwd`` by itself.
        argv: what the command is given.
        cwd: its working directory.
        path: folders of modules.
        stdout: read what it prints; otherwise that is lost.
    """
    mine, theirs = socket.socketpair()
    stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115 (the job writes it, and we read it at the end)
    printed, printing = os.pipe() if stdout else (None, os.open(os.devnull, os.O_WRONLY))
    order = {
        "function": function,
        "argv": [function, *map(str, argv)],
        "cwd": str(cwd or os.getcwd()),
        "path": list(path),
        "env": {**os.environ},
    }
    with theirs:
        descriptors = [theirs.fileno(), printing, stderr.fileno()]
        socket.send_fds(_server(), [json.dumps(order).encode() + b"\n"], descriptors)
    os.close(printing)
    return Job(mine, stderr, None if printed is None else os.fdopen(printed))


@functools.cache
def _server() -> socket.socket:
    """The server of this process, started when it is first needed; it ends when this process does."""
    mine, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()], start_new_session=True
        )
    atexit.register(process.wait)
    atexit.register(mine.close)
    return mine


def serve(orders: socket.socket) -> tuple[str, list[str]]:
    """Fork a process off for each order. Returns its function and its arguments in the job alone."""
    supervisors: set[int] = set()
    while True:
        data, descriptors, _, _ = socket.recv_fds(orders, 1 << 20, 3)
        if not data:
            sys.exit()
        while not data.endswith(b"\n"):
            data += orders.recv(1 << 20)
        order = json.loads(data)
        supervisors -= {pid for pid in supervisors if os.waitpid(pid, os.WNOHANG)[0]}  # no zombies
        supervisors.add(pid := os.fork())
        if pid == 0:
            orders.close()
            _supervise(order, *descriptors)
            return order["function"], order["argv"]
        for descriptor in descriptors:
            os.close(descriptor)


def _supervise(order: dict, channel: int, stdout: int, stderr: int) -> None:
    """Fork the job, in which this returns, and report its status when it has ended."""
    job = os.fork()
    if job:
        os.close(stdout)
        _, status = os.waitpid(job, 0)
        os.write(channel, f"{os.waitstatus_to_exitcode(status)}\n".encode())
        os._exit(0)
    os.setsid()
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])
    sys.path[:1] = [*order["path"], *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    for given, stream in ((stdout, sys.stdout), (stderr, sys.stderr)):
        os.dup2(given, stream.fileno())
        os.close(given)
    os.write(channel, f"{os.getpid()}\n".encode())
    os.close(channel)


if __name__ == "__main__":  # environment workers import this module
    for name in IMPORTS:
        importlib.import_module(name)
    module, sys.argv = serve(socket.socket(fileno=int(sys.argv[1])))
    module, _, name = module.partition(":")
    sys.exit(getattr(importlib.import_module(module), name)())
