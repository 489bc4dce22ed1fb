"""Demonstrations as all stages take them: held against what is needed, encoded once, and cut into windows."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dsrl_offpolicy.agents.awsc import DemoBatch
from dsrl_offpolicy.configs.jobs import ProbeConfig, Stage0Config, Stage1Config, Stage2LoopConfig
from dsrl_offpolicy.contracts import BasePolicy, Observation, PolicyInfo, RewardTerms
from dsrl_offpolicy.demos.format import find_format, read_demonstrations
from dsrl_offpolicy.demos.trajectory import Demonstrations, check_info
from dsrl_offpolicy.demos.windows import Windows, WindowSpec, cut_windows, split_episodes, stack_states
from dsrl_offpolicy.envs.family import EnvFamily, find_family
from dsrl_offpolicy.envs.spec import EnvSpec
from dsrl_offpolicy.envs.vector import inspect_env
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.files.plain import reading
from dsrl_offpolicy.rollouts.base_env import control_mode_of
from dsrl_offpolicy.train.start import rewards_of

DemonstratedJob = Stage0Config | Stage1Config | Stage2LoopConfig | ProbeConfig

ENCODED_AT_ONCE = 256
"""Frames in one call of an image encoder."""


def load_demonstrations(
    config: DemonstratedJob,
    path: Path,
    *,
    obs_mode: str | None = None,
    control_mode: str | None = None,
    reward_mode: str | None = None,
    poses: bool = False,
) -> Demonstrations:
    """Read the demonstrations of ``path``, once they are of the job's task and modes.

    A format that does not keep the order of the state's parts and of the cameras is told the environment's.

    Args:
        config: its ``env_id``, ``demo_format``, ``num_demos`` and simulator are used.
        path: the file.
        obs_mode: what is needed; None takes what the file has.
        control_mode: what is needed; None takes what the file has.
        reward_mode: whose rewards are needed; None and ``sparse`` need none.
        poses: whether those of objects are wanted beside images, where the file has them.

    Raises:
        InputError: another task, control mode, observation mode or reward mode; a file or field that is missing.
    """
    family = find_family(config.env_id, config.env_family)
    rewards = reward_mode if reward_mode != "sparse" else None
    demo_format = find_format(config.demo_format, path)
    with reading(str(path), f"what {type(demo_format).__name__} can read"):
        info = demo_format.describe(path)
    wanted = {"env_id": config.env_id, "control_mode": control_mode, "obs_mode": obs_mode, "reward_mode": rewards}
    check_info(info, path, wanted)
    if rewards == "dense" and info.has_rewards and info.reward_mode is None:
        raise InputError(
            f"reward_mode: expected demonstrations recorded with dense, {path} does not say with which "
            "(ManiSkill's replay leaves it out for its default, which is normalized_dense)"
        )
    obs_mode = obs_mode or info.obs_mode or "state"
    if obs_mode not in ("state", "rgb"):
        raise InputError(f"obs_mode: expected demonstrations recorded with state or rgb, {path} has {obs_mode}")
    keys = cameras = None
    if obs_mode == "rgb" and not demo_format.keeps_order:
        keys, cameras = _order_in_environment(config, family, control_mode or info.control_mode or None)
    demos = read_demonstrations(
        path,
        demo_format=config.demo_format,
        need_rewards=rewards is not None,
        need_images=obs_mode == "rgb",
        want_poses=poses and obs_mode == "rgb",
        state_keys=keys,
        cameras=cameras,
        limit=config.num_demos,
    )
    if control_mode and not demos.control_mode:
        demos = replace(demos, control_mode=control_mode)  # what the file does not say is what is needed
    _note_time_limit(demos, family.time_limit(EnvSpec(config.env_id, max_episode_steps=config.max_episode_steps)))
    return demos


def successes_of(demos: Demonstrations) -> Demonstrations:
    """Return the demonstrations that succeed.

    Raises:
        InputError: none does.
    """
    found = tuple(t for t in demos.trajectories if t.succeeds)
    if not found:
        raise InputError(
            f"successes_only: expected at least one demonstration that succeeds, got none of "
            f"{len(demos.trajectories)} in {demos.path}"
        )
    return replace(demos, trajectories=found)


def demonstrations_digest(config: DemonstratedJob) -> str:
    """Hash the job's demonstrations: a resumed run must find the same."""
    assert config.demo_path is not None
    path = config.demo_path.expanduser()
    return find_format(config.demo_format, path).digest(path)


