"""Configuration: YAML files that say what the dataclasses say, flags above YAML, one line for what is wrong."""

from __future__ import annotations

import ast
from dataclasses import fields
from importlib import import_module, resources
from pathlib import Path

import pytest
import yaml

import dsrl_offpolicy
from dsrl_offpolicy.agents.stage2_config import Stage2Config
from dsrl_offpolicy.cli import COMMANDS, TOOLS
from dsrl_offpolicy.commands.quickstart import SCALED
from dsrl_offpolicy.configs import jobs
from dsrl_offpolicy.configs.loading import check_ranges, override, parse_job, to_plain
from dsrl_offpolicy.configs.serve import ServeConfig
from dsrl_offpolicy.errors import InputError

PACKAGE = Path(dsrl_offpolicy.__file__).parent
JOBS = {
    "demos.yaml": jobs.DemosConfig,
    "stage0_pretrain.yaml": jobs.Stage0Config,
    "stage1_offline.yaml": jobs.Stage1Config,
    "stage2_online.yaml": Stage2Config,
    "ppo.yaml": jobs.PPOConfig,
    "eval.yaml": jobs.EvalConfig,
    "quickstart.yaml": jobs.QuickstartConfig,
    "doctor_env.yaml": jobs.DoctorEnvConfig,
    "probe.yaml": jobs.ProbeConfig,
    "serve.yaml": ServeConfig,
}
NAMES = ("demos", "pretrain", "stage1", "stage2", "ppo", "eval", "quickstart", "doctor env", "probe", "serve")
JOB_OF_COMMAND = dict(zip(NAMES, JOBS.values(), strict=True))


def _shipped(name: str) -> dict:
    return yaml.safe_load(resources.files("dsrl_offpolicy.configs").joinpath(name).read_text())


def test_every_shipped_yaml_belongs_to_a_job():
    shipped = {p.name for p in (PACKAGE / "configs").glob("*.yaml")}
    assert shipped == {*JOBS, "quickstart_stages.yaml"}


@pytest.mark.parametrize("name", JOBS)
def test_shipped_yaml_has_exactly_the_fields_and_defaults_of_its_dataclass(name):
    content = _shipped(name)
    assert content == to_plain(JOBS[name]())
    assert parse_job(JOBS[name], name, "dsrl", []) == JOBS[name]()


@pytest.mark.parametrize("section", ["demos", "stage0", "stage1", "stage2", "eval"])
def test_quickstart_sections_hold_valid_settings(section):
    name = {"stage0": "stage0_pretrain", "stage1": "stage1_offline", "stage2": "stage2_online"}.get(
        section, section
    )
    settings = _shipped("quickstart_stages.yaml")[section]
    job = JOBS[f"{name}.yaml"]
    config = override(job, f"{name}.yaml", settings, section)
    plain = to_plain(config)
    for key, value in settings.items():
        assert plain[key] == value
    assert set(SCALED[section]) <= {f.name for f in fields(job)}


def test_quickstart_has_no_other_sections():
    assert set(_shipped("quickstart_stages.yaml")) == set(SCALED)


# The seed document's two tables (spec/seed_readme.md, "Key Hyperparameters").
SEED_STAGE2 = {
    "utd_ratio": 20, "batch_size": 256, "replay_buffer_size": 100000, "actor_lr": 1e-4, "critic_lr": 3e-4,
    "temp_lr": 1e-4, "gamma": 0.99, "tau": 0.005, "init_temperature": 0.1, "warmup_steps": 5000,
}  # fmt: skip
SEED_STAGE1 = {"num_candidates": 32, "kappa": 1.0, "tau": 5.0, "beta_latent": 1.0, "kl_coef": 1e-3}


@pytest.mark.parametrize(
    ("name", "table"), [("stage2_online.yaml", SEED_STAGE2), ("stage1_offline.yaml", SEED_STAGE1)]
)
def test_hyperparameters_of_the_seed_document_have_their_names_and_defaults(name, table):
    config = parse_job(JOBS[name], name, "dsrl", [])
    assert {key: getattr(config, key) for key in table} == table


