"""``--preset``: shipped settings, above the defaults and below a YAML file and flags; the official DSRL's too."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml

import dsrl_offpolicy
from dsrl_offpolicy.configs.jobs import Stage2LoopConfig
from dsrl_offpolicy.configs.loading import check_ranges, preset_names, read_preset
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.train.train_stage2_online import settings

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


OURS = ("fast", "paper", "steady")


def parsed(*argv: str) -> Stage2LoopConfig:
    return settings(argv)


def test_every_preset_is_known() -> None:
    assert preset_names() == sorted([*(f"dsrl-{name}" for name in OFFICIAL), *OURS])


@pytest.mark.parametrize("name", OURS)
def test_every_setting_of_a_preset_counts(name: str) -> None:
    chosen = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    config = parsed("--preset", name)
    check_ranges(config)
    for key, value in chosen.items():
        found = getattr(config, key)
        assert (list(found) if isinstance(found, tuple) else found) == value, key


def test_paper_is_what_most_official_tasks_share() -> None:
    paper = read_preset("paper")
    tasks = [read_preset(f"dsrl-{task}") for task in OFFICIAL]
    apart = {name for name, value in paper.items() if sum(task.get(name) == value for task in tasks) < 4}
    # At b = 1, Transport's, the official target of 0 nats of w / b is 0 nats of w for every latent. Chunks
    # of warm-up are those of Lift and Can, the others have 2001 and 20001; gradient steps those of Can and Square.
    assert apart == {"action_magnitude", "target_entropy", "warmup_steps", "utd_ratio"}


def test_fast_is_the_learner_of_the_quickstart() -> None:
    stages = yaml.safe_load((FOLDER.parent / "quickstart_stages.yaml").read_text())
    shipped = {**stages["stage2"], **stages["stage2_elsewhere"]}
    of_the_task = {"total_timesteps", "train_episode_steps", "eval_freq", "eval_episodes"}
    of_its_start = {"warmup_policy", "init_critic", "kl_to"}
    fast = yaml.safe_load((FOLDER / "fast.yaml").read_text())
    assert fast == {name: v for name, v in shipped.items() if name not in of_the_task | of_its_start}


def test_a_file_wins_over_a_preset_and_a_flag_over_both(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("utd_ratio: 3\nbatch_size: 64\n")
    config = parsed("--batch_size", "32", "--preset", "fast", "--config", str(file))
    assert (config.utd_ratio, config.batch_size, config.actor_update_every) == (3, 32, 2)


def test_a_file_or_flag_may_choose_another_algorithm_than_the_preset(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("algo: lps\n")
    assert parsed("--preset", "paper").algo == "na"
    assert parsed("--preset=paper", "--config", str(file)).algo == "lps"
    assert parsed("--preset=paper", "--algo", "sac").algo == "sac"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--preset", "fats"], "--preset: unknown preset 'fats'; did you mean fast?"),
        (["--preset", "quick-and-good"], "valid: dsrl-can, dsrl-halfcheetah"),
        (["--preset"], "--preset: expected a name after it, got nothing"),
        (["--preset", "fast", "--resume", "runs/x"], "--preset: expected nothing beside --resume"),
    ],
)
def test_what_is_no_preset_is_told(argv: list[str], said: str) -> None:
    with pytest.raises(InputError) as error:
        settings(argv)
    assert said in str(error.value)


@pytest.mark.parametrize("name", OFFICIAL)
def test_a_preset_says_the_official_settings_in_our_units(name: str) -> None:
    config = parsed("--preset", f"dsrl-{name}")
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
    # Plain SAC: alpha holds the entropy at its target and is in the TD target, rewards are the environment's.
    assert (config.regularizer, config.backup_entropy, config.reward_scale) == ("entropy", True, 1.0)
    assert config.warmup_policy == "prior"
    on_gym = name in ("hopper", "halfcheetah", "walker2d")
    assert config.reward_mode == ("dense" if on_gym else "sparse") and config.end_on_success == on_gym
    named = "env_id" in yaml.safe_load((FOLDER / f"dsrl-{name}.yaml").read_text())
    assert named == (name != "transport")  # two arms, of which there is no environment here