def _order_in_environment(
    config: DemonstratedJob, family: EnvFamily, control_mode: str | None
) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """The parts of the state and the cameras, as the environment orders them."""
    facts = inspect_env(
        EnvSpec(
            config.env_id,
            control_mode=control_mode,
            obs_mode="rgb",
            sim_backend=config.sim_backend,
            render_backend=config.render_backend,
            robot_uids=config.robot_uids,
            reward_mode=family.common_reward_mode,
            env_family=config.env_family,
        )
    )
    return facts.state_keys, facts.cameras


def _note_time_limit(demos: Demonstrations, limit: int | None) -> None:
    """Tell the user where episodes will end before a typical demonstration does."""
    median = int(np.median([len(t) for t in demos.trajectories]))
    if limit is not None and median > limit:
        print(
            f"note: demonstrations of {demos.env_id} take {median} env steps (median), its episodes end after "
            f"{limit}; --max_episode_steps gives them longer",
            file=sys.stderr,
        )


def encode_demonstrations(
    demos: Demonstrations, encode: Callable[[Tensor, Tensor | None], Tensor], device: torch.device
) -> Tensor:
    """Encode all frames in order, ``[F, V+S]``: the table that ``Windows.rows`` index. Images are read and encoded
    a few at a time.

    Args:
        demos: trajectory i contributes its n_i + 1 frames.
        encode: states ``[N, S]`` and images ``[N, H, W, 3k]`` (or None) to ``[N, V+S]``.
        device: where it computes.
    """
    parts: list[Tensor] = []
    with torch.no_grad():
        for trajectory in demos.trajectories:
            state = torch.from_numpy(trajectory.obs).to(device)
            for first in range(0, len(state), ENCODED_AT_ONCE):
                rows = slice(first, min(first + ENCODED_AT_ONCE, len(state)))
                images = None
                if trajectory.images is not None:
                    images = torch.from_numpy(trajectory.images.read(rows)).to(device)
                parts.append(encode(state[rows], images))
    return torch.cat(parts)


def encode_windows(demos: Demonstrations, rows: np.ndarray, policy: BasePolicy, device: torch.device) -> Tensor:
    """Encode frame stacks, ``[N, D]``: every frame once where the policy encodes single frames, else whole stacks.

    Args:
        demos: trajectory i contributes its n_i + 1 frames to one table.
        rows: ``[N, o]``, rows of that table, each stack within one trajectory (``Windows.rows``).
        policy: encodes.
        device: where it computes.
    """
    try:
        table = encode_demonstrations(demos, policy.encode_frames, device)
    except NotImplementedError:
        return _encode_stacks(demos, rows, policy, device)
    return table[torch.from_numpy(rows).to(device)].flatten(1)