def test_target_entropy_is_auto_by_default_and_can_be_said():
    default = parse_job(Stage2Config, "stage2_online.yaml", "dsrl", [])
    said = parse_job(Stage2Config, "stage2_online.yaml", "dsrl", ["--target_entropy", "auto"])
    assert said == default
    number = parse_job(Stage2Config, "stage2_online.yaml", "dsrl", ["--target_entropy", "-3.5"])
    assert number.target_entropy == -3.5


def _stage2(*argv: str) -> Stage2Config:
    return parse_job(Stage2Config, "stage2_online.yaml", "dsrl stage2", argv)


def test_flags_win_over_yaml_and_yaml_over_defaults(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("batch_size: 32\ngamma: 0.9\nactor_hidden_dims: [8, 4]\nlearn_temperature: false\nout: null\n")
    config = _stage2("--config", str(file), "--gamma", "0.8")
    assert (config.batch_size, config.gamma, config.utd_ratio) == (32, 0.8, 20.0)
    assert config.actor_hidden_dims == (8, 4) and config.learn_temperature is False and config.out is None
    assert _stage2("--gamma", "0.8", f"--config={file}") == config  # wherever --config stands


def test_flags_of_every_kind():
    config = _stage2(
        "--track", "--no-backup_entropy", "--actor_hidden_dims", "32", "16", "--action_magnitude", "inf",
        "--max_episode_steps", "100", "--steer_mode", "repeat", "--out", "some/where", "--target_kl", "1e1",
    )  # fmt: skip
    assert config.track is True and config.backup_entropy is False
    assert config.actor_hidden_dims == (32, 16)
    assert config.action_magnitude == float("inf") and config.target_kl == 10.0
    assert config.max_episode_steps == 100 and config.steer_mode == "repeat"
    assert config.out == Path("some/where")
    assert parse_job(jobs.DemosConfig, "demos.yaml", "dsrl", ["--wrong_goal_offset", "-0.1", "1e-3", "0"]) == (
        jobs.DemosConfig(wrong_goal_offset=(-0.1, 0.001, 0.0))
    )


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--utd_ration", "3"], ["--utd_ration", "did you mean --utd_ratio?"]),
        (["--batchsize=3"], ["--batchsize", "did you mean --batch_size?"]),
        (["--batch_size", "many"], ["--batch_size", "many"]),
        (["--batch_size", "1.5"], ["--batch_size", "1.5"]),
        (["--batch_size", "0"], ["batch_size", "whole number >= 1", "0"]),
        (["--batch_size"], ["--batch_size"]),
        (["--steer_mode", "half"], ["--steer_mode", "half", "full"]),
        (["--gamma", "1.5"], ["gamma", "a number <= 1", "1.5"]),
        (["--gamma", "nan"], ["gamma", "nan"]),
        (["--tau", "5"], ["tau", "5"]),
        (["--tau", "0"], ["tau", "0"]),
        (["--utd_ratio", "0"], ["utd_ratio", "> 0"]),
        (["--utd_ratio", "inf"], ["utd_ratio", "inf"]),
        (["--actor_lr", "inf"], ["actor_lr", "inf"]),
        (["--actor_hidden_dims"], ["actor_hidden_dims", "a list of length >= 1"]),
        (["--actor_hidden_dims", "8", "-1"], ["actor_hidden_dims", "-1"]),
        (["--seed", "-1"], ["seed", "-1"]),
        (["--init_temperature", "-0.1"], ["init_temperature", "-0.1"]),
        (["--config"], ["--config"]),
        (["--config", "nowhere.yaml"], ["--config", "nowhere.yaml"]),
        (["stray"], ["stray"]),
    ],
    ids=lambda value: " ".join(value) if value and value[0].startswith("-") else "",
)
def test_what_is_wrong_is_said_in_one_readable_line(argv, words):
    with pytest.raises(InputError) as error:
        _stage2(*argv)
    message = str(error.value)
    assert "\n" not in message
    assert "---" not in message and "──" not in message  # no remains of a drawn box
    for word in words:
        assert word in message


