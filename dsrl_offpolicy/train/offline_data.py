"""The demonstrations of Stage 2: turned into noise once, and kept in the run folder for when it resumes."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dsrl_offpolicy.base_policies.inversion import invert_windows
from dsrl_offpolicy.buffers.macro_replay_buffer import MacroReplayBuffer
from dsrl_offpolicy.buffers.offline_transitions import OfflineTransitions, joined
from dsrl_offpolicy.configs.jobs import Stage2LoopConfig
from dsrl_offpolicy.contracts import BasePolicy, MacroBatch, RewardTerms
from dsrl_offpolicy.demos.trajectory import Demonstrations
from dsrl_offpolicy.demos.windows import Windows
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.files.checkpoint import load_checkpoint, save_checkpoint
from dsrl_offpolicy.models.latent_layout import LatentLayout
from dsrl_offpolicy.seeding import torch_generator
from dsrl_offpolicy.train.demonstrations import demonstrations_digest, encode_windows, load_policy_windows

FILE, KIND = "offline.pt", "offline_transitions"
"""In the run folder: the inverted demonstrations."""


def check_invertible(base: BasePolicy, layout: LatentLayout, flag: str, instead: str) -> None:
    """Refuse what cannot turn actions into noise.

    Args:
        base: the policy; tried on one example.
        layout: which part of the noise is steered.
        flag: the setting that asks for it.
        instead: what still works.

    Raises:
        InputError: the policy cannot be inverted, or decodes from more than features; or one row of noise is
            steered for all.
    """
    if layout.mode == "repeat":
        raise InputError(f"{flag}: one noise repeated (steer_mode repeat) makes no demonstration; {instead}")
    encoding = base.encode(base.example_observation(1))
    if encoding.context is not None:
        raise InputError(f"{flag}: this base policy decodes from more than its features; {instead}")
    rows, width = base.info.action_shape
    try:
        base.invert(encoding, encoding.features.new_zeros(1, rows, width))
    except NotImplementedError as error:
        raise InputError(f"{flag}: {error}; {instead}") from error


@dataclass(frozen=True)
class NoiseDemonstrations:
    """Windows of demonstrations that a base policy's inversion reproduces.

    Attributes:
        transitions: of N windows.
        successful: ``[N]``, whether their episode succeeds.
        episode: ``[N]``, its index.
        report: numbers of the inversion.
    """

    transitions: MacroBatch
    successful: Tensor
    episode: Tensor
    report: dict[str, float]


def invert_demonstrations(
    demos: Demonstrations,
    windows: Windows,
    base: BasePolicy,
    layout: LatentLayout,
    *,
    tolerance: float,
    seed: int,
    device: torch.device,
) -> NoiseDemonstrations:
    """Turn windows into macro-transitions of the latent MDP; those that do not invert are left out.

    Raises:
        InputError: actions that no policy makes, no episode that succeeds, or no window that inverts.
    """
    succeeds = np.array([bool(t.success.any()) for t in demos.trajectories])
    if not succeeds.any():
        raise InputError(
            f"demo_path: expected at least one demonstration that succeeds, got none of {len(succeeds)}"
        )
    largest = float(np.abs(windows.chunks).max())
    if largest > 1 + 1e-4:
        raise InputError(f"demo_path: expected actions in [-1, 1], got {largest:g}")
    chunks = torch.as_tensor(windows.chunks, dtype=torch.float32, device=device)
    features = encode_windows(demos, np.concatenate([windows.rows, windows.next_rows]), base, device)
    here, following = features.split(len(windows))
    found = invert_windows(base, here, chunks, layout, tolerance, torch_generator(seed, "inversion", device))
    kept = found.accepted
    if not bool(kept.any()):
        raise InputError(
            f"demo_path: the base policy makes none of {len(windows)} chunks within {tolerance:g} (median error "
            f"{float(found.error.median()):.2g}); a larger --inversion_tolerance takes more"
        )

    def column(values: np.ndarray) -> Tensor:
        return torch.as_tensor(values, dtype=torch.float32, device=device)[kept]

    transitions = MacroBatch(
        here[kept], found.latent[kept], column(windows.reward), column(windows.discount), following[kept]
    )
    episode = torch.from_numpy(windows.episode).to(device)[kept]
    return NoiseDemonstrations(
        transitions, torch.from_numpy(succeeds).to(device)[episode], episode, found.report()
    )


class OfflineData:
    """The demonstrations of a Stage 2 run.

    Args:
        config: of the run; ``demo_path`` is given.
        base: can be inverted.
        layout: which part of the noise is steered.
        device: where the transitions live.

    Raises:
        InputError: demonstrations of another task or shape, or a policy that cannot be inverted.
    """

    def __init__(
        self, config: Stage2LoopConfig, base: BasePolicy, layout: LatentLayout, device: torch.device
    ) -> None:
        assert config.demo_path is not None
        self.config, self.base, self.layout, self.device = config, base, layout, device
        check_invertible(base, layout, "demo_path", "leave it out: Stage 2 learns from its own episodes alone")
        rewards = RewardTerms(config.gamma, config.reward_mode, config.reward_scale, config.end_on_success)
        self._demos, self._windows = load_policy_windows(config, config.demo_path.expanduser(), base, rewards)
        self.digest = demonstrations_digest(config)
        self.generator = torch_generator(config.seed, "offline", device)
        self.transitions: OfflineTransitions | None = None
        self.report: dict[str, float] = {}

    def prepare(self, folder: Path) -> None:
        """Invert the demonstrations, or read what this run inverted before.

        Raises:
            InputError: as :func:`invert_demonstrations`.
        """
        path, config = folder / FILE, self.config
        if path.is_file():
            content = load_checkpoint(path, KIND, "resume", self.device)
            rows, self.report = MacroBatch(**content["transitions"]), content["report"]
        else:
            found = invert_demonstrations(
                self._demos, self._windows, self.base, self.layout,
                tolerance=config.inversion_tolerance, seed=config.seed, device=self.device,
            )  # fmt: skip
            rows, self.report = found.transitions, found.report
            save_checkpoint(path, KIND, {"transitions": vars(rows), "report": self.report})
            left_out, windows = int(self.report["left_out"]), int(self.report["windows"])
            print(
                f"stage2: {windows - left_out} of {windows} windows of demonstrations turned into noise, "
                f"{left_out} left out",
                file=sys.stderr,
            )
        self.transitions = OfflineTransitions(rows, generator=self.generator)

    def share(self, env_steps: int) -> float:
        """Return the share of a batch after ``env_steps``."""
        over = self.config.offline_anneal_steps
        return self.config.offline_fraction * (1.0 if over is None else max(0.0, 1 - env_steps / over))

    def batch(self, online: MacroReplayBuffer, size: int, env_steps: int) -> MacroBatch:
        """Draw a batch of both: RLPD's symmetric sampling (Ball et al., 2023) for a share of a half."""
        assert self.transitions is not None
        offline = round(size * self.share(env_steps))
        if not offline:
            return online.sample(size)
        if offline == size:
            return self.transitions.sample(size)
        return joined(online.sample(size - offline), self.transitions.sample(offline))
