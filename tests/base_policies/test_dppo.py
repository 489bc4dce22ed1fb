"""DPPO's policies: what its own code computed, what a folder says, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from dsrl_offpolicy import load_base_policy
from dsrl_offpolicy.base_policies.contract import check_contract
from dsrl_offpolicy.base_policies.dppo import DPPOPolicy
from dsrl_offpolicy.base_policies.dppo_sampling import ddim_steps
from dsrl_offpolicy.contracts import Encoding
from dsrl_offpolicy.errors import InputError

GOLDEN = Path(__file__).parents[1] / "golden" / "dppo"
MADE = ("residual_mlp", "cond_mlp", "unet", "unet_small_encoder")
TRAINED = ("hopper_mlp", "can_td20", "plain_mlp_hist2", "square_condmlp", "unet")


def loaded(folder: Path, **options: Any) -> DPPOPolicy:
    policy = load_base_policy(f"dppo:{folder}", **options)
    assert isinstance(policy, DPPOPolicy)
    return policy


def arrays_of(folder: Path) -> dict[str, Tensor]:
    with np.load(folder / "io.npz", allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def close(found: Tensor, expected: Tensor, atol: float = 1e-6) -> None:
    torch.testing.assert_close(found, expected.to(found.dtype), rtol=0, atol=atol)


# --- what DPPO's code computed -------------------------------------------------------------------------------


def check_recorded(folder: Path) -> None:
    """Hold a folder that DPPO trained against its recorded features, chain and actions."""
    arrays, policy = arrays_of(folder), loaded(folder)
    obs, noise = arrays["obs_raw"], arrays["noise"]
    encoding = policy.encode(obs)
    chain = policy.chain(encoding, noise)
    close(encoding.features, arrays["obs"].flatten(1))
    close(torch.stack(chain, dim=1), arrays["chain"])
    close(policy.decode(encoding, noise), arrays["env_actions"])
    model = loaded(folder, weights="model")
    low, high = policy.normalization.action_min, policy.normalization.action_max
    close(model.decode(encoding, noise), (arrays["actions_model_weights"] + 1) / 2 * (high - low) + low)
    assert float((model.decode(encoding, noise) - policy.decode(encoding, noise)).abs().mean()) > 1e-2


@pytest.mark.parametrize("name", TRAINED)
def test_what_dppo_trained_acts_as_in_dppo(shared_dir: Path, name: str) -> None:
    check_recorded(shared_dir / "fixtures" / "dppo" / name)


def test_two_frames_layer_norm_and_all_three_clips() -> None:
    check_recorded(GOLDEN / "plain_mlp_hist2")
    info = loaded(GOLDEN / "plain_mlp_hist2").info
    assert (info.obs_horizon, info.state_dim, info.feature_dim) == (2, 11, 22)
    assert info.executed_rows == slice(0, 4)  # also with two frames: row 0 belongs to the newest


@pytest.mark.parametrize("weights", ["ema", "model"])
@pytest.mark.parametrize("name", MADE)
def test_every_network_computes_what_dppos_does(name: str, weights: str) -> None:
    arrays, policy = arrays_of(GOLDEN / name), loaded(GOLDEN / name, weights=weights)
    encoding = policy.encode(arrays["obs"])  # no normalization.npz: states are taken as they are
    expected = arrays[f"chain_{weights}"]
    close(torch.stack(policy.chain(encoding, arrays["noise"]), dim=1), expected)
    close(policy.decode(encoding, arrays["noise"]), expected[:, -1])
    inside = expected[:, -1].abs() < 1
    assert 0.2 < float(inside.float().mean()) < 1  # the clip of x0 is met, and not everywhere


def test_fine_tuned_weights_by_their_name() -> None:
    arrays = arrays_of(GOLDEN / "fine_tuned")
    for options, name in (({}, "actor"), ({"weights": "actor"}, "actor"), ({"weights": "actor_ft"}, "actor_ft")):
        policy = loaded(GOLDEN / "fine_tuned", **options)
        chain = policy.chain(policy.encode(arrays["obs"]), arrays["noise"])
        close(torch.stack(chain, dim=1), arrays[f"chain_{name}"])


def test_a_fine_tuned_policy_of_dppo(shared_dir: Path, tmp_path: Path) -> None:
    folder = shared_dir / "fixtures" / "dppo" / "finetuned_ppo"
    arrays, policy = arrays_of(folder), loaded(folder)
    encoding = policy.encode(arrays["obs"][:, None])
    close(policy.decode(encoding, arrays["noise"]), arrays["actions_ft0"])
    # The last three of the five steps were fine-tuned, which its YAML does not say.
    changed = copied(folder, tmp_path, model={"ft_denoising_steps": 3})
    tuned = loaded(changed, weights="actor_ft")
    close(tuned.decode(encoding, arrays["noise"]), arrays["actions_ft3"])


def test_schedules_are_those_that_were_recorded(shared_dir: Path) -> None:
    for name, steps in (("hopper_mlp", (20, 5)), ("square_condmlp", (100, 8))):
        arrays = arrays_of(shared_dir / "fixtures" / "dppo" / name)
        found = ddim_steps(*steps)
        assert [step.time for step in found] == arrays["ddim_t"].tolist()
        close(torch.tensor([step.signal for step in found]), arrays["ddim_alphas"].sqrt(), 0)
        close(torch.tensor([step.next_signal for step in found]), arrays["ddim_alphas_prev"].sqrt(), 0)


# --- what a folder says --------------------------------------------------------------------------------------


def copied(folder: Path, where: Path, **changes: Any) -> Path:
    """A copy of a folder, with changes to its YAML: mappings are merged, None takes a key away."""
    copy = Path(shutil.copytree(folder, where / folder.name))
    file = copy / "dsrl_model.yaml"
    settings = yaml.safe_load(file.read_text())

    def merge(into: dict, new: dict) -> None:
        for key, value in new.items():
            if isinstance(value, dict):
                merge(into[key], value)
            elif value is None:
                into.pop(key)
            else:
                into[key] = value

    merge(settings, changes)
    file.chmod(0o644)
    file.write_text(yaml.safe_dump(settings))
    return copy


def test_normalisation_by_hand() -> None:
    policy = loaded(GOLDEN / "plain_mlp_hist2")
    normal = policy.normalization
    low, high = normal.obs_min.clone(), normal.obs_max.clone()
    # The minimum becomes -1, the maximum 2 (r / (r + 1e-6) - .5) = 1 within 2e-6 / r, and nothing is clamped:
    # one range above the maximum is 3.
    state = torch.stack([low, high, 2 * high - low]).float()
    frames = policy.encode_frames(state)
    close(frames[0], -torch.ones(11), 1e-5)
    close(frames[1], torch.ones(11), 1e-5)
    close(frames[2], 3 * torch.ones(11), 1e-5)
    stack = torch.stack([state[0], state[1]])[None]  # oldest first
    close(policy.encode(stack).features, torch.cat([frames[0], frames[1]])[None])
    close(policy.encode({"state": stack}).features, policy.encode(stack).features)
    chunk = torch.tensor([-1.0, 0.0, 1.0]).expand(1, 4, 3)
    actions = normal.to_actions(chunk)
    expected = torch.stack(
        [normal.action_min[0], (normal.action_min[1] + normal.action_max[1]) / 2, normal.action_max[2]]
    )
    close(actions[0, 0], expected.float())
    close(normal.of_actions(actions), chunk)


def test_fewer_rows_and_other_steps() -> None:
    policy = loaded(GOLDEN / "residual_mlp", act_horizon=2, denoising_steps=20, obs_horizon=1, pred_horizon=4)
    assert policy.info.executed_rows == slice(0, 2) and len(policy.steps) == 20
    default = loaded(GOLDEN / "residual_mlp")
    assert default.info.executed_rows == slice(0, 3) and len(default.steps) == 8
    assert policy.fingerprint() != default.fingerprint() == loaded(GOLDEN / "residual_mlp").fingerprint()
    assert loaded(GOLDEN / "residual_mlp", weights="model").fingerprint() != default.fingerprint()


@pytest.mark.parametrize("name", ["plain_mlp_hist2", "unet", "fine_tuned"])
def test_the_contract_holds_and_weights_are_frozen(name: str) -> None:
    policy = loaded(GOLDEN / name)
    check_contract(policy, name, torch.device("cpu"))
    assert not any(value.requires_grad for value in policy.parameters()) and policy.critic is None
    latent = torch.zeros(1, *policy.info.latent_shape, requires_grad=True)
    features = torch.zeros(1, policy.info.feature_dim)
    policy.decode(Encoding(features), latent).sum().backward()
    assert float(latent.grad.abs().sum()) > 0


# --- what is refused -----------------------------------------------------------------------------------------


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(InputError) as error:
        loaded(folder, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def with_tensors(folder: Path, change: Callable[[dict], object]) -> Path:
    content = torch.load(folder / "checkpoint.pt", weights_only=True)
    change(content)
    torch.save(content, folder / "checkpoint.pt")
    return folder


LAYER = "network.mlp_mean.layers.1.l2.bias"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c["ema"].pop(LAYER), "layers.1.l2.bias: expected shape (16,), got none"),
        (lambda c: c["ema"].update({"network.extra": torch.ones(2)}), "extra: expected shape none, got (2,)"),
        (lambda c: c["ema"].update({"head.extra": torch.ones(2)}), "'head.extra': expected one of network"),
        (lambda c: c["ema"].pop("network.time_embedding.3.bias"), "tensor time_embedding.3.bias: expected one"),
        (lambda c: c["ema"].update({LAYER: torch.ones(16, 3)}), "l2.bias: expected shape (16,), got (16, 3)"),
        (lambda c: c["ema"]["network.mlp_mean.layers.0.bias"].fill_(torch.nan), "expected finite numbers"),
        (lambda c: c.pop("ema"), "expected an entry 'ema'"),
        (lambda c: c.pop("model"), "expected an entry 'model'"),
        (lambda c: c["ema"].update({"network.backbone.x": torch.ones(2)}), "got one of images (ViT)"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit(tmp_path: Path, change: Callable[[dict], object], said: str) -> None:
    folder = with_tensors(copied(GOLDEN / "residual_mlp", tmp_path), change)
    message = refusal(folder)
    assert said in message and "checkpoint.pt" in message and message.startswith("base: ")


STRANGE = [torch.ones(()), torch.ones(0), torch.ones(2, 3, 5, 7), torch.ones(3, dtype=torch.long), "text", None]


@pytest.mark.parametrize("name", ["residual_mlp", "cond_mlp", "unet_small_encoder", "plain_mlp_hist2"])
def test_no_tensor_of_another_kind_is_a_traceback(tmp_path: Path, name: str) -> None:
    folder = copied(GOLDEN / name, tmp_path)
    content = torch.load(folder / "checkpoint.pt", weights_only=True)
    for i, tensor in enumerate(dict(content["ema"])):
        damaged = {**content["ema"], tensor: STRANGE[i % len(STRANGE)]}
        torch.save({**content, "ema": damaged}, folder / "checkpoint.pt")
        assert "checkpoint.pt" in refusal(folder), tensor


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": {"use_ddim": False}}, "use_ddim: expected True, got False: DDPM draws noise in every"),
        ({"model": {"use_ddim": None}}, "model.use_ddim: expected True, got none"),
        ({"model": {"predict_epsilon": False}}, "model.predict_epsilon: expected True"),
        ({"model": {"ddim_steps": None}}, "expected a field 'ddim_steps', got none"),
        ({"model": {"ddim_steps": 21}}, "ddim_steps: expected at most 20, got 21"),
        ({"act_steps": 5}, "act_steps: expected at most 4, got 5"),
        ({"model": {"network": {"activation_type": "Relu"}}}, "activation: expected ReLU, ELU"),
        ({"model": {"network": {"_target_": "model.VisionDiffusionMLP"}}}, "got model.VisionDiffusionMLP"),
        ({"obs_dim": 6}, "tensor mlp_mean.layers.0.weight: expected shape (16, 22), got (16, 21)"),
        ({"action_dim": 3}, "tensor mlp_mean.layers.0.weight: expected shape (16, 25), got (16, 21)"),
        ({"model": {"horizon_steps": "${horizon}"}}, "horizon_steps: expected a whole number, got None"),
    ],
)  # fmt: skip
def test_a_yaml_that_does_not_fit(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    assert said in refusal(copied(GOLDEN / "residual_mlp", tmp_path, **changes))


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("residual_mlp", {"weights": "actor"}, "weights: expected ema or model, for"),
        ("fine_tuned", {"weights": "ema"}, "weights: expected actor or actor_ft, for"),
        ("residual_mlp", {"obs_horizon": 2}, "obs_horizon: expected 1, the YAML's cond_steps, got 2"),
        ("residual_mlp", {"pred_horizon": 8}, "pred_horizon: expected 4, the YAML's horizon_steps, got 8"),
        ("residual_mlp", {"act_horizon": 5}, "act_horizon: expected a whole number from 1 to 4, got 5"),
        ("residual_mlp", {"denoising_steps": 0}, "denoising_steps: expected a whole number from 1 to 20, got 0"),
    ],
)
def test_options_that_contradict_the_folder(name: str, options: dict[str, Any], said: str) -> None:
    assert said in refusal(GOLDEN / name, **options)


def test_fine_tuned_steps_must_be_said(tmp_path: Path) -> None:
    folder = copied(GOLDEN / "fine_tuned", tmp_path, model={"ft_denoising_steps": None})
    assert "weights: expected ft_denoising_steps >= 1 in the YAML" in refusal(folder, weights="actor_ft")


def test_missing_files(tmp_path: Path) -> None:
    assert "expected a folder with checkpoint.pt of DPPO" in refusal(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "expected a DPPO checkpoint" in refusal(tmp_path / "empty")
    folder = copied(GOLDEN / "residual_mlp", tmp_path)
    (folder / "dsrl_model.yaml").unlink()
    assert "expected dsrl_model.yaml in" in refusal(folder) and "activation_type" in refusal(folder)
    (folder / "dsrl_model.yaml").write_text("- 1\n")
    assert "expected a mapping" in refusal(folder)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"obs_min": None}, "expected an array 'obs_min', got none"),
        ({"obs_max": np.ones(10)}, "obs_max: expected 11 finite numbers, got [10]"),
        ({"action_min": np.full(3, np.nan)}, "action_min: expected 3 finite numbers"),
        ({"action_max": np.full(3, 2.0)}, "expected actions within [-1, 1]"),
        ({"obs_max": np.array([{}] * 11)}, "expected arrays of numbers"),
    ],
)
def test_a_normalisation_that_does_not_fit(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    folder = copied(GOLDEN / "plain_mlp_hist2", tmp_path)
    with np.load(folder / "normalization.npz") as arrays:
        content = {**arrays, **changes}
    np.savez(folder / "normalization.npz", **{name: v for name, v in content.items() if v is not None})
    message = refusal(folder)
    assert said in message and "normalization.npz" in message


def test_a_normalisation_that_is_none(tmp_path: Path) -> None:
    folder = copied(GOLDEN / "plain_mlp_hist2", tmp_path)
    (folder / "normalization.npz").write_bytes(b"PK\x03\x04 and nothing else")
    assert "expected arrays of numbers" in refusal(folder)


def test_a_checkpoint_that_holds_code_is_refused_unread(tmp_path: Path) -> None:
    folder = copied(GOLDEN / "residual_mlp", tmp_path)

    class Code:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"model": Code()}, folder / "checkpoint.pt")
    assert "holds other code" in refusal(folder)
    assert not (tmp_path / "ran").exists()


def test_states_of_another_shape_are_refused() -> None:
    policy = loaded(GOLDEN / "residual_mlp")
    for obs in (torch.zeros(2, 1, 6), torch.zeros(2, 2, 5), torch.zeros(2, 5), {"rgb": torch.zeros(1)}):
        with pytest.raises(InputError, match=r"obs: expected states \[B, 1, 5\]"):
            policy.encode(obs)
