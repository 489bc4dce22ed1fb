"""Stage 0's image encoder: shifts, what it can learn, and that it is frozen afterwards."""

from __future__ import annotations

import copy

import pytest
import torch

from dsrl_offpolicy.agents.awsc import AWSCAgent, EncoderTraining, random_shift
from dsrl_offpolicy.base_policies.observation_encoder import ObservationEncoder
from dsrl_offpolicy.base_policies.shortcut_flow import ShortcutFlowSpec
from dsrl_offpolicy.models.visual_encoder import VisualEncoder

SPEC = ShortcutFlowSpec(
    env_id="", control_mode="", state_dim=2, action_dim=1, obs_horizon=1, pred_horizon=1, act_horizon=1,
    velocity_net="mlp", velocity_widths=(32,), embed_dim=8, denoising_steps=2, critic_hidden_dims=(8,),
    critic_heads=2, gamma=0.9, reward_mode="sparse", reward_scale=1.0, end_on_success=True, image_channels=3,
    visual_dim=4, image_size=(32, 32), visual_pool="flatten",
)  # fmt: skip


def agent() -> AWSCAgent:
    return AWSCAgent(
        SPEC, lr=1e-3, total_iters=10, ema_decay=0.9, consistency_fraction=0.0, advantage_temperature=1.0,
        max_weight=10.0, expectile=0.7, polyak_tau=0.1, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip


def squares(columns: torch.Tensor) -> torch.Tensor:
    """A white square of 8 x 8 in each image ``[B, 1, 32, 32, 3]``, at the given columns."""
    images = torch.zeros(len(columns), 1, 32, 32, 3, dtype=torch.uint8)
    for image, column in zip(images, columns.tolist(), strict=True):
        image[0, 12:20, column : column + 8] = 255
    return images


def test_a_shift_moves_whole_stacks_and_repeats_edges():
    # One row of four pixels 0 1 2 3 in two frames. Moved by -1, 0 or 1 columns (and rows, of which there is one),
    # edges repeating, it is one of three; both frames of a stack move together.
    image = torch.arange(4, dtype=torch.uint8)[None, None, None, :, None].expand(64, 2, 1, 4, 1)
    moved = random_shift(image, 1, torch.Generator().manual_seed(0))
    assert moved.shape == image.shape and moved.dtype == torch.uint8
    assert torch.equal(moved[:, 0], moved[:, 1])
    found = {tuple(row) for row in moved[:, 0, 0, :, 0].tolist()}
    assert found == {(0, 0, 1, 2), (0, 1, 2, 3), (1, 2, 3, 3)}
    assert torch.equal(random_shift(image, 0, torch.Generator()), image)


def test_a_flat_encoder_tells_places_apart_and_the_published_one_does_not():
    torch.manual_seed(0)
    left, right = squares(torch.tensor([8]))[:, 0], squares(torch.tensor([16]))[:, 0]
    flat, published = VisualEncoder(3, 8, (32, 32)), VisualEncoder(3, 8)
    assert not torch.allclose(flat(left), flat(right))
    # Eight columns are half a cell of the last map (16 pixels), so compare two places a whole cell apart, both
    # far from the edges' padding in a larger image.
    wide = torch.zeros(2, 96, 96, 3, dtype=torch.uint8)
    wide[0, 44:52, 32:40] = 255
    wide[1, 44:52, 48:56] = 255
    first, second = published(wide)
    assert torch.allclose(first, second, atol=1e-6)


def train(learner: AWSCAgent, encoder: ObservationEncoder, *, seen: bool) -> float:
    """The flow loss after 150 steps on squares whose side is the action; unseen ones are all black."""
    training = EncoderTraining(learner, encoder, pose_dim=0, lr=3e-3, total_iters=150, shift=0)
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(150):
        side = torch.randint(2, (32,), generator=generator)
        chunk = (2.0 * side - 1)[:, None, None]
        images = squares(4 + 16 * side) * int(seen)
        metrics = training.update(torch.zeros(32, 1, 2), images, chunk)
        losses.append(float(metrics["encoder_flow_loss"]))
    return sum(losses[-30:]) / 30


def test_the_encoder_learns_through_the_flow_what_the_image_says():
    torch.manual_seed(0)
    encoder = ObservationEncoder(torch.zeros(2), torch.ones(2), VisualEncoder(3, 4, (32, 32)))
    learner = agent()
    before, velocity = copy.deepcopy(encoder.state_dict()), copy.deepcopy(learner.velocity_net.state_dict())
    seeing = train(learner, encoder, seen=True)
    blind = train(agent(), copy.deepcopy(encoder), seen=False)
    # The action is the side on which the square is: without the image the flow can only guess it.
    assert seeing < 0.7 * blind
    changed = encoder.state_dict()
    assert not torch.equal(changed["visual.cnn.0.weight"], before["visual.cnn.0.weight"])
    assert torch.equal(changed["mean"], before["mean"])  # the states' normalisation is not learnt
    assert any(not torch.equal(v, velocity[k]) for k, v in learner.velocity_net.state_dict().items())


def test_poses_teach_the_encoder_what_actions_do_not_tell():
    torch.manual_seed(0)
    encoder = ObservationEncoder(torch.zeros(2), torch.ones(2), VisualEncoder(3, 4, (32, 32)))
    training = EncoderTraining(agent(), encoder, pose_dim=1, lr=3e-3, total_iters=150, shift=0)
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(150):
        side = torch.randint(2, (32,), generator=generator)
        pose = (2.0 * side - 1)[:, None]  # where the square is; the action, always 0, says nothing about it
        metrics = training.update(torch.zeros(32, 1, 2), squares(4 + 16 * side), torch.zeros(32, 1, 1), pose)
        losses.append(float(metrics["encoder_pose_loss"]))
    # Of standardised poses, knowing nothing costs their variance, 1.
    assert sum(losses[:3]) / 3 > 0.5
    assert sum(losses[-30:]) / 30 < 0.05


def test_the_size_of_a_flat_encoder_is_part_of_the_spec():
    assert SPEC.build_visual().fc[0].in_features == 128 * 2 * 2  # 32 pixels are halved four times
    again = ShortcutFlowSpec.from_plain(SPEC.to_plain(), "spec")
    assert again == SPEC
    with pytest.raises(RuntimeError):
        SPEC.build_visual()(torch.zeros(1, 64, 64, 3, dtype=torch.uint8))
