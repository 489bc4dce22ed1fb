"""``dsrl serve``: serve a base policy over openpi's websocket protocol."""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from dsrl_offpolicy.configs.serve import ServeConfig
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.registry import not_installed
from dsrl_offpolicy.train.command import command
from dsrl_offpolicy.train.start import load_base, start_torch

if TYPE_CHECKING:
    from dsrl_offpolicy.base_policies.remote_server import PolicyServer

MIB = 2**20


def run(config: ServeConfig) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises:
        InputError: a policy that cannot be loaded, an address or port that cannot be had, or libraries missing.
    """
    try:
        from dsrl_offpolicy.base_policies.remote_server import PolicyServer
    except ImportError as error:
        raise InputError(f"serve: {not_installed(error)}") from error
    device = start_torch(config)
    policy = load_base(config, device)
    server = PolicyServer(
        policy,
        device,
        max_batch=config.max_batch,
        batch_wait=config.batch_wait / 1000,
        max_message_bytes=config.max_message * MIB,
        seed=config.seed,
    )
    asyncio.run(_serve(server, config))
    print(f"serve: {server.counts}", file=sys.stderr)


async def _serve(server: PolicyServer, config: ServeConfig) -> None:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        with suppress(NotImplementedError, RuntimeError):  # Windows, and a thread that is not the main one
            loop.add_signal_handler(number, stop.set)
    name = config.base if config.base is not None else config.awsc_checkpoint
    host = f"[{config.host}]" if ":" in config.host else config.host

    def ready(port: int) -> None:
        fingerprint = server.served.fingerprint[:12]
        print(f"serve: {name} ({fingerprint}) at ws://{host}:{port} (--base remote:{host}:{port})", flush=True)

    try:
        await server.run(config.host, config.port, stop, ready)
    except OSError as error:
        said = " ".join(str(error).split())
        raise InputError(f"port: cannot listen on {host}:{config.port} ({said}); choose another --port") from error


main = command(ServeConfig, "serve.yaml", "dsrl serve")(run)

if __name__ == "__main__":
    sys.exit(main())
