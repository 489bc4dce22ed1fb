"""``dsrl checkpoint inspect``: what it says of every kind of checkpoint, and of what is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from published_files import Layout, critic_shapes, published_content, velocity_shapes
from tiny_worlds import TASK

from dsrl_offpolicy.cli import TOOLS
from dsrl_offpolicy.files.checkpoint import read_tensors


def inspected(run_command, path: Path) -> dict:
    done = run_command(["checkpoint", "inspect", path, "--json"])
    assert done.status == 0 and done.err == ""
    return json.loads(done.out)


def size(shapes: dict) -> int:
    return sum(torch.Size(shape).numel() for shape in shapes.values())


def test_help_lists_the_tool(run_command):
    assert all(name in run_command(["--help"]).out for name in TOOLS)
    assert "inspect" in run_command(["checkpoint", "--help"]).out
    assert "--json" in run_command(["checkpoint", "inspect", "--help"]).out
    done = run_command(["chekpoint"])
    assert done.status == 2 and "did you mean checkpoint?" in done.err


def test_a_published_checkpoint(run_command, tmp_path):
    layout = Layout(cameras=2, visual_dim=4, ensemble=3, critic_prefix="q_network")
    path = tmp_path / "awsc.pt"
    torch.save(published_content(layout), path)
    report = inspected(run_command, path)
    assert (report["kind"], report["format"], report["bytes"]) == (
        "base_policy", "published AWSC", path.stat().st_size,
    )  # fmt: skip
    assert len(report["weights"]) == 4
    assert (report["action_dim"], report["velocity_widths"], report["embed_dim"]) == (3, [8, 16], 6)
    assert report["critic"] == {
        "class": "ensemble", "prefix": "q_network", "heads": 3, "hidden_dims": [10, 11, 12], "act_horizon": 4,
    }  # fmt: skip
    assert report["visual_encoder"] == {"channels": 6, "cameras": 2, "visual_dim": 4}
    # G = 2 (4 + 5) = 18 = o (V + S): 1 and 2 and 3 frames leave a state, 6 frames of 3 features do not
    assert report["feature_dim"] == 18
    assert report["possible_obs_horizon_and_state_dim"] == [[1, 14], [2, 5], [3, 2]]
    expected = size(velocity_shapes(layout, "velocity_net"))
    assert report["parameters"]["ema_agent.velocity_net"] == expected
    assert report["parameters"]["agent.q_network"] == size(critic_shapes(layout, "q_network"))
    # Conv and linear layers of the visual encoder: 6 -> 16 -> 32 -> 64 -> 128 (3 x 3), 128 -> 128, 128 -> 4
    visual = 880 + 4640 + 18496 + 73856 + 16512 + 516
    assert report["parameters"]["visual_encoder"] == visual


def test_a_published_checkpoint_of_one_agent_without_images(run_command, tmp_path):
    path = tmp_path / "awsc.pt"
    content = published_content(Layout())
    torch.save({"agent": content["agent"]}, path)
    report = inspected(run_command, path)
    assert report["weights"] == ["agent.velocity_net", "agent.velocity_net_ema"]
    assert report["visual_encoder"] is None and report["critic"]["class"] == "double"
    assert report["possible_obs_horizon_and_state_dim"] == [[1, 10], [2, 5], [5, 2], [10, 1]]


def test_our_own_checkpoints(run_command, tiny_base, tiny_stage1):
    base = inspected(run_command, tiny_base)
    content = read_tensors(tiny_base, "file", "test")
    assert (base["kind"], base["format"], base["gradient_steps"]) == ("base_policy", "dsrl_offpolicy", 20)
    assert base["spec"] == content["spec"] and base["spec"]["env_id"] == TASK
    assert base["parameters"]["critic"] == sum(v.numel() for v in content["critic"].values())
    networks = ("encoder", "velocity_net", "velocity_net_ema", "critic", "critic_target", "value")
    assert base["tensors"] > sum(len(content[name]) for name in networks)  # and those of the optimiser

    stage1 = inspected(run_command, tiny_stage1 / "checkpoints" / "last.pt")
    assert (stage1["kind"], stage1["gradient_steps"], stage1["env_id"]) == ("stage1", 6, TASK)
    assert stage1["steering"]["steer_mode"] == "full" and len(stage1["base_fingerprint"]) == 64


def test_json_stays_json_where_the_latents_are_unbounded(run_command, tiny_stage1, tmp_path):
    content = read_tensors(tiny_stage1 / "checkpoints" / "last.pt", "file", "test")
    content["steering"]["action_magnitude"] = float("inf")
    torch.save(content, tmp_path / "free.pt")
    done = run_command(["checkpoint", "inspect", tmp_path / "free.pt", "--json"])
    assert "Infinity" not in done.out and json.loads(done.out)["steering"]["action_magnitude"] == "inf"


def test_the_table_for_a_person_holds_the_same(run_command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(published_content(Layout()), "awsc[1].pt")
    done = run_command(["checkpoint", "inspect", "awsc[1].pt"])
    assert done.status == 0
    shown = " ".join(done.out.split())
    for words in (
        "awsc[1].pt",
        "published AWSC",
        "critic.hidden_dims │ 10, 11, 12",
        "(2, 5)",
        "visual_encoder │ none",
    ):
        assert words in shown


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], ["inspect"]),
        (["inspect"], ["FILE"]),
        (["look", "last.pt"], ["'look'", "inspect"]),
        (["inspect", "last.pt", "--jsn"], ["--jsn"]),
        (["inspect", "nowhere.pt"], ["nowhere.pt", "does not exist"]),
        (["inspect", "."], ["is not a file"]),
        (["inspect", "text.pt"], ["text.pt"]),
        (["inspect", "empty.pt"], ["empty.pt"]),
        (["inspect", "half.pt"], ["half.pt"]),
        (["inspect", "other.pt"], ["other.pt", "base_policy", "stage1", "published"]),
        (["inspect", "future.pt"], ["format version 1", "99"]),
        (["inspect", "headless.pt"], ["headless.pt", "critic", "none"]),
    ],
)
def test_what_cannot_be_inspected_is_one_line_and_status_2(run_command, tmp_path, monkeypatch, argv, words):
    monkeypatch.chdir(tmp_path)
    content = published_content(Layout())
    torch.save(content, "half.pt")
    Path("half.pt").write_bytes(Path("half.pt").read_bytes()[:5000])
    Path("text.pt").write_text("hello")
    Path("empty.pt").touch()
    torch.save({"kind": "something", "weights": torch.zeros(2)}, "other.pt")
    torch.save({"kind": "stage1", "format_version": 99}, "future.pt")
    for name in critic_shapes(Layout(), "critic"):
        del content["ema_agent"][name]
    torch.save(content, "headless.pt")
    done = run_command(["checkpoint", *argv])
    assert done.status == 2 and done.out == ""
    assert len(done.error_lines) == 1 and done.err.startswith("dsrl checkpoint: error: ")
    for word in words:
        assert word in done.err
