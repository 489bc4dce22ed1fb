"""Runs through a server are those of the policy itself, and clients and servers that die cost nobody an answer."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path

import pytest
import torch
import yaml
from remote_worlds import Served, counts, honest, strange_server
from stoppable_runs import assert_same, content, finish, rows, start, wait_for_rows

from dsrl_offpolicy import load_base_policy
from dsrl_offpolicy.contracts import Encoding
from dsrl_offpolicy.errors import InputError

CLIENT = Path(__file__).resolve().parents[1] / "remote_client.py"
# 40 warm-up transitions, then 160 that earn a gradient step each. Episodes have 6 macro-steps of 2 env steps.
FLAGS = (
    "--env_id latent_worlds:Reach-v0 --num_envs 2 --total_timesteps 400 --warmup_steps 80 --utd_ratio 1 "
    "--batch_size 8 --log_freq 10 --eval_freq 200 --eval_episodes 2 --save_freq 40 "
    "--actor_hidden_dims 16 --critic_hidden_dims 16 --device cpu"
)


def client(port: int, requests: int, seed: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(CLIENT), str(port), str(requests), str(seed)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def begun(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None and process.stdout.readline() == "begun\n"


def ended(process: subprocess.Popen[str]) -> tuple[list[int], str]:
    """Right answers, retries and reconnects of a client, and its notes."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and "Traceback" not in err, err
    return [int(number) for number in out.split()], err


