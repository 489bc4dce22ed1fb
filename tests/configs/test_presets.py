"""The official DSRL's settings as files for ``--config``: what they say is what Stage 2 understands."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml

import dsrl_offpolicy
from dsrl_offpolicy.agents.stage2_config import chosen_algorithm, shipped_yaml, stage2_config
from dsrl_offpolicy.configs.loading import check_ranges, parse_job

FOLDER = Path(dsrl_offpolicy.__file__).parent / "configs" / "presets"
# Official: algorithm, actions, rows of a chunk, width, gamma per chunk, chunks of warm-up per environment (of 4),
# magnitude, time limit, gradient steps per step of the 4 environments.
OFFICIAL = {
    "lift": ("na", 7, 4, 2048, 0.99, 1501, 1.5, 300, 30),
    "can": ("na", 7, 4, 2048, 0.99, 1501, 1.5, 300, 20),
    "square": ("na", 7, 4, 2048, 0.999, 2001, 1.5, 400, 20),
    "transport": ("sac", 14, 8, 128, 0.99, 20001, 1.0, 800, 20),
    "hopper": ("na", 3, 4, 128, 0.99, 2001, 1.5, 1000, 10),
    "halfcheetah": ("na", 6, 4, 1024, 0.99, 2001, 1.5, 1000, 10),
    "walker2d": ("na", 6, 4, 2048, 0.99, 2001, 2.5, 1000, 10),
}


def test_every_preset_is_known() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(OFFICIAL)


@pytest.mark.parametrize("name", OFFICIAL)
def test_a_preset_says_the_official_settings_in_our_units(name: str) -> None:
    argv = ["--config", str(FOLDER / f"{name}.yaml")]
    algo = chosen_algorithm(argv)
    config = parse_job(stage2_config(algo), shipped_yaml(algo), "dsrl stage2", argv)
    check_ranges(config)
    official, actions, rows, width, gamma, warmup, magnitude, limit, steps = OFFICIAL[name]
    assert (config.algo, config.max_episode_steps, config.num_envs) == (official, limit, 4)
    assert config.actor_hidden_dims == config.critic_hidden_dims == (width, width, width)
    assert config.gamma**rows == pytest.approx(gamma, abs=1e-5)
    assert config.warmup_steps == warmup * 4 * rows < config.total_timesteps
    assert config.utd_ratio == steps / 4 and config.action_magnitude == magnitude
    # Of latents w = b a, the entropy is that of a in [-1, 1] and ln b for each of their numbers; a's target is 0.
    assert config.target_entropy == pytest.approx(actions * rows * math.log(magnitude), abs=1e-3)
    assert (config.batch_size, config.actor_lr, config.critic_lr, config.temp_lr) == (256, 3e-4, 3e-4, 3e-4)
    on_gym = name in ("hopper", "halfcheetah", "walker2d")
    assert config.reward_mode == ("dense" if on_gym else "sparse") and config.end_on_success == on_gym
    named = "env_id" in yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    assert named == (name != "transport")  # two arms, of which there is no environment here
