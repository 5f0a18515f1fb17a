"""Batches: the same whenever, wherever and in whatever order they are asked for."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from conftest import RGB
from test_augment import slow, slow_cut

from gradflow.data.augment import Augmentation
from gradflow.data.loader import Generated, Loader, Stored
from gradflow.data.splits import Part
from gradflow.data.streams import STREAMS, generator
from gradflow.tasks.task import task_of

CPU = torch.device("cpu")
RANKS = (1, 2, 3, 4)
SHARED = [(23, 1), (4, 1), (6, 2), (9, 3), (8, 4), (3, 3)]  # batch sizes and ranks


def images(samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random images, numbered by their targets."""
    x = torch.randint(256, (samples, 2, 5, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(7))
    return x, torch.arange(samples)


def draw(n: int, source: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs that depend on how many are drawn, as they do where a target is drawn after them."""
    y = torch.randint(10**6, (n,), generator=source)
    return torch.rand(n, 3, generator=source), y


def scaled(x: torch.Tensor) -> torch.Tensor:
    """No pixel of an image is 0 after it."""
    return (x.float() - 128.5) / 64


def stored(
    samples=23,
    batch_size=6,
    training=True,
    rank=0,
    world=1,
    seed=3,
    crop=2,
    flip=True,
    part=None,
    scaling=lambda x: x,
    epoch=int,
    **more,
) -> Loader:
    augmentation = Augmentation(crop, flip, **more) if training else None
    make = Stored(
        part or Part(*images(samples)), CPU, seed, augmentation, scaling, task_of(replace(RGB, outputs=samples))
    )
    return Loader(samples, batch_size, training, make, epoch, rank=rank, world=world)


mixed = partial(stored, flip=False, alternating_flip=True, cutout=3, mixup=1.0, scaling=scaled)


def drawn(samples=23, batch_size=6, training=True, rank=0, world=1, seed=3, split="train", **more) -> Loader:
    return Loader(
        samples,
        batch_size,
        training,
        Generated(draw, CPU, seed, split, batch_size),
        rank=rank,
        world=world,
        epoch=more.get("epoch", int),
    )


def equal(one, other) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def targets(loader: Loader, epoch: int = 0) -> list[list[int]]:
    return [loader.batch(epoch, index)[1].tolist() for index in range(len(loader))]


def flat(batches) -> list[int]:
    return [number for batch in batches for number in batch]


@pytest.mark.parametrize("make", [stored, mixed, drawn])
@pytest.mark.parametrize("training", [True, False])
def test_a_batch_depends_on_its_numbers_alone(make, training):
    loader = make(training=training)
    places = [(epoch, index) for epoch in range(4) for index in range(len(loader))]
    in_order = {place: loader.batch(*place) for place in places}
    random.Random(0).shuffle(places)
    again = make(training=training)
    for number, place in enumerate(places * 2):
        torch.manual_seed(number)
        np.random.seed(number)  # noqa: NPY002
        states = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
        assert equal(again.batch(*place), in_order[place])
        assert torch.equal(torch.get_rng_state(), states[0])
        assert str(np.random.get_state()) == str(states[1])  # noqa: NPY002
        assert random.getstate() == states[2]


@pytest.mark.parametrize("make", [stored, mixed, drawn])
def test_epochs_batches_and_seeds_differ(make):
    first = make().batch(0, 0)
    assert not equal(make().batch(1, 0), first)
    assert not equal(make().batch(0, 1), first)
    assert not equal(make(seed=4).batch(0, 0), first)


def test_drawn_splits_differ():
    batches = [drawn(split=split).batch(0, 0)[0] for split in ("train", "val", "test")]
    assert not any(torch.equal(batches[a], batches[b]) for a, b in ((0, 1), (0, 2), (1, 2)))


def test_streams_are_apart():
    words = [("order", 1, 2), ("order", 2, 1), *((stream, 1, 2) for stream in STREAMS if stream != "order")]
    numbers = [torch.rand(4, generator=generator(*some)) for some in words]
    assert torch.equal(numbers[0], torch.rand(4, generator=generator("order", 1, 2)))
    assert len({tuple(some.tolist()) for some in numbers}) == len(STREAMS) + 1 == 10


def test_streams_give_the_numbers_that_they_gave_before():
    """Results that were published with a seed can be had again."""
    streams = ("order", "augment", "train", "val", "test", "split", "flip", "mixup", "cutout")
    assert [generator(stream, 1, 2).initial_seed() for stream in streams] == [
        *(3884055042, 3005640382, 2946223120, 1620210449, 1570838646, 4078058680),
        *(3634592209, 1734722684, 1932326252),
    ]


@pytest.mark.parametrize(("samples", "batch_size"), [(23, 6), (24, 6), (6, 6), (7, 1)])
def test_training_takes_whole_batches_of_a_permutation(samples, batch_size):
    loader = stored(samples, batch_size)
    whole = samples // batch_size
    assert len(loader) == whole
    orders = []
    for epoch in range(8):
        batches = targets(loader, epoch)
        assert [len(batch) for batch in batches] == [batch_size] * whole
        orders.append(flat(batches))
        assert len(set(orders[-1])) == whole * batch_size
    assert len(set(map(tuple, orders))) == 8
    left_out = {frozenset(range(samples)) - set(order) for order in orders}
    assert left_out == {frozenset()} if samples % batch_size == 0 else len(left_out) > 4


def test_training_gives_inputs_with_their_own_targets():
    x, y = stored(crop=0, flip=False).batch(2, 1)
    assert torch.equal(x, images(23)[0][y])


@pytest.mark.parametrize("world", RANKS)
@pytest.mark.parametrize("samples", [4, 5, 8, 9, 10, 11, 12, 24, 25, 35, 36, 37])
def test_evaluation_takes_every_sample_once(samples, world):
    ranks = [targets(stored(samples, 12, False, rank, world)) for rank in range(world)]
    batches = [flat(parts) for parts in zip(*ranks, strict=True)]  # strict: the ranks have as many batches
    assert flat(batches) == list(range(samples))
    sizes = [len(part) for rank in ranks for part in rank]
    assert min(sizes) > 0
    assert max(sizes) - 12 // world <= 1
    for parts in zip(*ranks, strict=True):
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_evaluation_shows_the_samples_as_they_are():
    x, _ = stored(training=False).batch(5, 1)
    assert torch.equal(x, images(23)[0][6:12])


@pytest.mark.parametrize("make", [stored, mixed, drawn])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("world", [2, 3, 4])
def test_ranks_share_the_batch_of_one(make, training, world):
    alone = make(samples=40, batch_size=12, training=training)
    assert len(alone) == (3 if training else 4)
    for index in range(len(alone)):
        parts = [make(40, 12, training, rank, world).batch(1, index) for rank in range(world)]
        assert equal([torch.cat(part) for part in zip(*parts, strict=True)], alone.batch(1, index))


@pytest.mark.parametrize("make", [stored, mixed, drawn])
def test_evaluation_has_the_same_samples_where_the_tail_is_smaller_than_the_ranks(make):
    alone = make(samples=25, batch_size=12, training=False)
    ranks = [make(25, 12, False, rank, 2) for rank in range(2)]
    one = torch.cat([alone.batch(0, index)[1] for index in range(len(alone))])
    two = torch.cat([rank.batch(0, index)[1] for index in range(len(ranks[0])) for rank in ranks])
    assert torch.equal(one, two)


def by_sample(make, batch_size: int, world: int, epoch: int) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """What an epoch shows of each sample, which the largest part of a target names."""
    shown = {}
    for rank in range(world):
        loader = make(batch_size=batch_size, rank=rank, world=world)
        for index in range(len(loader)):
            for x, y in zip(*loader.batch(epoch, index), strict=True):
                shown[int(y if y.ndim == 0 else y.argmax())] = x, y
    assert len(shown) == 23 // batch_size * batch_size
    return shown


@pytest.mark.parametrize(("batch_size", "world"), SHARED)
@pytest.mark.parametrize(
    "options",
    [
        {"flip": True},
        {"flip": False, "alternating_flip": True},
        {"flip": True, "cutout": 3},
        {"flip": False, "alternating_flip": True, "cutout": 4, "mixup": 0.5},
        {"crop": 0, "flip": False, "cutout": 2, "mixup": 2.0},
    ],
)
def test_augmentation_is_a_function_of_seed_epoch_and_sample(batch_size, world, options):
    """Image by image with torchvision and slow loops, from the epoch's numbers."""
    augmentation = Augmentation(**{"crop": 2, **options})

    def alone(name: int) -> torch.Tensor:
        image = images(23)[0][name]
        if draws.offsets is not None:
            image = slow(image, *draws.offsets[name].tolist(), augmentation.crop)
        image = scaled(image)
        return slow_cut(image, *draws.middles[name].tolist(), augmentation.cutout) if augmentation.cutout else image

    for epoch in (0, 5):
        draws = augmentation.random_numbers(23, (5, 4), 3, epoch)
        for name, (x, y) in by_sample(partial(stored, scaling=scaled, **options), batch_size, world, epoch).items():
            if not augmentation.mixup:
                assert torch.equal(x, alone(name))
                continue
            partner, share = int(draws.partners[name]), float(draws.shares[name])
            torch.testing.assert_close(x, share * alone(name) + (1 - share) * alone(partner), rtol=0, atol=1e-6)
            target = torch.zeros(23)
            target[name] += share
            target[partner] += 1 - share
            torch.testing.assert_close(y, target, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("batch_size", "world"), SHARED)
def test_mixup_is_of_the_images_that_are_shown_without_it(batch_size, world):
    plain = partial(mixed, mixup=0.0)
    for epoch in (0, 1):
        shown = by_sample(plain, 23, 1, epoch)
        partners = []
        for name, (x, y) in by_sample(mixed, batch_size, world, epoch).items():
            share = float(y.max())
            partner = next((other for other in y.nonzero().flatten().tolist() if other != name), name)
            torch.testing.assert_close(x, share * shown[name][0] + (1 - share) * shown[partner][0], rtol=0, atol=1e-6)
            assert float(y.sum()) == pytest.approx(1, abs=1e-6)
            assert share >= 0.5
            assert (y > 0).sum() == (1 if partner == name else 2)
            partners.append(partner)
        assert len(set(partners)) == len(partners)


@pytest.mark.parametrize(("batch_size", "world"), SHARED)
def test_mixed_batches_are_the_same_bytes_however_they_are_divided(batch_size, world):
    whole = by_sample(mixed, 23, 1, 4)
    for name, shown in by_sample(mixed, batch_size, world, 4).items():
        assert equal(shown, whole[name])


@pytest.mark.parametrize(("batch_size", "world"), SHARED)
def test_holes_are_zero_and_the_rest_is_as_without(batch_size, world):
    for epoch in (0, 1):
        middles = Augmentation(2, True, cutout=3).random_numbers(23, (5, 4), 3, epoch).middles
        without = by_sample(partial(stored, scaling=scaled, crop=0), 23, 1, epoch)
        make = partial(stored, scaling=scaled, crop=0, cutout=3)
        for name, (x, _) in by_sample(make, batch_size, world, epoch).items():
            hole = slow_cut(torch.ones(2, 5, 4), *middles[name].tolist(), 3) == 0
            assert torch.equal(x == 0, hole)
            assert torch.equal(x[~hole], without[name][0][~hole])


def test_holes_differ_from_sample_to_sample_and_epoch_to_epoch():
    def holes(seed: int, epoch: int) -> list[list[bool]]:
        make = partial(stored, crop=0, cutout=1, scaling=scaled, seed=seed)
        return [(x == 0).flatten().tolist() for _, (x, _) in sorted(by_sample(make, 23, 1, epoch).items())]

    first = holes(3, 0)
    assert first == holes(3, 0)
    assert first != holes(3, 1)
    assert first != holes(4, 0)
    assert len(set(map(tuple, first))) > 10  # of the 20 places


@pytest.mark.parametrize(("batch_size", "world"), SHARED)
def test_alternate_shows_each_image_and_its_mirror_image_in_turn(batch_size, world):
    make = partial(stored, crop=0, flip=False, alternating_flip=True)
    first = by_sample(make, 23, 1, 0)
    own = images(23)[0]
    assert 5 < sum(torch.equal(x, own[name]) for name, (x, _) in first.items()) < 18
    for epoch in range(4):
        for name, (x, _) in by_sample(make, batch_size, world, epoch).items():
            assert torch.equal(x, first[name][0].flip(-1) if epoch % 2 else first[name][0])


@pytest.mark.parametrize("more", [{"cutout": 3}, {"mixup": 1.0}, {"cutout": 1, "mixup": 0.2}])
def test_cutout_and_mixup_leave_the_order_as_it_is(more):
    for epoch in (0, 3):
        for index, names in enumerate(targets(stored(), epoch)):
            y = stored(scaling=scaled, **more).batch(epoch, index)[1]
            assert (y.argmax(1) if y.ndim > 1 else y).tolist() == names


@pytest.mark.parametrize("make", [stored, mixed])
@pytest.mark.parametrize("training", [True, False])
def test_the_rows_of_a_part_are_a_set_of_their_own(make, training):
    x, names = images(60)[0], torch.arange(23)
    rows = torch.randperm(60, generator=torch.Generator().manual_seed(1))[:23]
    y = torch.full((60,), -1).index_put_((rows,), names)
    apart, within = (make(training=training, part=part) for part in (Part(x[rows], names), Part(x, y, rows)))
    for epoch in (0, 1):
        for index in range(len(apart)):
            assert equal(apart.batch(epoch, index), within.batch(epoch, index))


@pytest.mark.parametrize("make", [stored, mixed])
def test_the_set_stays_as_it_is(make):
    x, y = images(23)
    part = Part(scaled(x), y)
    loader = make(part=part, scaling=lambda x: x)
    for epoch in range(3):
        for index in range(len(loader)):
            for tensor in loader.batch(epoch, index):
                tensor.zero_()
    assert equal((part.x, part.y), (scaled(x), y))


@pytest.mark.parametrize(("crop", "flip"), [(2, False), (0, True)])
def test_crop_or_flip_alone(crop, flip):
    x, y = stored(23, 23, crop=crop, flip=flip).batch(0, 0)
    kept = images(23)[0][y]
    changed = (x != kept).flatten(1).any(1)
    assert 5 < changed.sum() < 23  # 24 of 25 crops move an image on average, one of two flips
    if not crop:
        assert torch.equal(x[changed], kept[changed].flip(-1))


@pytest.mark.parametrize("make", [stored, mixed, drawn])
def test_iteration_goes_through_the_current_epoch(make):
    now = [0]
    loader = make(epoch=lambda: now[0])
    for epoch in (0, 3):
        now[0] = epoch
        batches = list(loader)
        assert len(batches) == len(loader) == 3
        for index, batch in enumerate(batches):
            assert equal(batch, make().batch(epoch, index))


def test_the_epoch_is_asked_for_at_the_first_batch_and_kept():
    now = [0]
    loader = stored(epoch=lambda: now[0])
    batches = iter(loader)
    now[0] = 2
    first = next(batches)
    now[0] = 9
    assert equal(first, loader.batch(2, 0))
    assert equal(next(batches), loader.batch(2, 1))
