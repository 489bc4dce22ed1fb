"""dsrl doctor: whether a run is healthy; what an environment is here, and how fast."""

from __future__ import annotations

import json

import pytest
import yaml
from run_rows import KL_RUN, STAGE1_RUN, VERIFIED, stage1_rows, stage2_rows, write_run

from dsrl_offpolicy.configs.jobs import QuickstartConfig
from dsrl_offpolicy.configs.loading import to_plain


def test_an_environment_without_images(run_command):
    done = run_command(["doctor", "env", "--env_id", "lever-pull-v3", "--seconds", 0.2, "--json"])
    assert done.status == 0, done.err
    report = json.loads(done.out)
    assert report["simulator"].startswith("metaworld ") and "render_device" not in report
    assert report["state"]["state_dim"] == 39 and report["state"]["action_dim"] == 4
    assert report["state"]["max_episode_steps"] == 500 and report["state"]["env_steps_per_s"] > 0


@pytest.mark.maniskill
@pytest.mark.slow
def test_a_maniskill_task_in_both_modes(maniskill, run_command):
    done = run_command(["doctor", "env", "--env_id", "LiftPegUpright-v1", "--seconds", 0.2])
    assert done.status == 0, done.err
    words = ("maniskill 3", "physx_cpu", "pd_ee_delta_pose", "base_camera", "128, 128, 3", "extra/tcp_pose")
    for word in words:
        assert word in done.out, word
    assert done.out.count("env_steps_per_s") == 3  # state, rgb, and the line that says what it is


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["doctor", "nowhere"], ["RUN_DIR", "nowhere does not exist"]),
        (["doctor", "one", "two"], ["RUN_DIR", "one two"]),
        (["doctor", "--json"], ["RUN_DIR", "none"]),
        (["doctor", "run", "--jsn"], ["--jsn", "--json"]),
        (["doctor", "env", "--env_id", "lever-pul-v3"], ["env_id", "did you mean lever-pull-v3?"]),
        (
            ["doctor", "env", "--env_id", "lever-pull-v3", "--control_mode", "x"],
            ["control_mode", "have no such setting"],
        ),
        (["doctor", "env", "--seconds", 0], ["seconds"]),
    ],
)
def test_what_cannot_be_examined_is_one_line(run_command, argv, words):
    done = run_command(argv)
    assert done.status == 2 and len(done.error_lines) == 1, done.err
    for word in words:
        assert word in done.err


def test_a_healthy_run_is_status_0_and_a_sick_one_status_1_with_the_remedy(tmp_path, run_command):
    healthy = run_command(["doctor", write_run(tmp_path / "healthy", KL_RUN, stage2_rows())])
    assert healthy.status == 0, healthy.err
    assert "FAIL" not in healthy.out and "remedy" not in healthy.out and "no check fails" in healthy.out
    assert "stage2, not at its end" in healthy.out
    sick = run_command(
        ["doctor", write_run(tmp_path / "sick", KL_RUN, stage2_rows(buffer_size=64), {"minutes": 1})]
    )
    assert sick.status == 1 and sick.err == ""
    words = " ".join(sick.out.split())
    assert sick.out.count("FAIL") == 1 and "64 of 4400" in words and "1 check(s) fail" in words
    assert "increase" in words and "stage2, at its end" in words


def test_json_holds_the_verdicts_with_their_numbers(tmp_path, run_command):
    folder = write_run(tmp_path / "run", KL_RUN, stage2_rows(buffer_size=64))
    done = run_command(["doctor", "--json", folder])
    assert done.status == 1
    report = json.loads(done.out)
    assert report["healthy"] is False and report["runs"][0]["stage"] == "stage2"
    verdicts = {verdict["name"]: verdict for verdict in report["runs"][0]["verdicts"]}
    assert verdicts["buffer"]["ok"] is False and verdicts["buffer"]["values"] == {"size": 64, "stored": 4400}
    assert verdicts["buffer"]["remedy"].startswith("increase replay_buffer_size")
    assert verdicts["success"]["ok"] is None and verdicts["utd_effective"]["ok"] is True


