"""``--precision``: what this machine can do, and what ``auto`` takes of it."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import nn

from dsrl_offpolicy.configs.shared import Precision, PrecisionConfig
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.models.precision import Product, hidden_products, use_precision

Config = TypeVar("Config", bound=PrecisionConfig)

GAIN = 1.1
"""``auto`` leaves fp32 for what does the learner's products this many times as fast."""
TURNS, SECONDS = 7, 0.5
"""Turns of every precision in the timing of ``auto``, and how long all of them may take."""


def start_precision(config: Config, learner: nn.Module, batch_size: int, device: torch.device) -> Config:
    """Let the learner do its products as ``config.precision`` says, and tell what that is where it is not plain.

    Args:
        config: settings of the job.
        learner: whose networks are meant, on any device; frozen ones are not among its modules.
        batch_size: rows of its products.
        device: where it will compute.

    Returns:
        The settings, with what ``auto`` took: a run that resumes goes on with it, wherever it does.

    Raises:
        InputError: tf32 on a device that has none.
    """
    precision, note = settled(config.precision, hidden_products(learner), batch_size, device)
    if note:
        print(f"precision: {note}", file=sys.stderr)
    if precision == "tf32":
        torch.set_float32_matmul_precision("high")
    use_precision(learner, precision)
    return replace(config, precision=precision)


def settled(
    wanted: Precision, products: Sequence[Product], batch_size: int, device: torch.device
) -> tuple[Precision, str]:
    """Return the precision to use, never auto, and what to tell the user; empty for nothing.

    Raises:
        InputError: as :func:`start_precision`.
    """
    there = supported(device)
    where = "this processor" if device.type == "cpu" else f"this {device.type} device"
    if wanted == "tf32" and "tf32" not in there:
        raise InputError(f"precision: expected auto, fp32 or bf16 ({where} has no tf32), got tf32")
    if wanted == "bf16" and "bf16" not in there:
        return wanted, f"bf16 will be slow, {where} has no bf16 instructions"
    if wanted != "auto":
        return wanted, ""
    if there == ["fp32"]:
        return "fp32", f"auto takes fp32, {where} has no bf16 instructions"
    seconds = product_seconds(there, products, batch_size, device)
    best = min(there, key=lambda name: seconds[name])
    taken = best if seconds[best] * GAIN <= seconds["fp32"] else "fp32"
    told = ", ".join(f"{name} {1e3 * seconds[name]:.2f} ms" for name in there)
    return taken, f"auto takes {taken} (the products of one pass: {told})"


def supported(device: torch.device) -> list[Precision]:
    """Return what the device has instructions for."""
    found: list[Precision] = ["fp32"]
    if device.type == "cpu":
        has = torch.cpu.get_capabilities()
        if any(has.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")):
            found.append("bf16")
    elif device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            found.append("bf16")
        if torch.cuda.is_tf32_supported():
            found.append("tf32")
    return found


def product_seconds(
    precisions: Sequence[Precision], products: Sequence[Product], batch_size: int, device: torch.device
) -> dict[Precision, float]:
    """Return how long the products take in each precision, casts included: medians of interleaved turns."""
    operands = [
        (
            torch.ones(p.heads, batch_size, p.inputs, device=device),
            torch.ones(p.heads, p.inputs, p.outputs, device=device),
        )
        for p in products
    ]

    def fp32() -> None:
        for left, right in operands:
            torch.bmm(left, right)

    def bf16() -> None:
        for left, right in operands:
            torch.bmm(left.bfloat16(), right.bfloat16()).float()

    def turn(precision: Precision) -> float:
        work: Callable[[], None] = bf16 if precision == "bf16" else fp32
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        try:
            start = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            return time.perf_counter() - start
        finally:
            torch.set_float32_matmul_precision(before)

    for precision in precisions:  # what is loaded or allocated once
        turn(precision)
    taken: dict[Precision, list[float]] = {precision: [] for precision in precisions}
    end = time.perf_counter() + SECONDS
    for number in range(TURNS):
        if number and time.perf_counter() > end:
            break
        for precision in precisions:
            taken[precision].append(turn(precision))
    return {precision: statistics.median(times) for precision, times in taken.items()}