@pytest.fixture(autouse=True)
def paths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes find the package and the worlds where this one does."""
    monkeypatch.setenv("PYTHONPATH", ":".join(path for path in sys.path if path))


def test_a_client_that_is_killed_costs_the_other_nothing():
    with Served("tiny_worlds:HalvingPolicy") as server:
        one, other = client(server.port, 600, 1), client(server.port, 10**9, 2)
        begun(one), begun(other)
        other.send_signal(signal.SIGKILL)
        other.communicate(timeout=60)
        assert ended(one) == ([600, 0, 0], "")
        third = client(server.port, 20, 3)
        begun(third)
        assert ended(third)[0] == [20, 0, 0]
        left = counts(server.stop()[1])
    assert left["connections"] == 3 and left["refused"] == 0 and left["undelivered"] <= 1  # that of the killed one
    # Loading takes 4 requests, then two for each answer; the killed client had at least 10.
    assert left["requests"] >= (4 + 2 * 600) + (4 + 2 * 20) + (4 + 2 * 10)


def test_a_server_that_is_killed_and_comes_back_costs_no_answer():
    with Served("tiny_worlds:HalvingPolicy") as server:
        clients = [client(server.port, 1200, seed) for seed in (1, 2)]
        for process in clients:
            begun(process)
        server.kill()
        time.sleep(0.3)
        with Served("tiny_worlds:HalvingPolicy", port=server.port) as again:
            for process in clients:
                (right, retries, reconnects), said = ended(process)
                assert right == 1200 and retries >= 1 and reconnects == 1
                assert said.count("is gone") == 1 and said.count("answers again after") == 1
            left = counts(again.stop()[1])
    assert left["connections"] == 2 and left["refused"] == left["undelivered"] == 0
    assert 2 <= left["requests"] < 2 * (4 + 2 * 1200)


def test_a_server_that_hangs_is_left_after_the_time_out_and_asked_again():
    encoding, latent = Encoding(torch.zeros(1, 4)), torch.ones(1, 4, 1)
    with Served("tiny_worlds:HalvingPolicy") as server:
        policy = load_base_policy(server.spec)
        patient = policy.connection.address
        policy.connection.address = replace(patient, timeout=0.3, patience=1.0)
        server.suspend()
        with pytest.raises(InputError, match=r"not answered for \d s \(\d attempts, last: .*\); start it again"):
            policy.decode(encoding, latent)
        server.resume()
        policy.connection.address = patient
        assert torch.equal(policy.decode(encoding, latent), 0.5 * latent)
        assert policy.counts.reconnects >= 1 and policy.counts.retries >= 1


def test_an_answer_that_comes_too_late_is_never_taken_for_another():
    delays = chain([0.0] * 4, [3.0], repeat(0.0))  # after the trial, one answer comes late

    def late(message):
        time.sleep(next(delays))
        return honest(message)

    with strange_server(late) as port:
        policy = load_base_policy(f"remote:127.0.0.1:{port}", timeout=2)
        for value in (1.0, 2.0):
            latent = torch.full((1, 4, 1), value)
            assert torch.equal(policy.decode(Encoding(torch.zeros(1, 4)), latent), 0.5 * latent)
        assert policy.counts.retries >= 1 and policy.counts.reconnects >= 1


def test_a_server_that_comes_back_with_another_policy_is_refused():
    with Served("remote_worlds:Leaning:0.5") as server:
        policy = load_base_policy(server.spec)
    with Served("remote_worlds:Leaning:0.25", port=server.port), pytest.raises(InputError) as error:
        policy.decode(Encoding(torch.ones(1, 4)), torch.ones(1, 4, 1))
    assert "serves another policy than before" in str(error.value)


@pytest.fixture(scope="module")
def local_run(run_command, tmp_path_factory) -> Path:
    """Stage 2 over the policy itself."""
    folder = tmp_path_factory.mktemp("local") / "run"
    done = run_command(["stage2", *FLAGS.split(), "--base", "remote_worlds:Leaning", "--out", folder])
    assert done.status == 0, done.err
    return folder


def assert_same_run(folder: Path, other: Path) -> None:
    assert rows(folder) == rows(other)
    for name in ("policy", "training", "counters"):
        assert_same(content(folder)[name], content(other)[name], name)


def test_stage2_through_a_server_that_is_killed_and_comes_back_is_stage2_to_the_bit(local_run, tmp_path):
    folder = tmp_path / "run"
    with Served("remote_worlds:Leaning") as server:
        process = start(f"{FLAGS} --base {server.spec} --out {folder}")
        wait_for_rows(process, folder, 2)
        server.kill()
        with Served("remote_worlds:Leaning", port=server.port) as again:
            status, said = finish(process)
            assert status == 0 and "is gone" in said and "answers again" in said, said
            assert counts(again.stop()[1])["requests"] > 10
    assert_same_run(folder, local_run)


def test_a_server_that_stays_away_ends_the_run_which_resumes_elsewhere_but_not_over_another_policy(
    local_run, run_command, tmp_path
):
    folder = tmp_path / "run"
    with Served("remote_worlds:Leaning") as server:
        process = start(f"{FLAGS} --base {server.spec}?patience=0.5 --out {folder}")
        wait_for_rows(process, folder, 8)
        server.kill()
        status, said = finish(process)
    lines = said.splitlines()
    assert status == 2 and "Traceback" not in said
    assert "dsrl stage2: error: base: remote:127.0.0.1" in lines[-1] and "start it again, then resume" in lines[-1]
    settings = yaml.safe_load((folder / "config.yaml").read_text())

    def resume_over(spec: str) -> tuple[int, str]:
        (folder / "config.yaml").write_text(yaml.safe_dump({**settings, "base": spec}))
        done = run_command(["stage2", "--resume", folder])
        return done.status, done.err

    with Served("remote_worlds:Leaning:0.25") as other:
        status, said = resume_over(other.spec)
        assert status == 2 and "the base policy changed since the run began" in said
    with Served("remote_worlds:Leaning") as elsewhere:
        status, said = resume_over(elsewhere.spec)
        assert status == 0, said
    assert_same_run(folder, local_run)


def test_noise_aliasing_works_through_a_server_and_gradients_do_not(run_command, tmp_path):
    with Served("remote_worlds:Leaning") as server:
        few = [*FLAGS.split(), "--total_timesteps", 120, "--eval_freq", 0, "--base", server.spec]
        done = run_command(["stage2", *few, "--algo", "na", "--out", tmp_path / "na"])
        assert done.status == 0, done.err
        done = run_command(["stage2", *few, "--algo", "lps", "--out", tmp_path / "lps"])
        assert done.status == 2 and "passes none on; use na" in done.error_lines[-1]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--base", "none.pt"], ["none.pt does not exist"]),
        ([], ["--base", "got nothing"]),
        (["--base", "tiny_worlds:HalvingPolicy", "--port", 70000], ["port", "70000"]),
        (["--base", "tiny_worlds:HalvingPolicy", "--host", "no-such-host.invalid"], ["cannot listen on no-such"]),
        (["--base", "tiny_worlds:HalvingPolicy", "--max_batch", 0], ["max_batch", "0"]),
        (["--base", "tiny_worlds:HalvingPolicy", "--batch_wait", -1], ["batch_wait", "-1"]),
    ],
)
def test_bad_input_is_one_line(run_command, flags, words):
    done = run_command(["serve", *flags])
    assert done.status == 2 and len(done.error_lines) == 1 and done.err.startswith("dsrl serve: error: ")
    assert all(word in done.err for word in words), done.err


def test_a_port_in_use_is_one_line(run_command):
    with Served("tiny_worlds:HalvingPolicy") as server:
        done = run_command(["serve", "--base", "tiny_worlds:HalvingPolicy", "--port", server.port])
    assert done.status == 2 and len(done.error_lines) == 1
    assert f"cannot listen on 127.0.0.1:{server.port}" in done.err and "another --port" in done.err


def test_without_its_libraries_the_extra_is_named(run_command, monkeypatch):
    for name in ("remote_server", "remote_connection", "remote"):
        monkeypatch.delitem(sys.modules, f"dsrl_offpolicy.base_policies.{name}", raising=False)
    for name in [n for n in sys.modules if n.split(".")[0] == "websockets"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "websockets", None)
    cure = "pip install 'dsrl_offpolicy[remote]'"
    done = run_command(["serve", "--base", "tiny_worlds:HalvingPolicy"])
    assert done.status == 2 and cure in done.err and len(done.error_lines) == 1
    with pytest.raises(InputError) as error:
        load_base_policy("remote:127.0.0.1:1")
    assert cure in str(error.value)
