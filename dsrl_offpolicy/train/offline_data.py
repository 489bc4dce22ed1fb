"""The demonstrations of Stage 2: turned into noise once, and kept in the run folder for when it resumes."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsrl_offpolicy.base_policies.inversion import invert_windows
from dsrl_offpolicy.buffers.macro_replay_buffer import MacroReplayBuffer
from dsrl_offpolicy.buffers.offline_transitions import OfflineTransitions, joined
from dsrl_offpolicy.configs.jobs import Stage1Config, Stage2LoopConfig
from dsrl_offpolicy.contracts import BasePolicy, Encoding, MacroBatch, RewardTerms
from dsrl_offpolicy.demos.trajectory import Demonstrations
from dsrl_offpolicy.demos.windows import Windows
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.files.checkpoint import load_checkpoint, save_checkpoint
from dsrl_offpolicy.files.plain import from_plain, reading
from dsrl_offpolicy.models.latent_layout import LatentLayout
from dsrl_offpolicy.seeding import torch_generator
from dsrl_offpolicy.train.demonstrations import demonstrations_digest, encode_windows, load_policy_windows
from dsrl_offpolicy.train.start import decodes_from_features

FILE, KIND = "offline.pt", "offline_transitions"
"""In the run folder: the inverted demonstrations."""


def check_invertible(
    base: BasePolicy, layout: LatentLayout, device: torch.device, *, flag: str, instead: str
) -> None:
    """Refuse what cannot turn actions into noise.

    Args:
        base: the policy; tried on one example.
        layout: which part of the noise is steered.
        device: where the policy computes.
        flag: the setting that asks for it.
        instead: what still works.

    Raises:
        InputError: the policy cannot be inverted, decodes from more than features, or executes other rows than
            windows of demonstrations begin with; or one row of noise is steered for all.
    """
    if layout.mode == "repeat":
        raise InputError(f"{flag}: one noise repeated (steer_mode repeat) makes no demonstration; {instead}")
    first, newest = base.info.executed_rows.start, base.info.obs_horizon - 1
    if first != newest:
        raise InputError(
            f"{flag}: demonstrations are cut for policies that execute rows from obs_horizon - 1 = {newest} on, "
            f"this one executes them from {first} on; {instead}"
        )
    if not decodes_from_features(base, device):
        raise InputError(f"{flag}: this base policy decodes from more than its features; {instead}")
    encoding = Encoding(torch.zeros(1, base.info.feature_dim, device=device))
    try:
        base.invert(encoding, encoding.features.new_zeros(1, *base.info.action_shape))
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
    succeeds = np.array([t.succeeds for t in demos.trajectories])
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


@dataclass(frozen=True)
class StageOneDemonstrations:
    """What a checkpoint of Stage 1 says of the demonstrations that it was made from.

    Attributes:
        path: of the file.
        demo_format: as the setting.
        num_demos: as the setting.
        digest: of the file.
    """

    path: str
    demo_format: str
    num_demos: int | None
    digest: str

    @classmethod
    def of(cls, config: Stage1Config, digest: str) -> StageOneDemonstrations:
        """Return those of a job that has some."""
        assert config.demo_path is not None
        path = config.demo_path.expanduser().resolve()
        return cls(str(path), config.demo_format, config.num_demos, digest)

    def plain(self) -> dict[str, Any]:
        """Return what a checkpoint holds."""
        return asdict(self)


def offline_data(
    config: Stage2LoopConfig, base: BasePolicy, layout: LatentLayout, device: torch.device
) -> tuple[Stage2LoopConfig, OfflineData | None]:
    """Return a run's demonstrations, if it has any, and its settings, which name them.

    They are those of ``demo_path``, or else those of Stage 1 where they are still in their place and of use.

    Raises:
        InputError: those of ``demo_path`` cannot be used.
    """
    if config.demo_path is not None:
        return config, OfflineData(config, base, layout, device)
    if config.resume is not None or config.stage1_checkpoint is None or not config.offline_fraction:
        return config, None
    path = config.stage1_checkpoint.expanduser()
    recorded = load_checkpoint(path, "stage1", "stage1_checkpoint", device).get("demonstrations")
    if recorded is None:
        return config, None
    where = f"stage1_checkpoint: {path}: demonstrations"
    found = from_plain(StageOneDemonstrations, recorded, where)
    try:
        named = replace(
            config, demo_path=Path(found.path), demo_format=found.demo_format, num_demos=found.num_demos
        )
        if not Path(found.path).exists() or demonstrations_digest(named) != found.digest:
            raise InputError(f"{found.path} is not what it was; --demo_path gives others")
        data = OfflineData(named, base, layout, device)
    except InputError as error:
        print(f"note: Stage 2 goes without the demonstrations of Stage 1: {error}", file=sys.stderr)
        return config, None
    print(f"stage2: demonstrations of Stage 1: {found.path} (--offline_fraction 0: none)", file=sys.stderr)
    return named, data


class OfflineData:
    """The demonstrations of a Stage 2 run: inverted, or read from the run that resumes, which inverted them.

    Args:
        config: of the run; ``demo_path`` is given.
        base: can be inverted.
        layout: which part of the noise is steered.
        device: where the transitions live.

    Raises:
        InputError: a policy that cannot be inverted, demonstrations of another task or shape, and as
            :func:`invert_demonstrations`.
    """

    def __init__(
        self, config: Stage2LoopConfig, base: BasePolicy, layout: LatentLayout, device: torch.device
    ) -> None:
        assert config.demo_path is not None
        self.config, self.base, self.layout, self.device = config, base, layout, device
        instead = "leave it out: Stage 2 learns from its own episodes alone"
        check_invertible(base, layout, device, flag="demo_path", instead=instead)
        self.digest = demonstrations_digest(config)
        self.generator = torch_generator(config.seed, "offline", device)
        rows, self.report = self._inverted()
        self.transitions = OfflineTransitions(rows, generator=self.generator)

    def _inverted(self) -> tuple[MacroBatch, dict[str, float]]:
        """The transitions, and the numbers of the inversion."""
        config = self.config
        path = config.resume.expanduser() / FILE if config.resume is not None else None
        if path is not None and path.is_file():
            content = load_checkpoint(path, KIND, "resume", self.device)
            with reading(f"resume: {path}", "inverted demonstrations"):
                return MacroBatch(**content["transitions"]), content["report"]
        assert config.demo_path is not None
        rewards = RewardTerms(config.gamma, config.reward_mode, config.reward_scale, config.end_on_success)
        demos, windows = load_policy_windows(config, config.demo_path.expanduser(), self.base, rewards)
        found = invert_demonstrations(
            demos, windows, self.base, self.layout,
            tolerance=config.inversion_tolerance, seed=config.seed, device=self.device,
        )  # fmt: skip
        left_out, count = int(found.report["left_out"]), int(found.report["windows"])
        print(
            f"stage2: {count - left_out} of {count} windows of demonstrations turned into noise, "
            f"{left_out} left out",
            file=sys.stderr,
        )
        return found.transitions, found.report

    def keep(self, folder: Path) -> None:
        """Write the inverted demonstrations into the run folder, for when the run resumes."""
        content = {"transitions": vars(self.transitions.rows), "report": self.report}
        save_checkpoint(folder / FILE, KIND, content)

    def same(self) -> dict[str, str]:
        """Return the digests of what must not have changed when the run resumes."""
        inverted = hashlib.sha256()
        for value in vars(self.transitions.rows).values():
            inverted.update(value.cpu().contiguous().numpy().tobytes())
        return {"demonstrations": self.digest, "inverted": inverted.hexdigest()}

    def share(self, env_steps: int) -> float:
        """Return the share of a batch after ``env_steps``."""
        over = self.config.offline_anneal_steps
        return self.config.offline_fraction * (1.0 if over is None else max(0.0, 1 - env_steps / over))

    def batch(self, online: MacroReplayBuffer, size: int, env_steps: int) -> MacroBatch:
        """Draw a batch of both: RLPD's symmetric sampling (Ball et al., 2023) for a share of a half."""
        offline = round(size * self.share(env_steps))
        if not offline:
            return online.sample(size)
        if offline == size:
            return self.transitions.sample(size)
        return joined(online.sample(size - offline), self.transitions.sample(offline))
