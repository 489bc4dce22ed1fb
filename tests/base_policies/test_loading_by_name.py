"""``--base``: a file, ``kind:path``, or ``module:Class[:argument]`` of the user's own file."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from tiny_worlds import TASK, snapshot

from dsrl_offpolicy import load_base_policy
from dsrl_offpolicy.base_policies.awsc import PublishedPolicy
from dsrl_offpolicy.base_policies.shortcut_flow import ShortcutFlowPolicy
from dsrl_offpolicy.errors import InputError

KINDS = "kinds: awsc, dppo, lerobot, remote, shortcut_flow"

OWN = """
import torch
from dsrl_offpolicy import BasePolicy, Encoding
from dsrl_offpolicy.contracts import PolicyInfo

class Scaled(BasePolicy):
    info = PolicyInfo(obs_horizon=1, state_dim=2, feature_dim=2, latent_shape=(4, 1), action_shape=(4, 1),
                      executed_rows=slice(0, 4))
    def __init__(self, scale="0.5", denoising_steps=None):
        self.scale, self.steps = float(scale), denoising_steps
    def encode(self, obs):
        return Encoding(obs.flatten(1))
    def decode(self, encoding, latent):
        return self.scale * latent

class Bound(Scaled):
    def __init__(self):
        super().__init__()
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a policy of the user's own, which Python does not look into by itself."""
    (tmp_path / "own_policies.py").write_text(OWN)
    (tmp_path / "policies").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    monkeypatch.delitem(sys.modules, "own_policies", raising=False)
    return tmp_path


def test_a_file_by_its_path_and_by_its_kind(tiny_base):
    policies = [load_base_policy(spec) for spec in (tiny_base, str(tiny_base), f"shortcut_flow:{tiny_base}")]
    assert all(type(policy) is ShortcutFlowPolicy for policy in policies)
    assert len({policy.fingerprint() for policy in policies}) == 1


def test_a_published_file_by_its_path_and_by_its_kind(shared_dir):
    path = shared_dir / "fixtures" / "awsc" / "state_double_q.pt"
    by_path, by_kind = load_base_policy(path), load_base_policy(f"awsc:{path}")
    assert type(by_path) is type(by_kind) is PublishedPolicy
    assert by_path.fingerprint() == by_kind.fingerprint()


def test_a_file_whose_name_looks_like_another_kind_of_spec_is_the_file(here, tiny_base):
    for name in ("own_policies:Scaled", "awsc"):
        Path(name).write_bytes(tiny_base.read_bytes())
        assert type(load_base_policy(name)) is ShortcutFlowPolicy


@pytest.mark.parametrize(
    ("spec", "scale"),
    [("own_policies:Scaled", 0.5), ("own_policies:Scaled:", 0.5), ("own_policies:Scaled:2", 2.0)],
)
def test_a_class_of_ones_own_with_and_without_its_argument(here, spec, scale):
    policy = load_base_policy(spec)
    latent = torch.randn(1, 4, 1)
    encoding = policy.encode(policy.example_observation(1))
    assert torch.equal(policy.decode(encoding, latent), scale * latent)
    assert policy.steps is None and load_base_policy(spec, denoising_steps=4).steps == 4


@pytest.mark.parametrize(
    ("spec", "options", "words"),
    [
        (
            "own_policies:Scaled",
            {"obs_horizon": 2},
            ["cannot be made", "unexpected keyword argument 'obs_horizon'"],
        ),
        ("own_policies:Bound:weights.pt", {}, ["own_policies:Bound:weights.pt", "positional argument"]),
        ("own_policies:Scaled:fast", {}, ["ValueError", "'fast'", "own_policies.py, line 10"]),
        ("own_policies:Scald", {}, ["own_policies has no Scald", "did you mean Scaled?"]),
        ("own_policies:", {}, ["own_policies has no class", "module:Class"]),
        ("own_policies", {}, ["own_policies has no class", "module:Class"]),
        ("own_policies:torch", {}, ["subclass of dsrl_offpolicy.contracts.BasePolicy", "decode, encode"]),
        ("own_policies.sub:Scaled", {}, ["own_policies.sub", "nor a module here"]),
        ("shortcutflow:base.pt", {}, ["did you mean shortcut_flow?", KINDS]),
        ("shortcutflow", {}, ["did you mean shortcut_flow?", KINDS]),
        ("awsc", {}, ["awsc:PATH"]),
        ("shortcut_flow:", {}, ["shortcut_flow:PATH"]),
        ("shortcut_flow:none.pt", {}, ["none.pt does not exist"]),
        ("no_such_file.pt", {}, ["no_such_file.pt does not exist"]),
        ("a/b:c.pt", {}, ["a/b:c.pt does not exist"]),
        (".own:Scaled", {}, [".own:Scaled does not exist"]),
        ("policies", {}, ["policies is not a file"]),
    ],
)
def test_what_cannot_be_loaded_is_one_line(here, spec, options, words):
    with pytest.raises(InputError) as error:
        load_base_policy(spec, **options)
    message = str(error.value)
    assert "\n" not in message and message.startswith("base: "), message
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--base", "a.pt", "--awsc_checkpoint", "b.pt"], ["either --base or --awsc_checkpoint", "got both"]),
        ([], ["--base", "dsrl pretrain", "got nothing"]),
        (["--base", ""], ["--base", "dsrl pretrain", "got nothing"]),
        (["--base", "own_policies:Scaled", "--pred_horizon", "8"], ["unexpected keyword argument 'pred_horizon'"]),
        (["--base", "own_policies:Scaled"], ["39 state dimensions", TASK, "got 2"]),
    ],
)
def test_flags_that_name_no_policy_leave_nothing_behind(here, run_command, flags, words):
    before = snapshot(here)
    done = run_command(["stage2", "--env_id", TASK, *flags])
    assert done.status == 2 and len(done.error_lines) == 1, done.err
    assert all(word in done.err for word in words), done.err
    assert {name for name in snapshot(here) if "__pycache__" not in name} == set(before)


def test_stage_1_asks_for_the_critic_that_a_policy_lacks(here, run_command, tiny_demos):
    done = run_command(["stage1", "--base", "own_policies:Scaled", "--demo_path", tiny_demos, "--env_id", TASK])
    assert done.status == 2 and len(done.error_lines) == 1, done.err
    assert "critic" in done.err
