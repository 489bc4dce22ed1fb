"""Ray itself: imported when it is named, started here or joined elsewhere, and left as it was."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import socket
from collections.abc import Iterator
from typing import Any

from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.registry import not_installed

ANSWERING = 5.0
"""Seconds in which a cluster's address must take a connection."""
OBJECT_STORE = 256 * 2**20
"""Bytes of the object store of a Ray that runs for one job: latent policies, and observations on their way."""


@contextlib.contextmanager
def ray_cluster(address: str | None, num_cpus: int) -> Iterator[Any]:
    """Inside, Ray is there: a cluster's, one that this process has joined already, or one that ends with this.

    Args:
        address: HOST:PORT of a cluster; None for this machine.
        num_cpus: that a Ray of this machine counts as its own; actors take one each.

    Yields:
        The library.

    Raises:
        InputError: the library is missing, or nobody answers at the address, or another version of Ray.
    """
    ray = check_ray(address)
    if ray.is_initialized():
        yield ray
        return
    where: dict[str, Any] = {"address": address}
    if address is None:
        # Ray would give its workers the lowest priority: beside other work, a tenth of what the same job gets
        # without Ray.
        os.environ.setdefault("RAY_worker_niceness", "0")
        where = {"num_cpus": num_cpus, "include_dashboard": False, "object_store_memory": OBJECT_STORE}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    heard = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ray.init(**where, log_to_driver=False, logging_level="ERROR")
    except Exception as error:  # Ray has no one exception for it
        said = " ".join(str(error).split())[:300]
        raise InputError(f"ray_address: {address or 'this machine'}: {said}") from error
    finally:
        for number, handler in heard.items():  # a run hears them itself, and saves
            signal.signal(number, handler)
    try:
        yield ray
    finally:
        ray.shutdown()


def check_ray(address: str | None) -> Any:
    """Return the library, once somebody answers at the address of a cluster.

    Raises:
        InputError: it is missing, or nobody does.
    """
    try:
        ray = importlib.import_module("ray")
    except ImportError as error:
        raise InputError(f"backend: {not_installed(error)}") from error
    if address is not None:
        _check_answers(address)
    return ray


def _check_answers(address: str) -> None:
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isdigit() and int(port) < 2**16):
        raise InputError(f"ray_address: expected HOST:PORT, such as 10.0.0.1:6379, got {address}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWERING).close()
    except OSError as error:
        raise InputError(
            f"ray_address: {address} does not answer ({error.strerror or error}); start a cluster there "
            f"(ray start --head --port={port}), or leave the address out"
        ) from error
