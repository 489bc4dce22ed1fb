"""Published AWSC checkpoints: what their shapes say, what is computed from them, and what is refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import reference_forward as reference
import torch
from published_files import Layout, critic_shapes, published_content
from torch import Tensor

from dsrl_offpolicy import load_base_policy
from dsrl_offpolicy.base_policies.shortcut_flow import ShortcutFlowPolicy
from dsrl_offpolicy.contracts import Encoding, RewardTerms
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.files.checkpoint import read_tensors, save_checkpoint

WEIGHTS = ("agent.velocity_net", "agent.velocity_net_ema", "ema_agent.velocity_net", "ema_agent.velocity_net_ema")
SMALL = Layout()
T = 8
# A file of each kind; G = o * (V + S), and Q^A takes H * A + G.
LAYOUTS = {
    "double": SMALL,
    "double q_network": replace(SMALL, critic_prefix="q_network", hidden_dims=(7, 7, 7)),
    "ensemble": replace(SMALL, ensemble=5, action_dim=2, act_horizon=3),
    "ensemble q_network": replace(SMALL, ensemble=3, critic_prefix="q_network"),
    "one frame, three levels": replace(SMALL, obs_horizon=1, widths=(8, 16, 24), embed_dim=8),
    "three frames, one level": replace(SMALL, obs_horizon=3, widths=(16,), state_dim=2),
    "one camera": replace(SMALL, cameras=1, visual_dim=6),
    "two cameras, ensemble": replace(SMALL, cameras=2, visual_dim=4, ensemble=4),
}


def written(folder: Path, content: object) -> Path:
    path = folder / "awsc.pt"
    torch.save(content, path)
    return path


def loaded(folder: Path, layout: Layout, **arguments: object) -> ShortcutFlowPolicy:
    given = {"obs_horizon": layout.obs_horizon, "pred_horizon": T, **arguments}
    return load_base_policy(written(folder, published_content(layout)), **given)  # type: ignore[arg-type]


def refusal(path: Path, **arguments: object) -> str:
    with pytest.raises(InputError) as error:
        load_base_policy(path, **{"pred_horizon": T, **arguments})  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
    return str(error.value)


# --- what the published code computed ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded(shared_dir: Path) -> tuple[Path, dict[str, Tensor]]:
    folder = shared_dir / "fixtures" / "awsc"
    with np.load(folder / "state_double_q.npz") as arrays:
        return folder / "state_double_q.pt", {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_published_file_acts_and_scores_as_the_published_code_did(recorded: tuple, weights: str) -> None:
    path, arrays = recorded
    agent = weights.split(".")[0]
    policy = load_base_policy(path, weights=weights)  # o = 2, T = 16, H = 8 are the defaults
    with torch.no_grad():
        features = policy.encode(arrays["state"]).features
        chunk = policy.decode(Encoding(features), arrays["latent"])
        scored = arrays[f"actions.{agent}.velocity_net"][:, policy.critic.rows]
        q = policy.critic.q_values(features, scored)
    torch.testing.assert_close(features, arrays["obs_features"], rtol=0, atol=1e-5)
    torch.testing.assert_close(chunk, arrays[f"actions.{weights}"], rtol=0, atol=1e-5)
    torch.testing.assert_close(q, arrays[f"q_values.{agent}"], rtol=0, atol=1e-5)


# --- what other files compute --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_every_layout_computes_what_plain_functions_of_its_tensors_do(
    tmp_path: Path, kind: str, weights: str
) -> None:
    layout, (agent, net) = LAYOUTS[kind], weights.split(".")
    content = published_content(layout)
    policy = loaded(tmp_path, layout, weights=weights)
    generator = torch.Generator().manual_seed(3)
    o, k = layout.obs_horizon, layout.cameras
    state = 20 * torch.randn((4, o, layout.state_dim), generator=generator)  # nothing normalises or clamps it
    rgb = torch.randint(0, 256, (4, o, 20, 17, 3 * k), generator=generator).to(torch.uint8)
    frames = [
        ([reference.visual_features(content["visual_encoder"], rgb[:, i])] if k else []) + [state[:, i]]
        for i in range(o)
    ]
    expected = torch.cat([features for frame in frames for features in frame], dim=1)
    obs = {"state": state, "rgb": rgb} if k else state
    latent = torch.randn((4, T, layout.action_dim), generator=generator)
    with torch.no_grad():
        features = policy.encode(obs).features
        chunk = policy.decode(Encoding(features), latent)
        q = policy.critic.q_values(features, chunk[:, policy.critic.rows])
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-5)
    actions = reference.actions(content[agent], net, len(layout.widths), expected, latent)
    torch.testing.assert_close(chunk, actions, rtol=0, atol=1e-5)
    assert (chunk.abs() < 1).any()  # the comparison is not one of clamped numbers alone
    names = [f"q_nets.{i}" for i in range(layout.ensemble)] or ["q1_net", "q2_net"]
    heads = [f"{layout.critic_prefix}.{name}" for name in names]
    expected_q = reference.q_values(content[agent], heads, actions[:, : layout.act_horizon], expected)
    torch.testing.assert_close(q, expected_q, rtol=0, atol=1e-5)
    assert not any(p.requires_grad for p in policy.parameters())


def test_shapes_say_what_the_file_does_not(tmp_path: Path) -> None:
    layout = LAYOUTS["two cameras, ensemble"]
    policy = loaded(tmp_path, layout)
    spec = policy.spec
    # G = o (V + S) = 2 (4 + 5) = 18; Q^A takes H A + G = 4 * 3 + 18 = 30
    assert (
        policy.info.feature_dim,
        policy.info.state_dim,
        policy.spec.visual_dim,
        policy.info.image_channels,
    ) == (
        18,
        5,
        4,
        6,
    )
    assert (policy.info.latent_shape, policy.info.act_horizon, policy.info.obs_horizon) == ((8, 3), 4, 2)
    assert policy.info.executed_rows == slice(1, 5) and policy.critic.rows == slice(0, 4)
    assert (spec.velocity_net, spec.velocity_widths, spec.embed_dim) == ("unet", (8, 16), 6)
    assert (spec.critic_hidden_dims, spec.critic_heads, spec.denoising_steps) == ((10, 11, 12), 4, 8)
    assert (policy.info.obs_mode, spec.image_size, spec.published) == ("rgb", None, True)


def test_what_the_critic_was_trained_with_is_unknown_and_falls_back_for_evaluation(tmp_path: Path) -> None:
    spec = loaded(tmp_path, SMALL).spec
    assert (spec.env_id, spec.control_mode) == ("", "")
    assert (spec.gamma, spec.reward_mode, spec.reward_scale, spec.end_on_success) == (None, None, None, None)
    assert spec.rewards == RewardTerms() and spec.rewards.known() == RewardTerms(0.99, "sparse", 1.0, True)


def test_default_horizons(tmp_path: Path) -> None:
    policy = load_base_policy(written(tmp_path, published_content(replace(SMALL, act_horizon=8))))
    assert (policy.info.obs_horizon, policy.info.latent_shape[0], policy.info.act_horizon) == (2, 16, 8)


def test_denoising_steps_are_an_argument(tmp_path: Path) -> None:
    content = published_content(SMALL)
    policy = loaded(tmp_path, SMALL, denoising_steps=2)
    features, latent = torch.randn(2, 10), torch.randn(2, T, 3)
    expected = reference.actions(content["ema_agent"], "velocity_net", 2, features, latent, steps=2)
    with torch.no_grad():
        torch.testing.assert_close(policy.decode(Encoding(features), latent), expected, rtol=0, atol=1e-5)


def test_the_other_agent_and_the_targets_may_hold_anything(tmp_path: Path) -> None:
    content = published_content(SMALL)
    content["agent"] = {}
    for name in content["ema_agent"]:
        if name.startswith(("critic_target.", "velocity_net_ema.")):
            content["ema_agent"][name] = torch.full((1,), torch.nan)
    policy = load_base_policy(written(tmp_path, content), pred_horizon=T)
    assert all(torch.isfinite(p).all() for p in policy.parameters())


# --- what is refused -----------------------------------------------------------------------------------------

NET = "velocity_net.unet"


def _without(*names: str) -> Callable[[dict], None]:
    def edit(content: dict) -> None:
        for name in names:
            del content["ema_agent"][name]

    return edit


def _with(name: str, *shape: int) -> Callable[[dict], None]:
    def edit(content: dict) -> None:
        content["ema_agent"][name] = torch.zeros(shape)

    return edit


# SMALL: A = 3, d = (8, 16), E = 6, G = 10, C = 16; Q^A takes 4 * 3 + 10 = 22.
DAMAGE: dict[str, tuple[Callable[[dict], None], list[str]]] = {
    "missing": (_without(f"{NET}.final_conv.1.bias"), [f"{NET}.final_conv.1.bias", "(3,)", "none"]),
    "missing unused layer": (
        _without("velocity_net.combine_embed.0.weight"),
        ["velocity_net.combine_embed.0.weight", "(6, 12)", "none"],
    ),
    "missing in the critic": (_without("critic.q2_net.4.weight"), ["critic.q2_net.4.weight", "(11,)", "none"]),
    "extra": (_with("velocity_net.unet.more.weight", 2, 2), ["velocity_net.unet.more.weight", "none", "(2, 2)"]),
    "extra level": (
        _with(f"{NET}.down_modules.1.2.conv.weight", 16, 16, 3),
        [f"{NET}.down_modules.1.2.conv.weight", "none", "(16, 16, 3)"],
    ),
    "extra head": (_with("critic.q3_net.0.weight", 10, 22), ["critic.q3_net.0.weight", "none", "(10, 22)"]),
    "extra part": (_with("actor.weight", 4), ["actor.weight", "none", "(4,)"]),
    "action dimension": (
        _with(f"{NET}.final_conv.1.weight", 4, 8, 1),
        ["final_conv.1.weight", "(3, 8, 1)", "(4, 8, 1)"],
    ),
    "level width": (
        _with(f"{NET}.down_modules.1.0.blocks.0.block.0.weight", 24, 8, 5),
        ["down_modules.1.0.blocks.0.block.0.weight", "(16, 8, 5)", "(24, 8, 5)"],
    ),
    "condition width": (
        _with(f"{NET}.mid_modules.1.cond_encoder.1.weight", 32, 15),
        ["mid_modules.1.cond_encoder.1.weight", "(32, 16)", "(32, 15)"],
    ),
    "embedding width": (
        _with(f"{NET}.diffusion_step_encoder.1.weight", 24, 8),
        ["diffusion_step_encoder.1.weight", "(24, 6)", "(24, 8)"],
    ),
    "critic input": (_with("critic.q1_net.0.weight", 10, 23), ["critic.q1_net.0.weight", "(10, 22)", "(10, 23)"]),
    "critic width": (_with("critic.q1_net.3.weight", 12, 10), ["critic.q1_net.3.weight", "(11, 10)", "(12, 10)"]),
    "no critic": (_without(*critic_shapes(SMALL, "critic")), ["critic", "q_network", "none"]),
    "two critics": (_with("q_network.q1_net.0.weight", 10, 22), ["critic and q_network"]),
    "no such agent": (lambda content: content.pop("ema_agent"), ["'ema_agent'", "none"]),
    "no tensors": (lambda content: content.update(ema_agent=[1]), ["'ema_agent'", "list"]),
    "no tensor": (
        lambda content: content["ema_agent"].update({"critic.q1_net.0.bias": 3}),
        ["critic.q1_net.0.bias", "int"],
    ),
    "another entry": (lambda content: content.update(optimizer={}), ["optimizer", "visual_encoder"]),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGE)
def test_the_first_tensor_that_does_not_fit_is_named(tmp_path: Path, case: str) -> None:
    edit, words = DAMAGE[case]
    content = published_content(SMALL)
    edit(content)
    message = refusal(written(tmp_path, content))
    for word in words:
        assert word in message


def test_any_tensor_of_another_shape_is_named_itself(tmp_path: Path) -> None:
    """Also those that the dimensions are read from: one wrong tensor never accuses another."""
    whole = published_content(SMALL)["ema_agent"]
    used = [name for name in whole if name.startswith(("velocity_net.", "critic."))]
    for name in used[::5]:
        shape = tuple(whole[name].shape)
        wrong = (shape[0] + 8, *shape[1:])
        path = written(tmp_path, {"ema_agent": {**whole, name: torch.zeros(wrong)}})
        assert f"tensor {name}: expected shape {shape}, got {wrong}" in refusal(path)


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("cnn.3.weight", (32, 16, 5, 5), ["cnn.3.weight", "(32, 16, 3, 3)", "(32, 16, 5, 5)"]),
        ("cnn.15.weight", (1,), ["cnn.15.weight", "none", "(1,)"]),
        ("cnn.0.weight", (16, 4, 3, 3), ["cnn.0.weight", "3 input channels per camera", "4"]),
        ("fc.0.weight", (6, 64), ["fc.0.weight", "(6, 128)", "(6, 64)"]),
        ("fc.0.bias", None, ["fc.0.bias", "(6,)", "none"]),
    ],
)
def test_a_visual_encoder_that_does_not_fit(
    tmp_path: Path, name: str, shape: tuple[int, ...] | None, words: list[str]
) -> None:
    content = published_content(LAYOUTS["one camera"])
    if shape is None:
        del content["visual_encoder"][name]
    else:
        content["visual_encoder"][name] = torch.zeros(shape)
    message = refusal(written(tmp_path, content))
    for word in ["visual_encoder", *words]:
        assert word in message


@pytest.mark.parametrize(
    ("kind", "arguments", "words"),
    [
        ("double", {"obs_horizon": 3}, ["obs_horizon", "10", "got 3"]),  # 10 features are no 3 frames
        ("double", {"obs_horizon": 0}, ["obs_horizon", "got 0"]),
        # G = 2 (6 + 5) = 22: of 11 frames each would have 2 features, and V alone is 6
        ("one camera", {"obs_horizon": 11}, ["obs_horizon", "V = 6", "22 / 11 = 2"]),
        ("double", {"act_horizon": 8}, ["act_horizon", "expected 4", "got 8", "critic.q1_net.0.weight"]),
        ("ensemble", {"act_horizon": 4}, ["act_horizon", "expected 3", "critic.q_nets.0.0.weight"]),
        ("double", {"act_horizon": 0}, ["act_horizon", "got 0"]),
        ("double", {"pred_horizon": 7}, ["pred_horizon", "multiple of 2", "got 7"]),
        ("one frame, three levels", {"obs_horizon": 1, "pred_horizon": 6}, ["pred_horizon", "multiple of 4", "6"]),
        ("double", {"pred_horizon": 4}, ["pred_horizon", "= 5", "got 4"]),  # rows 1:5 are executed
        ("double", {"pred_horizon": 0}, ["pred_horizon", "got 0"]),
        ("double", {"denoising_steps": 0}, ["denoising_steps", "got 0"]),
        ("double", {"weights": "critic"}, ["weights", "'critic'", *WEIGHTS]),
    ],
)
def test_arguments_that_do_not_fit_the_file(tmp_path: Path, kind: str, arguments: dict, words: list[str]) -> None:
    message = refusal(written(tmp_path, published_content(LAYOUTS[kind])), **arguments)
    for word in words:
        assert word in message


class _Code:
    def __reduce__(self):
        return os.mkdir, ("executed_by_the_pickle",)


def test_pickled_code_is_refused_and_not_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content = {**published_content(SMALL), "visual_encoder": _Code()}
    assert "code" in refusal(written(tmp_path, content))
    assert not (tmp_path / "executed_by_the_pickle").exists()


@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_file(tmp_path: Path, part: float) -> None:
    path = written(tmp_path, published_content(SMALL))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole))])
    assert str(path) in refusal(path)


def test_a_damaged_file_is_refused_or_loaded_and_never_a_traceback(tmp_path: Path) -> None:
    path = written(tmp_path, {"ema_agent": published_content(replace(SMALL, widths=(8,)))["ema_agent"]})
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    refusals = []
    for _ in range(200):
        damaged = bytearray(whole)
        for place in generator.integers(0, 12000, size=3):  # the description of the tensors comes first
            damaged[place] = generator.integers(256)
        path.write_bytes(damaged)
        try:
            load_base_policy(path, pred_horizon=T)
        except InputError as error:
            refusals.append(str(error))
    assert len(refusals) > 100
    assert not any("\n" in message for message in refusals)


def test_no_such_file_and_no_checkpoint(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "nowhere.pt")
    assert "something else" in refusal(written(tmp_path, {"weights": torch.zeros(2)}))


# --- our own files -------------------------------------------------------------------------------------------


@pytest.fixture
def own_file(tmp_path: Path) -> Path:
    policy = loaded(tmp_path, LAYOUTS["one camera"])
    spec = replace(policy.spec, env_id="toy", published=False, image_size=(20, 17))
    content = {
        "spec": spec.to_plain(),
        "encoder": policy.encoder.state_dict(),
        "velocity_net_ema": policy.velocity.state_dict(),
        "critic": policy.critic.network.state_dict(),
    }
    path = tmp_path / "own.pt"
    save_checkpoint(path, "base_policy", content)
    return path


def test_our_own_file_of_images_survives_its_checkpoint(own_file: Path) -> None:
    policy = load_base_policy(own_file, obs_horizon=2, pred_horizon=T, act_horizon=4)
    assert (policy.info.image_channels, policy.spec.visual_dim, policy.info.image_size) == (3, 6, (20, 17))
    assert policy.critic.rows == policy.info.executed_rows == slice(1, 5)
    weights = read_tensors(own_file, "file", "test")["encoder"]
    assert {"mean", "std", "visual.cnn.0.weight"} <= set(weights)
    images = torch.randint(0, 256, (2, 20, 17, 3)).to(torch.uint8)
    expected = reference.visual_features(
        {name.removeprefix("visual."): value for name, value in weights.items() if name.startswith("visual.")},
        images,
    )
    frames = policy.encode_frames(torch.zeros(2, 5), images)
    torch.testing.assert_close(frames, torch.cat((expected, torch.zeros(2, 5)), dim=1), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"obs_horizon": 1}, ["obs_horizon", "expected 2", "got 1"]),
        ({"pred_horizon": 16}, ["pred_horizon", "expected 8", "got 16"]),
        ({"act_horizon": 8}, ["act_horizon", "expected 4", "got 8"]),
        ({"denoising_steps": 4}, ["denoising_steps", "expected 8", "got 4"]),
        ({"weights": "agent.velocity_net"}, ["weights", "ema_agent.velocity_net", "'agent.velocity_net'"]),
    ],
)
def test_our_own_file_knows_what_an_argument_contradicts(
    own_file: Path, arguments: dict, words: list[str]
) -> None:
    message = refusal(own_file, **arguments)
    for word in words:
        assert word in message


def test_fields_that_came_later_are_not_asked_of_older_files(own_file: Path) -> None:
    content = read_tensors(own_file, "file", "test")
    del content["spec"]["published"], content["spec"]["image_size"]
    torch.save(content, own_file)
    policy = load_base_policy(own_file)
    assert policy.info.image_size is None and not policy.spec.published
    content["spec"]["surprise"] = 1
    torch.save(content, own_file)
    assert "surprise" in refusal(own_file)
