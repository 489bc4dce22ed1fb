"""Latency and throughput of a served base policy on loopback, beside the same policy in this process.

    python benchmarks/remote.py --base runs/.../stage0/checkpoints/last.pt [--calls 300] [--clients 1 2 4]

Starts `dsrl serve` itself, one thread of torch for every process. Latencies are of one `decode` (of one `encode`
where a row says so); a client's throughput is in observations decoded per second. Local and remote alternate.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

BATCHES = (1, 4, 16, 64)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--base", required=True)
    parser.add_argument("--calls", type=int, default=300)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--batch_wait", default="2")
    parser.add_argument("--client_of")  # one client of a server: prints how long its calls took
    given = parser.parse_args()
    if given.client_of:
        return be_client(given.client_of, given.calls)
    import torch

    from dsrl_offpolicy import load_base_policy

    torch.set_num_threads(1)
    local = load_base_policy(given.base)
    print(f"load average at the start: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    process, spec = start_server(given.base, given.batch_wait)
    try:
        remote = load_base_policy(spec)
        print(f"{'batch':>5} {'call':>8} {'local ms':>9} {'remote ms':>10} {'p95':>7} {'added ms':>9}")
        for batch in BATCHES:
            for name in ("encode", "decode"):
                here, there = alternate(call_of(local, name, batch), call_of(remote, name, batch), given.calls)
                low, high = statistics.median(here), statistics.median(there)
                p95 = statistics.quantiles(there, n=20)[-1]
                print(f"{batch:>5} {name:>8} {low:9.2f} {high:10.2f} {p95:7.2f} {high - low:9.2f}", flush=True)
        del remote
    finally:
        end_server(process)
    print(f"{'clients':>7} {'observations/s':>15} {'median ms':>10} {'p95':>7}   server")
    for clients in given.clients:
        process, spec = start_server(given.base, given.batch_wait)
        try:
            rate, times = many_clients(spec, clients, given.calls)
        finally:
            said = end_server(process)
        p95 = statistics.quantiles(times, n=20)[-1]
        print(f"{clients:>7} {rate:15.0f} {statistics.median(times):10.2f} {p95:7.2f}   {said}", flush=True)
    return 0


def call_of(policy: Any, name: str, batch: int) -> Callable[[], Any]:
    """One call of ``encode`` or ``decode``."""
    import torch

    obs = policy.example_observation(batch)
    if name == "encode":
        return lambda: policy.encode(obs)
    encoding, latent = policy.encode(obs), torch.randn(batch, *policy.info.latent_shape)
    return lambda: policy.decode(encoding, latent)


def alternate(one: Callable[[], Any], other: Callable[[], Any], calls: int) -> tuple[list[float], list[float]]:
    """Milliseconds of calls that take turns."""
    import torch

    found: tuple[list[float], list[float]] = ([], [])
    with torch.no_grad():
        for _ in range(calls):
            for call, times in zip((one, other), found, strict=True):
                start = time.perf_counter()
                call()
                times.append(1000 * (time.perf_counter() - start))
    return found


def start_server(base: str, batch_wait: str) -> tuple[subprocess.Popen[str], str]:
    """Start `dsrl serve`; the process and what `--base` takes."""
    argv = ["serve", "--base", base, "--port", "0", "--device", "cpu", "--batch_wait", batch_wait]
    process = subprocess.Popen(
        [sys.executable, "-m", "dsrl_offpolicy.cli", *argv],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    found = re.search(r"--base (remote:\S+)\)", process.stdout.readline())
    if found is None:
        raise SystemExit(f"no server: {process.communicate()[1]}")
    return process, found[1]


def end_server(process: subprocess.Popen[str]) -> str:
    """End it; its own numbers."""
    process.terminate()
    return process.communicate()[1].strip().removeprefix("serve: ")


def be_client(spec: str, calls: int) -> int:
    """Decode one observation again and again once told to; print the milliseconds."""
    import torch

    from dsrl_offpolicy import load_base_policy

    torch.set_num_threads(1)
    call = call_of(load_base_policy(spec), "decode", 1)
    print("ready", flush=True)
    sys.stdin.readline()
    times, _ = alternate(call, lambda: None, calls)
    print(*(f"{t:.4f}" for t in times), flush=True)
    return 0


def many_clients(spec: str, clients: int, calls: int) -> tuple[float, list[float]]:
    """Observations per second of all clients together, and milliseconds of their calls."""
    argv = [sys.executable, __file__, "--base", "", "--client_of", spec, "--calls", str(calls)]
    processes = [
        subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(clients)
    ]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    start = time.perf_counter()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    times: list[float] = []
    for process in processes:
        assert process.stdout is not None
        times += map(float, process.stdout.readline().split())
    rate = clients * calls / (time.perf_counter() - start)
    for process in processes:
        process.wait()
    return rate, times


if __name__ == "__main__":
    sys.exit(main())
