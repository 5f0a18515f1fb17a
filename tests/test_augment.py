"""Crops and flips against torchvision's, image by image."""

from __future__ import annotations

import itertools

import pytest
import torch
import torchvision.transforms.functional as reference

from gradflow.data.augment import Crops, offsets


def crop_and_flip(images, table, crop):
    return Crops(images, crop)(torch.arange(len(images)), table)


def noise(samples: int, channels: int, height: int = 6, width: int = 5) -> torch.Tensor:
    source = torch.Generator().manual_seed(0)
    return torch.randint(1, 256, (samples, channels, height, width), dtype=torch.uint8, generator=source)


def slow(image: torch.Tensor, top: int, left: int, flip: int, crop: int) -> torch.Tensor:
    height, width = image.shape[-2:]
    cut = reference.crop(reference.pad(image, [crop]), top, left, height, width)
    return reference.hflip(cut) if flip else cut


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("crop", [0, 1, 3, 7])
def test_every_offset_equals_torchvision(channels, crop):
    places = range(2 * crop + 1)
    table = torch.tensor(list(itertools.product(places, places, (0, 1))))
    images = noise(len(table), channels)
    result = crop_and_flip(images, table, crop)
    assert result.dtype == torch.uint8
    expected = [slow(image, *row, crop) for image, row in zip(images, table.tolist(), strict=True)]
    assert torch.equal(result, torch.stack(expected))


def test_the_middle_offset_changes_nothing():
    images = noise(3, 3)
    assert torch.equal(crop_and_flip(images, torch.tensor([[4, 4, 0]] * 3), 4), images)


def test_floats_too():
    images = noise(4, 3).float() / 255
    table = torch.tensor([[0, 4, 1], [1, 2, 0], [3, 3, 1], [4, 0, 0]])
    expected = [slow(image, *row, 2) for image, row in zip(images, table.tolist(), strict=True)]
    assert torch.equal(crop_and_flip(images, table, 2), torch.stack(expected))


def test_the_input_stays_as_it_was():
    images = noise(8, 3)
    before = images.clone()
    crop_and_flip(images, offsets(8, 2, True, torch.Generator().manual_seed(0)), 2)
    assert torch.equal(images, before)


@pytest.mark.parametrize("crop", [1, 4])
def test_offsets_are_uniform(crop):
    n, places = 20_000, 2 * crop + 1
    table = offsets(n, crop, True, torch.Generator().manual_seed(0))
    assert table.shape == (n, 3)
    together = (table[:, 0] * places + table[:, 1]) * 2 + table[:, 2]
    counts = together.bincount(minlength=2 * places**2).double()
    expected = n / (2 * places**2)
    assert len(counts) == 2 * places**2  # nothing lies out of range
    cells = len(counts)
    chi2 = ((counts - expected) ** 2 / expected).sum()  # mean `cells`, variance 2 `cells`
    assert abs(chi2 - cells) < 5 * (2 * cells) ** 0.5


def test_without_crop_and_flip_all_offsets_are_zero():
    assert offsets(50, 0, False, torch.Generator()).abs().sum() == 0
    assert set(offsets(50, 0, True, torch.Generator())[:, 2].tolist()) == {0, 1}
    assert offsets(50, 3, False, torch.Generator())[:, 2].sum() == 0


def test_flips_leave_the_crops_as_they_are():
    tables = [offsets(30, 3, flip, torch.Generator().manual_seed(5)) for flip in (True, False)]
    assert torch.equal(tables[0][:, :2], tables[1][:, :2])