def test_stage1_soft_baseline_temperature_must_be_positive():
    with pytest.raises(InputError, match=r"tau.*0"):
        parse_job(jobs.Stage1Config, "stage1_offline.yaml", "dsrl", ["--tau", "0"])
    assert parse_job(jobs.Stage1Config, "stage1_offline.yaml", "dsrl", ["--tau", "5"]).tau == 5.0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("batchsize: 3", ["mine.yaml", "'batchsize'", "did you mean batch_size?"]),
        ("- 3", ["mine.yaml", "mapping", "list"]),
        ("a: [1", ["mine.yaml", "YAML"]),
        ("batch_size: many", ["batch_size", "many"]),
        ("gamma: [0.9, 0.8]", ["mine.yaml: gamma: expected a number, got"]),
        ("3: 4", ["mine.yaml", "3"]),
    ],
)
def test_a_wrong_yaml_is_refused_in_one_line(tmp_path, text, words):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(InputError) as error:
        _stage2("--config", str(file))
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_numbers_inside_a_tuple_must_be_finite():
    for bad in ("nan", "inf"):
        with pytest.raises(InputError, match="wrong_goal_offset"):
            parse_job(jobs.DemosConfig, "demos.yaml", "dsrl", ["--wrong_goal_offset", bad, "0", "0"])


@pytest.mark.parametrize("job", JOBS.values())
def test_defaults_are_in_range(job):
    check_ranges(job())


PARTS = {
    "demos": tuple(
        f"demos.makers.{name}" for name in ("imperfection", "lift_peg", "metaworld", "motion_planning")
    ),
    "pretrain": ("train.stage0_learner",),
    "stage1": ("train.stage1_learner", "train.stage1_starts"),
    "stage2": (
        "agents.dsrl_sac_agent",
        "train.stage2_learner",
        "train.stage2_state",
        "train.offline_data",
        "train.ray_backend",
    ),
}
"""Modules besides its own that read a job's settings."""


def _read_setting(node: ast.AST) -> str | None:
    """``name`` where a node reads ``config.name``, ``self._config.name`` or ``config["name"]``."""
    if not isinstance(node, ast.Attribute | ast.Subscript) or not isinstance(node.ctx, ast.Load):
        return None
    owner = node.value.id if isinstance(node.value, ast.Name) else getattr(node.value, "attr", "")
    if owner.removeprefix("_") != "config":
        return None
    return node.attr if isinstance(node, ast.Attribute) else getattr(node.slice, "value", None)


@pytest.mark.parametrize("command", [*COMMANDS, "probe", "serve"])
def test_every_setting_is_read_by_its_own_job(command):
    """A setting that no code reads is a flag that does nothing: each must be read as ``config.<name>`` in the
    job's own module, in its parts or in those that all jobs share."""
    read: set[str] = set()
    rooms = ("run", "online_env", "command", "start", "demonstrations", "precision")
    shared = (
        *(f"train.{name}" for name in rooms),
        *PARTS.get(command, ()),
        "rollouts.base_env",
        "tracking.sink",
        "tracking.sinks.wandb",
    )
    for module in ({**COMMANDS, **TOOLS}[command][0], *(f"dsrl_offpolicy.{name}" for name in shared)):
        tree = ast.parse(Path(import_module(module).__file__).read_text())
        for node in ast.walk(tree):
            read |= {name for name in (_read_setting(node),) if name is not None}
    unread = {f.name for f in fields(JOB_OF_COMMAND[command])} - read
    assert not unread, f"dsrl {command}: settings that no code reads: {sorted(unread)}"


def test_plain_values_are_those_of_yaml_and_json():
    plain = to_plain(_stage2("--out", "x/y"))
    assert plain["out"] == "x/y" and plain["actor_hidden_dims"] == [256, 256, 256]
    assert yaml.safe_load(yaml.safe_dump(plain)) == plain
