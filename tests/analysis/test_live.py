"""The checks during a run: told on standard error, each at most once in so many rows."""

from __future__ import annotations

from run_rows import KL_RUN, stage2_rows, write_run
from tiny_worlds import TINY_STAGE1

from dsrl_offpolicy.analysis.live import EVERY_ROWS, HealthMonitor


def test_a_healthy_run_hears_nothing(capsys):
    monitor = HealthMonitor(KL_RUN)
    assert not [verdict for row in stage2_rows(120) for verdict in monitor.observe(row)]
    assert capsys.readouterr().err == ""


def test_a_fault_is_told_when_it_is_seen_and_again_after_so_many_rows(capsys):
    monitor = HealthMonitor(KL_RUN)
    rows = stage2_rows(120, buffer_size=64, kl=0.0)
    told = {index: [v.name for v in monitor.observe(row)] for index, row in enumerate(rows, start=1)}
    # The buffer is named by the first row, the frozen actor once there are 8 rows; then every 50 rows.
    assert EVERY_ROWS == 50
    assert {index: names for index, names in told.items() if names} == {
        1: ["buffer"], 51: ["buffer"], 101: ["buffer"],
        8: ["actor_moves"], 58: ["actor_moves"], 108: ["actor_moves"],
    }  # fmt: skip
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 6 and lines[0].startswith("warning: buffer: expected") and "64 of 500" in lines[0]
    assert "increase replay_buffer_size" in lines[0]


def test_a_resumed_run_is_judged_with_the_rows_it_left(tmp_path, capsys):
    rows = stage2_rows(20, kl=0.0)
    folder = write_run(tmp_path / "run", KL_RUN, rows[:7])
    assert [v.name for v in HealthMonitor(KL_RUN, folder).observe(rows[7])] == ["actor_moves"]
    assert HealthMonitor(KL_RUN).observe(rows[7]) == []
    (folder / "metrics.jsonl").write_text("no row\n")
    capsys.readouterr()
    assert HealthMonitor(KL_RUN, folder).observe(rows[7]) == []
    assert capsys.readouterr().err.startswith("note: the live checks start over: ")


def test_stage2_tells_of_a_buffer_that_does_not_grow(tiny_base, tmp_path, run_command):
    folder = tmp_path / "run"
    flags = (
        "--env_id lever-pull-v3 --total_timesteps 320 --warmup_steps 64 --utd_ratio 1 --batch_size 8 --log_freq 2 "
        "--eval_freq 0 --num_envs 2 --train_episode_steps 40 --replay_buffer_size 4 --actor_hidden_dims 16 "
        "--critic_hidden_dims 16"
    )
    done = run_command(["stage2", *flags.split(), "--awsc_checkpoint", tiny_base, "--out", folder])
    assert done.status == 0, done.err
    warnings = [line for line in done.error_lines if line.startswith("warning: buffer")]
    assert len(warnings) == 1 and "4 of " in warnings[0]
    assert run_command(["doctor", folder]).status == 1


def test_stage1_tells_of_a_policy_that_stays_the_prior(tiny_demos, tiny_base, tmp_path, run_command):
    files = ["--demo_path", tiny_demos, "--awsc_checkpoint", tiny_base, "--out", tmp_path / "run"]
    done = run_command(["stage1", *files, *TINY_STAGE1, "--total_iters", "20", "--log_freq", "2", "--lr", "1e-12"])
    assert done.status == 0, done.err
    assert sum(line.startswith("warning: policy_moves: ") for line in done.error_lines) == 1
