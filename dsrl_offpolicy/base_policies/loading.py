"""Loading base policies from files."""

from __future__ import annotations

from pathlib import Path

import torch

from dsrl_offpolicy.base_policies.shortcut_flow import ShortcutFlowPolicy
from dsrl_offpolicy.checkpoint import load_checkpoint


def load_base_policy(
    path: str | Path, device: str | torch.device = "cpu", *, flag: str = "awsc_checkpoint"
) -> ShortcutFlowPolicy:
    """A frozen base policy from a Stage 0 checkpoint.

    Args:
        path: the file that ``dsrl pretrain`` wrote.
        device: where it computes.
        flag: the setting to name in an error.

    Raises:
        InputError: the file is missing, damaged, or not a base policy.
    """
    content = load_checkpoint(Path(path), "base_policy", flag, device)
    return ShortcutFlowPolicy.from_checkpoint(content, f"{flag}: {path}").to(device)