def test_a_quickstart_is_checked_stage_by_stage_as_far_as_it_came(tmp_path, run_command):
    write_run(tmp_path, QuickstartConfig(), [])
    write_run(tmp_path / "stage1", STAGE1_RUN, stage1_rows(), VERIFIED)
    write_run(tmp_path / "stage2", KL_RUN, stage2_rows(3))
    done = run_command(["doctor", tmp_path, "--json"])
    assert done.status == 0, done.out
    assert [run["stage"] for run in json.loads(done.out)["runs"]] == ["stage1", "stage2"]


def test_a_torn_last_line_is_left_out(tmp_path, run_command):
    folder = write_run(tmp_path / "run", KL_RUN, stage2_rows())
    whole = run_command(["doctor", folder]).out
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"env_steps": 40000, "td_err')
    torn = run_command(["doctor", folder])
    assert torn.status == 0 and torn.out == whole


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.yaml", None, ["RUN_DIR", "config.yaml does not exist"]),
        ("config.yaml", "seed: [1", ["config.yaml", "expected YAML"]),
        ("config.yaml", "seed: 1\n", ["of none"]),
        ("config.yaml", "utd_ratio: many\n", ["utd_ratio", "many"]),
        ("config.yaml", b"\xff\xfe\x00", ["config.yaml", "expected YAML"]),
        ("metrics.jsonl", None, ["metrics.jsonl"]),
        ("metrics.jsonl", "{}\n{\n", ["metrics.jsonl, line 2", "expected JSON"]),
        ("metrics.jsonl", "[1]\n", ["metrics.jsonl, line 1", "expected fields by name"]),
        ("metrics.jsonl", '{"td_error": "low"}\n', ["td_error", "finite number", "low"]),
        ("metrics.jsonl", '{"td_error": NaN}\n', ["metrics.jsonl, line 1", "expected JSON"]),
        ("metrics.jsonl", "[" * 100_000 + "\n", ["metrics.jsonl, line 1", "expected JSON"]),
        ("metrics.jsonl", '{"td_error": 1' + "0" * 400 + "}\n", ["td_error", "finite number"]),
        ("metrics.jsonl", b"\xff\n", ["metrics.jsonl"]),
        ("summary.json", "{", ["summary.json", "expected JSON"]),
        ("summary.json", "3", ["summary.json", "expected fields by name, got 3"]),
    ],
)
def test_a_folder_that_cannot_be_read_is_one_line(tmp_path, run_command, name, content, words):
    folder = write_run(tmp_path / "run", KL_RUN, stage2_rows(), {})
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    done = run_command(["doctor", folder])
    assert done.status == 2 and len(done.error_lines) == 1 and done.out == "", done.err
    for word in words:
        assert word in done.err


def test_a_file_is_no_run_folder(tmp_path, run_command):
    (tmp_path / "file").write_text("")
    done = run_command(["doctor", tmp_path / "file"])
    assert done.status == 2 and "is not one" in done.err and len(done.error_lines) == 1


def test_settings_of_a_run_that_an_earlier_version_wrote_take_todays_defaults(tmp_path, run_command):
    folder = write_run(tmp_path / "run", KL_RUN, stage2_rows())
    settings = {name: value for name, value in to_plain(KL_RUN).items() if name not in ("resume", "save_freq")}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    assert run_command(["doctor", folder]).status == 0


def test_a_quickstart_without_a_stage_is_not_called_healthy(tmp_path, run_command):
    (tmp_path / "config.yaml").write_text("budget: 1.0\n")
    done = run_command(["doctor", tmp_path])
    assert done.status == 2 and len(done.error_lines) == 1
    assert "expected a quickstart in which a stage has begun" in done.err
