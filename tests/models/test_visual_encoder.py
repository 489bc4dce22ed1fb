"""The visual encoder of published checkpoints, against plain functions of its tensors."""

from __future__ import annotations

import pytest
import reference_forward as reference
import torch
from published_files import Layout, visual_shapes

from dsrl_offpolicy.models.visual_encoder import VisualEncoder


def encoder(channels: int = 3, visual_dim: int = 5) -> VisualEncoder:
    torch.manual_seed(0)
    return VisualEncoder(channels, visual_dim)


def images(count: int, height: int, width: int, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, height, width, channels), generator=generator).to(torch.uint8)


@pytest.mark.parametrize("cameras", [1, 2])
def test_names_and_shapes_are_the_published_ones(cameras: int) -> None:
    shapes = {name: tuple(value.shape) for name, value in encoder(3 * cameras).state_dict().items()}
    assert shapes == visual_shapes(Layout(cameras=cameras, visual_dim=5))


@pytest.mark.parametrize("size", [(16, 16), (17, 31), (128, 128), (64, 40)])
@pytest.mark.parametrize("channels", [3, 6])
def test_features_are_those_of_plain_functions(size: tuple[int, int], channels: int) -> None:
    network, batch = encoder(channels), images(2, *size, channels)
    expected = reference.visual_features(network.state_dict(), batch)
    assert expected.abs().sum() > 0
    with torch.no_grad():
        torch.testing.assert_close(network(batch), expected, rtol=1e-5, atol=1e-6)


def test_an_image_means_the_same_in_every_batch() -> None:
    network, batch = encoder(), images(1, 16, 16) // 100  # intensities 0, 1, 2 out of 255
    bright = torch.cat((batch, torch.full_like(batch, 255)))
    with torch.no_grad():
        torch.testing.assert_close(network(bright)[:1], network(batch), rtol=1e-5, atol=1e-7)
    # A single pixel of 255 is 1 after scaling, and one of 1 is 1/255: the first layer is linear in between.
    first = network.cnn[0]
    seen = []
    first.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].max().item()))
    for value in (255, 1):
        network(torch.full((1, 16, 16, 3), value, dtype=torch.uint8))
    assert seen == [1.0, pytest.approx(1 / 255)]


def test_it_takes_gradients_while_it_is_not_frozen() -> None:
    network = encoder()
    network(images(2, 16, 16)).sum().backward()
    assert network.cnn[0].weight.grad is not None and network.cnn[0].weight.grad.abs().sum() > 0


def test_an_encoder_that_keeps_positions_sees_deviations_from_the_mean_image() -> None:
    network, batch = VisualEncoder(3, 4, (16, 16)), images(300, 16, 16)  # more than are added up at once
    network.fit(batch)
    pixels = batch.double() / 255
    torch.testing.assert_close(network.mean.double(), pixels.mean(0), rtol=0, atol=1e-6)
    deviations = pixels - pixels.mean(0)
    assert network.scale.item() == pytest.approx(deviations.square().mean().sqrt().item(), rel=1e-4)
    seen = []
    network.cnn[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    features = network(batch)
    expected = (deviations / deviations.square().mean().sqrt()).permute(0, 3, 1, 2).float()
    torch.testing.assert_close(seen[0], expected, rtol=1e-3, atol=1e-3)
    assert features.abs().max() <= 1 and (features.std(0) > 0).all()


def test_the_published_encoder_has_nothing_to_fit() -> None:
    network = encoder()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.fit(images(2, 16, 16))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