def _encode_stacks(demos: Demonstrations, rows: np.ndarray, policy: BasePolicy, device: torch.device) -> Tensor:
    """Encode whole stacks; images are read and encoded a few at a time."""
    states = stack_states(demos.trajectories)
    starts = np.cumsum([0, *(len(t) + 1 for t in demos.trajectories)])
    at_once = max(1, ENCODED_AT_ONCE // rows.shape[1])
    parts: list[Tensor] = []
    with torch.no_grad():
        for first in range(0, len(rows), at_once):
            part = rows[first : first + at_once]
            state = torch.from_numpy(states[part]).to(device)
            obs: Observation = state
            if demos.image_shape is not None:
                images = np.empty((*part.shape, *demos.image_shape), np.uint8)
                owners = np.searchsorted(starts, part[:, -1], side="right") - 1
                for owner in np.unique(owners):
                    held, frames = demos.trajectories[owner].images, part[owners == owner] - starts[owner]
                    assert held is not None
                    images[owners == owner] = held.read(frames.ravel()).reshape(*frames.shape, *demos.image_shape)
                obs = {"state": state, "rgb": torch.from_numpy(images).to(device)}
            try:
                parts.append(policy.encode(obs).features)
            except KeyError as error:
                raise InputError(
                    f"demo_path: the base policy reads the observation {error}, "
                    "demonstrations hold states and images alone"
                ) from error
    return torch.cat(parts)


def window_spec(info: PolicyInfo, rewards: RewardTerms) -> WindowSpec:
    """Return the windows that a base policy is trained on."""
    terms = rewards.known()
    return WindowSpec(info.obs_horizon, info.action_shape[0], info.act_horizon, *vars(terms).values())


def to_batch(windows: Windows, table: Tensor) -> DemoBatch:
    """Return windows as tensors on the device of ``table [F, V+S]``, the encoded frames of all demonstrations."""

    def tensor(values: np.ndarray) -> Tensor:
        return torch.as_tensor(values, dtype=torch.float32).to(table.device)

    def features(rows: np.ndarray) -> Tensor:
        return table[torch.from_numpy(rows).to(table.device)].flatten(1)

    return DemoBatch(
        features(windows.rows),
        tensor(windows.chunks),
        tensor(windows.reward),
        tensor(windows.discount),
        features(windows.next_rows),
    )


def load_policy_windows(
    config: Stage1Config | Stage2LoopConfig | ProbeConfig, path: Path, base: BasePolicy, rewards: RewardTerms
) -> tuple[Demonstrations, Windows]:
    """Read the demonstrations in ``path``, once they fit a base policy, and cut its windows.

    Args:
        config: of the job.
        path: the file.
        base: its shapes and its controller are what the file must have.
        rewards: of the windows.

    Raises:
        InputError: another task or control mode, other shapes, or rewards that the file lacks.
    """
    info = base.info
    demos = load_demonstrations(
        config, path, obs_mode=info.obs_mode, control_mode=control_mode_of(info, config),
        reward_mode=rewards.reward_mode,
    )  # fmt: skip
    shape = demos.image_shape
    if shape is not None and shape[2] != info.image_channels:
        raise InputError(
            f"demo_path: expected images of {info.image_channels // 3} cameras as in the base policy, "
            f"got {shape[2] // 3}"
        )
    if demos.state_dim != info.state_dim:
        raise InputError(
            f"demo_path: expected {info.state_dim} state dimensions as in the base policy, got {demos.state_dim}"
        )
    if demos.action_dim != info.action_dim:
        raise InputError(
            f"demo_path: expected {info.action_dim} action dimensions as in the base policy, "
            f"got {demos.action_dim}"
        )
    spec = window_spec(info, rewards)
    return demos, cut_windows(demos.trajectories, demos.control_mode, spec, has_gripper=demos.has_gripper)


def load_states(
    config: Stage1Config, path: Path, base: BasePolicy, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Load the frame stacks in ``path``, for AW-MLE.

    Returns:
        Features ``[N, D]`` to train on, features ``[M, D]`` held out, and the episode ``[M]`` of each of these.
    """
    rewards = replace(rewards_of(base), reward_mode="sparse")  # those of the file are not asked for
    demos, windows = load_policy_windows(config, path, base, rewards)
    train, held_out = split_episodes(windows, config.held_out_fraction)
    features = encode_windows(demos, np.concatenate([train.rows, held_out.rows]), base, device)
    return features[: len(train)], features[len(train) :], torch.from_numpy(held_out.episode).to(device)
