"""Load base policies by name, and try what others wrote against the contract."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from dsrl_offpolicy.base_policies.awsc import PublishedPolicy
from dsrl_offpolicy.base_policies.contract import check_contract
from dsrl_offpolicy.base_policies.published_layout import is_published
from dsrl_offpolicy.base_policies.shortcut_flow import ShortcutFlowPolicy
from dsrl_offpolicy.contracts import BasePolicy
from dsrl_offpolicy.errors import InputError, did_you_mean, one_line
from dsrl_offpolicy.files.checkpoint import check_kind, read_tensors
from dsrl_offpolicy.registry import BASE_POLICIES

MODULE = re.compile(r"[A-Za-z_]\w*(\.\w+)*")

READ_NO_WORDS = ("awsc", "dppo", "shortcut_flow")
"""Kinds of base policies that take no ``instruction``."""


def load_base_policy(
    spec: str | Path, device: str | torch.device = "cpu", *, flag: str = "base", **options: Any
) -> BasePolicy:
    """Load a frozen base policy.

    Args:
        spec: a file that ``dsrl pretrain`` wrote or a published AWSC checkpoint; ``kind:path``;
            ``remote:HOST:PORT`` of a ``dsrl serve``; or ``module:Class`` or ``module:Class:argument`` of a file in
            the working directory or on the path.
        device: where it computes.
        flag: the setting to name in an error.
        options: what the file does not say; those that are None are left out. A published AWSC checkpoint takes
            ``weights``, ``obs_horizon``, ``pred_horizon``, ``act_horizon`` and ``denoising_steps``. Our own files
            know them, and an option may only repeat what they say. For DPPO's see ``DPPOPolicy.load``, for those
            of a server ``RemotePolicy.load``. ``instruction`` is the task, for a policy that reads words.

    Raises:
        InputError: an unknown kind; a file that is missing, damaged, no base policy, or does not fit the options;
            a policy that breaks the contract of :class:`~dsrl_offpolicy.contracts.BasePolicy`.
    """
    device = torch.device(device)
    options = {name: value for name, value in options.items() if value is not None}
    kind, colon, argument = str(spec).partition(":")
    known, is_name = BASE_POLICIES.names(), MODULE.fullmatch(kind) if colon else kind.isidentifier()
    is_file = isinstance(spec, Path) or Path(spec).expanduser().exists() or not (kind in known or is_name)
    if "instruction" in options and (is_file or kind in READ_NO_WORDS):
        raise InputError(f"instruction: expected none, since the base policy {spec} reads no words")
    if is_file:
        return _from_file(Path(spec), device, flag, options)
    if kind in BASE_POLICIES.builtin:
        if not argument:
            raise InputError(f"{flag}: expected {kind}:PATH of its file, or remote:HOST:PORT, got {spec}")
        found = BASE_POLICIES.find(kind, flag, BasePolicy)
        return found.load(argument, device, flag=flag, **options)
    if kind not in known:
        kind, argument = _module_and_class(kind, argument, flag)
    found = BASE_POLICIES.find(kind, flag, BasePolicy)
    try:
        policy = found.load(argument or None, device, **options)
    except InputError:
        raise
    except Exception as error:  # whatever a stranger's code raises
        raise InputError(f"{flag}: {spec} cannot be made: {one_line(error)}") from error
    return check_contract(policy, f"{flag}: {spec}", device)


def _module_and_class(module: str, rest: str, flag: str) -> tuple[str, str]:
    """Split ``Class:argument`` off, once the module is one."""
    if not Path(*module.split(".")).with_suffix(".py").is_file() and find_spec(module.split(".")[0]) is None:
        raise InputError(
            f"{flag}: {module} is neither a file, nor a kind of base policy, nor a module here"
            f"{did_you_mean(module, BASE_POLICIES.names())}; kinds: {', '.join(BASE_POLICIES.names())}"
        )
    name, _, argument = rest.partition(":")
    return f"{module}:{name}", argument


def _from_file(path: Path, device: torch.device, flag: str, options: dict[str, Any]) -> BasePolicy:
    content = read_tensors(path, "base_policy checkpoint", flag, device)
    where = f"{flag}: {path}"
    if is_published(content):
        return PublishedPolicy.from_checkpoint(content, where, **options).to(device)
    content = check_kind(content, path, "base_policy", flag)
    return ShortcutFlowPolicy.from_checkpoint(content, where, **options).to(device)
