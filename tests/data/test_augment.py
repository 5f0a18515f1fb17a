"""Augmentation of images against torchvision's, slow loops and closed forms."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
import torchvision.transforms.functional as reference

from gradflow.data.augment import Augmentation, Crops, cut_out
from gradflow.data.loader import Stored
from gradflow.data.splits import Part
from gradflow.spec import Spec
from gradflow.tasks.task import task_of

SIZE = (6, 5)
EVERYTHING = Augmentation(crop=2, flip=True, cutout=3, mixup=1.0)


def crop_and_flip(images, table, crop):
    return Crops(crop)(images, table)


def noise(samples: int, channels: int, height: int = SIZE[0], width: int = SIZE[1]) -> torch.Tensor:
    source = torch.Generator().manual_seed(0)
    return torch.randint(1, 256, (samples, channels, height, width), dtype=torch.uint8, generator=source)


def slow(image: torch.Tensor, top: int, left: int, flip: int, crop: int) -> torch.Tensor:
    """The window of the padded image, or its mirror image."""
    height, width = image.shape[-2:]
    cut = reference.crop(reference.pad(image, [crop]), top, left, height, width)
    return reference.hflip(cut) if flip else cut


def slow_cut(image: torch.Tensor, row: int, column: int, side: int) -> torch.Tensor:
    """Without the pixels whose centres lie in a square around the middle: of a pixel, or its corner for even sides."""
    corner = 0.5 * (side % 2 == 0)
    result = image.clone()
    for y, x in itertools.product(*map(range, image.shape[-2:])):
        if max(abs(y - row + corner), abs(x - column + corner)) < side / 2:
            result[:, y, x] = 0
    return result


def near_uniform(counts: torch.Tensor) -> bool:
    """By a chi-squared statistic: as many cells in the mean, and a variance of twice as many."""
    cells, expected = len(counts), counts.sum() / len(counts)
    chi2 = ((counts - expected) ** 2 / expected).sum()
    return abs(chi2 - cells) < 5 * (2 * cells) ** 0.5


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
    crop_and_flip(images, Augmentation(2, flip=True).offsets(8, seed=0, epoch=0), 2)
    assert torch.equal(images, before)


def test_one_batch_leaves_nothing_to_the_next():
    crops, results = Crops(2), []
    shapes = [(8, 3, 6, 5), (8, 3, 6, 5), (4, 3, 6, 5), (4, 3, 7, 5), (4, 1, 7, 5), (8, 3, 6, 5)]
    for number, (count, *shape) in enumerate(shapes):
        images = noise(count, *shape) // (number + 1)
        images = images.float() if number == 1 else images
        table = Augmentation(2, flip=True).offsets(count, seed=number, epoch=0)
        results.append((crops(images, table), crop_and_flip(images, table, 2)))
    for result, expected in results:  # after the last call: none lies where another is written
        assert torch.equal(result, expected)
        assert result.dtype == expected.dtype


@pytest.mark.parametrize("crop", [1, 4])
def test_offsets_are_uniform(crop):
    n, places = 20_000, 2 * crop + 1
    table = Augmentation(crop, flip=True).offsets(n, seed=0, epoch=0)
    assert table.shape == (n, 3)
    assert int(table.min()) == 0
    assert table.max(0).values.tolist() == [places - 1, places - 1, 1]
    together = (table[:, 0] * places + table[:, 1]) * 2 + table[:, 2]
    counts = together.bincount(minlength=2 * places**2).double()
    assert len(counts) == 2 * places**2  # nothing lies out of range
    assert near_uniform(counts)


def test_without_crop_and_flip_all_offsets_are_zero():
    assert Augmentation().offsets(50, 0, 0).abs().sum() == 0
    for mirrored in (Augmentation(flip=True), Augmentation(alternating_flip=True)):
        table = mirrored.offsets(50, 0, 0)
        assert set(table[:, 2].tolist()) == {0, 1}
        assert table[:, :2].sum() == 0
    assert Augmentation(crop=3).offsets(50, 0, 0)[:, 2].sum() == 0


@pytest.mark.parametrize("epoch", [0, 1, 6])
def test_flips_leave_the_crops_as_they_are(epoch):
    plain, *others = (
        Augmentation(3, **kind).offsets(30, 5, epoch) for kind in ({}, {"flip": True}, {"alternating_flip": True})
    )
    assert plain[:, :2].sum() > 0
    for table in others:
        assert torch.equal(table[:, :2], plain[:, :2])


@pytest.mark.parametrize("crop", [0, 4])
@pytest.mark.parametrize("seed", [0, 1])
def test_alternate_mirrors_every_other_epoch(crop, seed):
    n = 4000
    flips = torch.stack([Augmentation(crop, alternating_flip=True).offsets(n, seed, epoch)[:, 2] for epoch in range(6)])
    assert torch.equal(flips, flips[:1] ^ (torch.arange(6) % 2)[:, None])  # 0 1 0 1 … or 1 0 1 0 …
    assert abs(flips[0].sum() - n / 2) < 4 * n**0.5 / 2  # four standard deviations
    neighbours = (flips[0, :-1] == flips[0, 1:]).sum()  # not by halves of the set either
    assert abs(neighbours - n / 2) < 4 * n**0.5 / 2


def test_the_seed_says_who_is_mirrored_first():
    first, again, other = (Augmentation(alternating_flip=True).offsets(50, seed, 0)[:, 2] for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, 1 - other)


def test_random_flips_do_not_alternate():
    first, second = (Augmentation(flip=True).offsets(4000, 0, epoch)[:, 2] for epoch in (0, 1))
    assert abs((first == second).sum() - 2000) < 4 * 4000**0.5 / 2


@pytest.mark.parametrize("side", [1, 2, 3, 4, 5, 8, 11, 20])
def test_every_hole_equals_a_slow_one(side):
    places = list(itertools.product(*map(range, SIZE)))
    images = noise(len(places), 2).float()
    expected = torch.stack([slow_cut(image, *place, side) for image, place in zip(images, places, strict=True)])
    assert torch.equal(cut_out(images.clone(), torch.tensor(places), side), expected)


@pytest.mark.parametrize(
    ("side", "middle", "pixels"),
    [
        (1, (0, 0), 1),
        (1, (5, 4), 1),
        (2, (3, 3), 4),
        (2, (0, 0), 1),  # an even square reaches one further up and left
        (2, (5, 4), 4),
        (3, (3, 2), 9),
        (3, (0, 0), 4),
        (3, (5, 4), 4),
        (3, (0, 2), 6),
        (4, (3, 2), 16),
        (4, (0, 4), 6),
        (5, (3, 2), 25),
        (11, (0, 0), 30),
        (12, (0, 0), 30),
        (12, (5, 4), 30),
    ],
)
def test_the_size_of_a_hole(side, middle, pixels):
    result = cut_out(torch.ones(2, 3, *SIZE), torch.tensor([middle, (3, 2)]), side)
    assert (result[0] == 0).sum(dim=(1, 2)).tolist() == [pixels] * 3


def test_the_middles_of_holes_are_uniform():
    n = 20_000
    middles = EVERYTHING.middles(n, SIZE, seed=0, epoch=0)
    assert middles.shape == (n, 2)
    assert middles.min(0).values.tolist() == [0, 0]
    assert middles.max(0).values.tolist() == [5, 4]
    assert near_uniform((middles[:, 0] * 5 + middles[:, 1]).bincount(minlength=30).double())


@pytest.mark.parametrize("samples", [1, 2, 7, 2000])
@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_partners_are_a_permutation(samples, alpha):
    partners, shares = Augmentation(mixup=alpha).partners(samples, seed=0, epoch=0)
    assert sorted(partners.tolist()) == list(range(samples))
    assert (partners == torch.arange(samples)).sum() <= 10  # 1 on average
    assert shares.shape == (samples,)
    assert shares.dtype == torch.float32
    assert 0.5 <= shares.min() <= shares.max() <= 1


@pytest.mark.parametrize("alpha", [0.2, 0.5, 1.0, 2.0, 8.0])
def test_shares_are_of_a_folded_beta(alpha):
    """E|u - 1/2| = 4^-α / (α B(α, α)) and E(2u - 1)² = 1 / (2α + 1), where u is Beta(α, α)."""
    n = 40_000
    shares = Augmentation(mixup=alpha).partners(n, 0, 0)[1].double()
    beta = math.exp(2 * math.lgamma(alpha) - math.lgamma(2 * alpha))
    mean = 0.5 + 4**-alpha / (alpha * beta)
    assert alpha != 1 or mean == pytest.approx(0.75)
    assert abs(shares.mean() - mean) < 5 * shares.std() / n**0.5
    squares = (2 * shares - 1).square()
    assert abs(squares.mean() - 1 / (2 * alpha + 1)) < 5 * squares.std() / n**0.5


@pytest.mark.parametrize("alpha", [1e-6, 1e6])
def test_shares_stay_numbers(alpha):
    shares = Augmentation(mixup=alpha).partners(100, 0, 0)[1]
    assert ((shares > 0.999) if alpha < 1 else (shares < 0.51)).all()


def test_each_switch_has_numbers_of_its_own():
    """Another one more changes nothing of order, crops, flips, holes and partners."""
    whole = EVERYTHING.random_numbers(40, SIZE, 3, 2)
    absent = {"crop": 0, "flip": False, "cutout": 0, "mixup": 0.0}
    for name, off in absent.items():
        draws = replace(EVERYTHING, **{name: off}).random_numbers(40, SIZE, 3, 2)
        assert torch.equal(draws.order, whole.order)
        assert torch.equal(draws.offsets[:, 2], whole.offsets[:, 2] * (name != "flip"))
        assert name == "crop" or torch.equal(draws.offsets[:, :2], whole.offsets[:, :2])
        for field, switch in (("middles", "cutout"), ("partners", "mixup"), ("shares", "mixup")):
            value = getattr(draws, field)
            assert value is None if name == switch else torch.equal(value, getattr(whole, field))
    nothing = Augmentation().random_numbers(40, SIZE, 3, 2)
    assert torch.equal(nothing.order, whole.order)
    assert nothing[1:] == (None,) * 4


@pytest.mark.parametrize("other", [(4, 2), (3, 3)])
def test_seeds_and_epochs_draw_differently(other):
    one, two = (EVERYTHING.random_numbers(40, SIZE, *numbers) for numbers in ((3, 2), other))
    assert not any(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    again = EVERYTHING.random_numbers(40, SIZE, 3, 2)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))


def test_crops_and_holes_are_apart():
    """Of as many places, they do not take the same ones in turn."""
    draws = EVERYTHING.random_numbers(39, (5, 5), 3, 2)
    for middles in draws.middles.unbind(1):
        assert (middles.view(13, 3)[:, :2] == draws.offsets[:13, :2]).sum() < 15  # of 26, 5.2 on average
        assert all((middles == offsets).sum() < 20 for offsets in draws.offsets[:, :2].unbind(1))  # of 39, 7.8


def test_order_and_partners_are_apart():
    draws = EVERYTHING.random_numbers(40, SIZE, 3, 2)
    assert sorted(draws.order.tolist()) == list(range(40))
    assert not torch.equal(draws.order, draws.partners)
    assert not torch.equal(draws.order[draws.partners], torch.arange(40))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_a_mask_moves_with_its_image_and_is_padded_with_its_own_label(dtype):
    """Each image shows its own mask, so that the two stay alike wherever a crop brought in no padding."""
    masks = torch.randint(1, 5, (40, *SIZE)).to(dtype)
    part = Part(masks[:, None].to(torch.uint8), masks)
    spec = Spec("image", (1, *SIZE), "segmentation", outputs=5, ignored=255)
    make = Stored(part, torch.device("cpu"), 0, Augmentation(crop=2, flip=True, cutout=3), task=task_of(spec))
    plain = Stored(part, torch.device("cpu"), 0, Augmentation(crop=2, flip=True), task=task_of(spec))
    every = slice(0, 40)
    (x, y), (whole, same) = make(0, every, every), plain(0, every, every)
    assert y.dtype == dtype
    assert torch.equal(y, same)  # a hole leaves the mask as it is
    assert ((x == 0) & (whole != 0)).any()
    assert torch.equal(y == 255, whole[:, 0] == 0)
    assert (y == 255).any()
    assert torch.equal(y[y != 255].long(), whole[:, 0][y != 255].long())
    assert not torch.equal(y, masks[make.random_numbers(0).order])  # it did move


def test_labels_of_whole_images_stay():
    part, spec = Part(noise(8, 1), torch.arange(8)), Spec("image", (1, *SIZE), "classification", outputs=8)
    make = Stored(part, torch.device("cpu"), 0, Augmentation(crop=2, flip=True), task=task_of(spec))
    assert torch.equal(make(0, slice(0, 8), slice(0, 8))[1], make.random_numbers(0).order)
