"""The whitening layer against its definition, and where it gets its images from."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import GREY, RGB

from gradflow.models.whitened_cnn import WhitenedCNN, Whitening
from gradflow.runs.errors import UserError
from gradflow.spec import Spec


def natural(count, channels, side=12):
    """Images whose neighbouring pixels and channels are correlated, with enough noise for eigenvalues well above 0."""
    generator = torch.Generator().manual_seed(0)
    smooth = F.avg_pool2d(torch.randn(count, channels, side + 2, side + 2, generator=generator), 3, 1)
    mixed = torch.einsum("ij,njhw->nihw", torch.rand(channels, channels, generator=generator), smooth)
    return 3 * mixed + 0.5 * torch.randn(mixed.shape, generator=generator)


@pytest.mark.parametrize("channels", [1, 3])
def test_whitened_patches_have_the_identity_as_their_covariance(channels):
    layer, images = Whitening(channels), natural(600, channels)
    before = F.unfold(images, 2).movedim(1, 0).flatten(1).double()
    assert (before @ before.mT / before.shape[1] - torch.eye(len(before))).abs().max() > 0.3
    layer.measure(images)
    size = 4 * channels
    found = layer(images).detach().movedim(1, 0).flatten(1).double()
    second = found @ found.mT / found.shape[1]
    torch.testing.assert_close(second[:size, :size], torch.eye(size).double(), atol=5e-3, rtol=0)
    assert torch.equal(found[:size], -found[size:])


def test_before_it_has_seen_images_it_gives_the_pixels():
    x = torch.randn(2, 3, 5, 4)
    torch.testing.assert_close(Whitening(3)(x)[:, :12].flatten(2), F.unfold(x, 2))


def test_it_is_measured_on_training_images_saved_and_not_trained():
    asked, images = [], natural(50, 3, side=32)
    model = WhitenedCNN(RGB, channels=(4, 4))
    model.adapt(lambda count: asked.append(count) or images)
    expected = Whitening(3)
    expected.measure(images)
    assert asked == [2000]
    assert torch.equal(model.net.whitening.weight, expected.weight)
    assert torch.equal(model.state_dict()["net.whitening.weight"], expected.weight)
    assert "net.whitening.weight" not in dict(model.named_parameters())


def test_few_images_and_one_chunk_or_several_give_the_same():
    layer, images = Whitening(3), natural(251, 3)
    layer.measure(images)
    patches = F.unfold(images.double(), 2).movedim(1, 0).flatten(1)
    variances, axes = torch.linalg.eigh(patches @ patches.mT / patches.shape[1])
    expected = (axes / (variances + 5e-4).sqrt()).mT.float()
    torch.testing.assert_close(layer.weight[:12].flatten(1).abs(), expected.abs())


def test_a_constant_image_leaves_it_finite():
    layer = Whitening(3)
    layer.measure(torch.zeros(2, 3, 8, 8))
    assert layer.weight.isfinite().all()


@pytest.mark.parametrize("side", [4, 5, 8, 28, 32])
def test_as_many_stages_as_the_map_can_be_halved(side):
    spec = Spec("image", (1, side, side), "classification", outputs=3)
    most = (side - 1).bit_length() - 1  # 4: 3 -> 1
    assert WhitenedCNN(spec, channels=[2] * most)(torch.randn(2, 1, side, side)).shape == (2, 3)
    with pytest.raises(UserError, match=rf"too many stages for {side}×{side} images"):
        WhitenedCNN(spec, channels=[2] * (most + 1))


def test_a_width_below_one_is_rejected():
    with pytest.raises(UserError, match=r"model\.channels=\[4, 0\]: expected a width of 1 or more"):
        WhitenedCNN(GREY, channels=(4, 0))
