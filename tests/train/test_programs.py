"""Programs of ``torch.export`` compute what the policies compute, in a process that has torch alone."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_worlds import HalvingPolicy
from torch import Tensor, nn

from dsrl_offpolicy import load_base_policy, load_steered_policy
from dsrl_offpolicy.contracts import BasePolicy, Encoding
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.models.latent_layout import LatentLayout
from dsrl_offpolicy.models.latent_policy import LatentPolicy
from dsrl_offpolicy.train.programs import STEERED_PROGRAM, export_programs

TESTS = Path(__file__).parents[1]
ALONE = """
import sys, torch
steered, base = (torch.export.load(f"shared/{name}_policy.pt2").module() for name in ("steered", "base"))
state, noise = torch.load("given.pt")
torch.save([*steered(state, noise), *base(state, noise)], "found.pt")
assert not [name for name in sys.modules if name.startswith("dsrl_offpolicy")]
"""


def loaded(content: bytes) -> nn.Module:
    return torch.export.load(io.BytesIO(content)).module()


def latent_policy_over(base: BasePolicy, mode: str) -> LatentPolicy:
    """A latent policy that is not the prior."""
    torch.manual_seed(0)
    layout = LatentLayout(mode, *base.info.latent_shape, base.info.executed_rows, magnitude=2.0)
    policy = LatentPolicy(base.info.feature_dim, (16,), layout)
    nn.init.normal_(policy.net[-1].weight)
    return policy


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_folder_runs_where_there_is_torch_alone(run_command, golden_files: Path, tmp_path: Path):
    flags = ["--with_base", "--format", "torch_export"]
    done = run_command(["export", golden_files / "stage2", "--out", tmp_path / "shared", *flags])
    assert done.status == 0 and STEERED_PROGRAM in done.out, done.err
    assert "torch.export.load" in (tmp_path / "shared" / "README.md").read_text()
    policy = load_steered_policy(tmp_path / "shared")
    info = policy.base.info
    state, noise = torch.randn(5, info.obs_horizon, info.state_dim), torch.randn(5, *info.latent_shape)
    torch.save((state, noise), tmp_path / "given.pt")
    subprocess.run([sys.executable, "-P", "-c", ALONE], cwd=tmp_path, check=True, timeout=200)
    actions, latent, chunk = torch.load(tmp_path / "found.pt")
    encoding = policy.base.encode(state)
    close(actions, policy(state))
    close(
        latent, policy.latent_policy.layout.expand(policy.latent_policy.act(encoding.features, noise, True), noise)
    )
    close(chunk, policy.base.decode(encoding, noise))
    assert actions.shape == (5, info.act_horizon, info.action_dim) and chunk.shape == (5, *info.action_shape)
    assert not torch.allclose(chunk[:, info.executed_rows], actions, atol=1e-4)  # steering makes a difference


@torch.no_grad()
@pytest.mark.parametrize(("kind", "mode"), [("dppo", "act_horizon"), ("halving", "repeat")])
def test_other_policies_and_ways_to_steer(kind: str, mode: str):
    dppo = TESTS / "golden" / "dppo" / "residual_mlp"
    base = load_base_policy(f"dppo:{dppo}") if kind == "dppo" else HalvingPolicy()
    latent_policy, info = latent_policy_over(base, mode), base.info
    state, noise = torch.randn(4, info.obs_horizon, info.state_dim), torch.randn(4, *info.latent_shape)
    actions, latent = loaded(export_programs(base, latent_policy)[STEERED_PROGRAM])(state, noise)
    features = base.encode(state).features
    expected = latent_policy.layout.expand(latent_policy.act(features, noise, True), noise)
    close(latent, expected)
    close(actions, base.decode(Encoding(features), expected)[:, info.executed_rows])


IMAGES = """
import torch
from published_files import Layout, published_content
from test_programs import close, latent_policy_over, loaded
from dsrl_offpolicy import load_base_policy
from dsrl_offpolicy.train.programs import BASE_PROGRAM, export_programs

torch.save(published_content(Layout(cameras=2, visual_dim=6)), "awsc.pt")
base = load_base_policy("awsc.pt", obs_horizon=2, pred_horizon=8, denoising_steps=1)
program = loaded(export_programs(base, latent_policy_over(base, "full"))[BASE_PROGRAM])
rgb = torch.randint(256, (2, 2, 48, 70, 6), dtype=torch.uint8)
state, noise = torch.randn(2, 2, base.info.state_dim), torch.randn(2, *base.info.latent_shape)
with torch.no_grad():
    close(program(state, rgb, noise)[0], base.decode(base.encode({"state": state, "rgb": rgb}), noise))
"""


def test_images_of_any_size_where_the_policy_takes_any(tmp_path: Path):
    """In a process of its own: sizes that are symbols pass no check of types at run time."""
    path = os.pathsep.join(map(str, (TESTS.parent, TESTS, TESTS / "train")))
    told = {**os.environ, "PYTHONPATH": path}
    subprocess.run([sys.executable, "-P", "-c", IMAGES], cwd=tmp_path, env=told, check=True, timeout=200)


class Branching(HalvingPolicy):
    """Does one thing or another, as its numbers say."""

    def decode(self, encoding: Encoding, latent: Tensor) -> Tensor:
        return latent if float(latent.sum()) > 0 else 0.5 * latent


class Wordy(HalvingPolicy):
    """Reads an instruction."""

    def example_observation(self, batch: int) -> dict[str, object]:
        return {"state": super().example_observation(batch), "instruction": ["push"] * batch}


class Remembering(HalvingPolicy):
    """Decodes with what it has seen: the program would keep what it saw when it was exported."""

    seen = 0

    def decode(self, encoding: Encoding, latent: Tensor) -> Tensor:
        self.seen += 1
        return latent / self.seen


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (Branching, "torch cannot export Branching"),
        (Wordy, "Wordy also reads instruction"),
        (Remembering, "computes what Remembering does"),
    ],
)
def test_what_cannot_be_exported_is_one_line(policy: type[BasePolicy], words: str):
    base = policy()
    with pytest.raises(InputError, match=f"--format torch_export: .*{words}") as error:
        export_programs(base, latent_policy_over(base, "full"))
    assert "\n" not in str(error.value)
