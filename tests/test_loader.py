"""Batches: the same whenever, wherever and in whatever order they are asked for."""

from __future__ import annotations

import random

import pytest
import torch

from gradflow.data.augment import Crops, offsets
from gradflow.data.loader import Drawn, Loader, Stored, generator

CPU = torch.device("cpu")
RANKS = (1, 2, 3, 4)


def images(samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random images, numbered by their targets."""
    x = torch.randint(256, (samples, 2, 5, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(7))
    return x, torch.arange(samples)


def draw(n: int, source: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs that depend on how many are drawn, as they do where a target is drawn after them."""
    y = torch.randint(10**6, (n,), generator=source)
    return torch.rand(n, 3, generator=source), y


def stored(samples=23, batch_size=6, training=True, rank=0, world=1, seed=3, crop=2, flip=True, **more) -> Loader:
    make = Stored(images(samples), CPU, seed, training, crop, flip)
    return Loader(samples, batch_size, training, make, rank=rank, world=world, **more)


def drawn(samples=23, batch_size=6, training=True, rank=0, world=1, seed=3, split="train", **more) -> Loader:
    return Loader(
        samples,
        batch_size,
        training,
        Drawn(draw, CPU, seed, split, batch_size),
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


@pytest.mark.parametrize("make", [stored, drawn])
@pytest.mark.parametrize("training", [True, False])
def test_a_batch_depends_on_its_numbers_alone(make, training):
    loader = make(training=training)
    places = [(epoch, index) for epoch in range(4) for index in range(len(loader))]
    in_order = {place: loader.batch(*place) for place in places}
    random.Random(0).shuffle(places)
    again = make(training=training)
    for number, place in enumerate(places * 2):
        torch.manual_seed(number)
        state = torch.get_rng_state()
        assert equal(again.batch(*place), in_order[place])
        assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("make", [stored, drawn])
def test_epochs_batches_and_seeds_differ(make):
    first = make().batch(0, 0)
    assert not equal(make().batch(1, 0), first)
    assert not equal(make().batch(0, 1), first)
    assert not equal(make(seed=4).batch(0, 0), first)


def test_drawn_splits_differ():
    batches = [drawn(split=split).batch(0, 0)[0] for split in ("train", "val", "test")]
    assert not any(torch.equal(batches[a], batches[b]) for a, b in ((0, 1), (0, 2), (1, 2)))


def test_streams_are_apart():
    numbers = [
        torch.rand(4, generator=generator(*words)) for words in [("order", 1, 2), ("order", 2, 1), ("augment", 1, 2)]
    ]
    assert torch.equal(numbers[0], torch.rand(4, generator=generator("order", 1, 2)))
    assert not any(torch.equal(numbers[a], numbers[b]) for a, b in ((0, 1), (0, 2), (1, 2)))


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


@pytest.mark.parametrize("make", [stored, drawn])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("world", [2, 3, 4])
def test_ranks_share_the_batch_of_one(make, training, world):
    alone = make(samples=40, batch_size=12, training=training)
    assert len(alone) == (3 if training else 4)
    for index in range(len(alone)):
        parts = [make(40, 12, training, rank, world).batch(1, index) for rank in range(world)]
        assert equal([torch.cat(part) for part in zip(*parts, strict=True)], alone.batch(1, index))


@pytest.mark.parametrize("make", [stored, drawn])
def test_evaluation_has_the_same_samples_where_the_tail_is_smaller_than_the_ranks(make):
    alone = make(samples=25, batch_size=12, training=False)
    ranks = [make(25, 12, False, rank, 2) for rank in range(2)]
    one = torch.cat([alone.batch(0, index)[1] for index in range(len(alone))])
    two = torch.cat([rank.batch(0, index)[1] for index in range(len(ranks[0])) for rank in ranks])
    assert torch.equal(one, two)


@pytest.mark.parametrize(("batch_size", "world"), [(23, 1), (4, 1), (6, 2), (9, 3)])
def test_augmentation_is_a_function_of_seed_epoch_and_sample(batch_size, world):
    for epoch in (0, 5):
        table = offsets(23, 2, True, generator("augment", 3, epoch))
        x, _ = images(23)
        for rank in range(world):
            loader = stored(23, batch_size, rank=rank, world=world)
            for index in range(len(loader)):
                shown, names = loader.batch(epoch, index)
                for image, name in zip(shown, names.tolist(), strict=True):
                    assert torch.equal(image, Crops(x, 2)(torch.tensor([name]), table[name : name + 1])[0])


@pytest.mark.parametrize(("crop", "flip"), [(2, False), (0, True)])
def test_crop_or_flip_alone(crop, flip):
    x, y = stored(23, 23, crop=crop, flip=flip).batch(0, 0)
    kept = images(23)[0][y]
    changed = (x != kept).flatten(1).any(1)
    assert 5 < changed.sum() < 23  # 24 of 25 crops move an image on average, one of two flips
    if not crop:
        assert torch.equal(x[changed], kept[changed].flip(-1))


@pytest.mark.parametrize("make", [stored, drawn])
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
