"""Sizes, normalisation, fixed sets, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as reference

from gradflow.data import moments
from gradflow.data.datamodule import DataModule
from gradflow.data.moments import channel_moments
from gradflow.data.sources.adding import adding
from gradflow.data.sources.copy_memory import copy_memory
from gradflow.data.sources.source import Source
from gradflow.data.splits import Part
from gradflow.runs.errors import UserError
from gradflow.spec import Spec


def dealt(samples: int, channels: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images whose channels differ in mean and spread, and a label each."""
    source = np.random.default_rng(seed)
    x = source.normal(np.arange(60, 60 + 50 * channels, 50)[:, None, None], 30, (samples, channels, 6, 6))
    return torch.from_numpy(x.clip(0, 255).astype(np.uint8)), torch.arange(samples) % 4


def pictures(samples: int = 40, channels: int = 3, extra: tuple[str, ...] = ("test",)) -> Source:
    spec = Spec("image", (channels, 6, 6), "classification", outputs=4)
    splits = {name: dealt(samples, channels, seed) for seed, name in enumerate(("train", *extra))}
    return Source("pictures", spec, load=lambda: splits)


def points(samples: int = 40) -> Source:
    data = torch.arange(samples * 2).float().view(-1, 2), torch.arange(samples).float().view(-1, 1)
    return Source("points", Spec("vector", (2,), "regression", outputs=1), load=lambda: {"train": data})


def numbered(samples: int = 120) -> Source:
    """Samples that are their own numbers, of classes 0, 1 and 2 in the proportions 3 : 2 : 1."""
    data = torch.arange(samples).float().view(-1, 1), torch.tensor([0, 0, 0, 1, 1, 2]).repeat(samples // 6)
    return Source("numbered", Spec("vector", (1,), "classification", outputs=3), load=lambda: {"train": data})


def steps(samples: int = 40) -> Source:
    """Images in reading order: [N, T, C], uint8."""
    spec = Spec("sequence", (36, 3), "classification", outputs=4)
    splits = {name: dealt(samples, 3, seed) for seed, name in enumerate(("train", "test"))}
    flat = {name: (x.flatten(2).transpose(1, 2), y) for name, (x, y) in splits.items()}
    return Source("steps", spec, load=lambda: flat)


def ready(*arguments, **options) -> DataModule:
    data = DataModule(*arguments, **options)
    data.prepare_data()
    data.setup()
    return data


def trainer_of(rank: int = 0, world: int = 1, epoch: int = 0, overfit: float = 0, done: int = 0) -> SimpleNamespace:
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    progress = SimpleNamespace(current=SimpleNamespace(ready=done))
    fit_loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
    return SimpleNamespace(
        fit_loop=fit_loop,
        strategy=strategy,
        global_rank=rank,
        world_size=world,
        current_epoch=epoch,
        overfit_batches=overfit,
    )


def training(data: DataModule, trainer: SimpleNamespace | None = None):
    data.trainer = trainer
    return data.loader("train", training=True)


def evaluated(data: DataModule, split: str) -> list[torch.Tensor]:
    """Inputs and targets of a split, as evaluation shows them."""
    return [torch.cat(parts) for parts in zip(*data.loader(split), strict=True)]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("split", ["train", "test"])
def test_images_are_normalised_as_torchvision_would(channels, split):
    data = ready(pictures, 40, channels=channels)
    x, y = data.loader(split).batch(0, 0)
    raw, labels = pictures(channels=channels).load()[split]
    train = pictures(channels=channels).load()["train"][0].numpy().astype(np.float64) / 255
    mean, std = train.mean((0, 2, 3)), train.std((0, 2, 3))
    pillow = [raw_image.permute(1, 2, 0).numpy() for raw_image in raw]
    expected = torch.stack([reference.normalize(reference.to_tensor(image), mean, std) for image in pillow])
    torch.testing.assert_close(x, expected, rtol=0, atol=2e-6)
    assert x.dtype == torch.float32
    assert torch.equal(y, labels)


def test_the_training_set_has_mean_zero_and_variance_one():
    data = ready(pictures, 40)
    x, _ = data.loader("train", training=True).batch(3, 0)
    assert x.double().mean((0, 2, 3)).abs().max() < 1e-6
    assert (x.double().std((0, 2, 3), correction=0) - 1).abs().max() < 1e-6


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("val", [0, 10])
def test_sequences_are_normalised_by_their_last_axis(split, val):
    data = ready(steps, 30, val=val)
    x, _ = evaluated(data, split)
    train = evaluated(ready(steps, 30, val=val), "train")[0].double()
    assert train.mean((0, 1)).abs().max() < 1e-6
    assert (train.std((0, 1), correction=0) - 1).abs().max() < 1e-6
    if not val:
        raw = {name: part.numpy().astype(np.float64) / 255 for name, (part, _) in steps().load().items()}
        expected = (raw[split] - raw["train"].mean((0, 1))) / raw["train"].std((0, 1))
        torch.testing.assert_close(x, torch.from_numpy(expected).float(), rtol=0, atol=2e-6)


def test_images_and_their_pixels_in_a_row_get_the_same_numbers():
    image, row = (evaluated(ready(source, 20, val=10), "val")[0] for source in (pictures, steps))
    assert torch.equal(image.flatten(2).transpose(1, 2), row)


def test_moments_come_from_the_training_part_alone():
    data = ready(pictures, 20, val=0.25)
    mean, std = channel_moments(data.splits["train"], 1)
    assert torch.equal(data.normalise.mean, mean)
    assert torch.equal(data.normalise.std, std)
    assert len(data.splits["train"]) == 30
    assert not torch.equal(mean, channel_moments(Part(*pictures().load()["train"]), 1)[0])


def bytes_of(shape: tuple[int, ...], axis: int) -> torch.Tensor:
    """Random, with one dark channel along `axis`."""
    x = torch.randint(256, shape, generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    x.select(axis, 0).div_(16, rounding_mode="floor")
    return x


ROWS = [None, torch.tensor([3, 0, 16, 7, 7])]


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(
    ("shape", "axis"), [((17, 1, 5, 3), 1), ((17, 3, 5, 3), 1), ((17, 5, 5, 3), 1), ((17, 9, 4), 2), ((17, 2, 6), 2)]
)
def test_channel_moments_are_exact(shape, axis, rows):
    x = bytes_of(shape, axis)
    exact = (x if rows is None else x[rows]).numpy().astype(np.float64) / 255
    others = tuple(other for other in range(len(shape)) if other != axis)
    mean, std = channel_moments(Part(x, torch.zeros(17), rows), axis)
    np.testing.assert_allclose(mean.numpy(), exact.mean(others), rtol=6e-8)
    np.testing.assert_allclose(std.numpy(), exact.std(others), rtol=1e-7)


@pytest.mark.parametrize("rows", [None, torch.arange(24, -1, -1), torch.arange(0, 25, 2)])
@pytest.mark.parametrize("measured", [1, 4, 8, 10, 12, 13, 24, 25, 26])
def test_of_many_images_evenly_spaced_ones_are_measured(measured, rows, monkeypatch):
    monkeypatch.setattr(moments, "MEASURED", measured)
    monkeypatch.setattr(moments, "CHUNK", 4)
    x = bytes_of((25, 3, 5, 3), 1)
    part = Part(x, torch.zeros(25), rows)
    own = x if rows is None else x[rows]
    every = next(step for step in range(1, 26) if len(own[::step]) <= measured)
    exact = own[::every].numpy().astype(np.float64) / 255
    mean, std = channel_moments(part, 1)
    np.testing.assert_allclose(mean.numpy(), exact.mean((0, 2, 3)), rtol=6e-8)
    np.testing.assert_allclose(std.numpy(), exact.std((0, 2, 3)), rtol=1e-7)


@pytest.mark.parametrize("samples", [3, 7])
def test_a_constant_channel_keeps_finite_moments(samples):
    for value in range(256):
        part = Part(torch.full((samples, 1, 5, 5), value, dtype=torch.uint8), torch.zeros(samples))
        mean, std = channel_moments(part, 1)
        assert mean.item() == pytest.approx(value / 255)
        assert std.item() == pytest.approx(1 / 255), f"all pixels are {value}"


def test_floats_are_served_as_they_are():
    x, y = ready(points, 40).loader("train").batch(0, 0)
    assert torch.equal(x, points().load()["train"][0])
    assert torch.equal(y, points().load()["train"][1])


@pytest.mark.parametrize(("val", "count"), [(0.25, 10), (1, 1), (13, 13), (0.03, 1)])
def test_a_fraction_or_a_number(val, count):
    data = ready(pictures, 1, val=val)
    assert data.sizes == {"train": 40 - count, "val": count, "test": 40}
    assert len(data.val_dataloader()) == count


@pytest.mark.parametrize(("test", "val", "counts"), [(0.25, 0.1, [27, 3, 10]), (7, 0, [33, 0, 7]), (1, 38, [1, 38, 1])])
def test_val_is_held_out_of_what_the_test_leaves(test, val, counts):
    data = ready(pictures, 1, val=val, test=test, extra=())
    assert [data.sizes[split] for split in ("train", "val", "test")] == counts
    assert [data.has(split) for split in ("train", "val", "test")] == [True, val > 0, True]
    assert [len(loader) for loader in (data.val_dataloader(), data.test_dataloader())] == counts[1:]


@pytest.mark.parametrize("amount", [40, 41, 0.01, 0.99, 1e9])
@pytest.mark.parametrize("split", ["val", "test"])
def test_impossible_parts_are_refused(split, amount):
    with pytest.raises(UserError, match=rf"^data\.{split}={amount}: .* 40 samples there are$"):
        ready(pictures, 4, extra=(), **{split: amount})


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_number_of_samples_is_whole(split):
    with pytest.raises(UserError, match=rf"data\.{split}=1\.5: expected a whole number of samples or a fraction$"):
        ready(pictures, 4, **{split: 1.5})


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("amount", [0.1, 1.5])
def test_an_endless_source_has_no_fractions(split, amount):
    with pytest.raises(UserError, match=rf"data\.{split}={amount}: expected a whole number of samples$"):
        DataModule(adding, 4, samples=40, length=5, **{split: amount})


def test_a_split_of_the_source_comes_first():
    data = ready(pictures, 4, val=0.5, extra=("val", "test"))
    assert data.sizes == {"train": 40, "val": 40, "test": 40}
    assert torch.equal(data.splits["val"].x, dealt(40, 3, 1)[0])


def numbers(data: DataModule, split: str) -> list[int]:
    return data.splits[split].x.flatten().int().tolist()


@pytest.mark.parametrize(("test", "val"), [(0.2, 0.25), (24, 24)])
def test_the_test_samples_are_the_same_in_every_run(test, val):
    runs = [ready(numbered, 6, seed, val=val, test=test) for seed in range(4)]
    for data in runs:
        assert data.sizes == {"train": 72, "val": 24, "test": 24}
        assert sorted(number for split in data.splits for number in numbers(data, split)) == list(range(120))
        assert numbers(data, "test") == numbers(runs[0], "test")
        for split, part in data.splits.items():
            assert part.y.bincount().tolist() == [len(part) // 6 * share for share in (3, 2, 1)], split
            assert torch.equal(part.y, numbered().load()["train"][1][numbers(data, split)])
    assert len({tuple(numbers(data, "val")) for data in runs}) == 4
    without = ready(numbered, 6, seed=5, test=test)
    assert numbers(without, "test") == numbers(runs[0], "test")
    assert without.sizes["val"] == 0


@pytest.mark.parametrize("test", [0, 0.5, 10])
def test_a_test_set_of_the_source_is_the_test_set(test):
    data = ready(pictures, 4, test=test)
    assert data.sizes == {"train": 40, "val": 0, "test": 40}
    assert torch.equal(data.splits["test"].x, dealt(40, 3, 1)[0])


def test_without_val_there_is_nothing_to_loop_over():
    data = ready(pictures, 4, extra=())
    assert list(data.val_dataloader()) == list(data.test_dataloader()) == []
    assert not data.has("val")
    assert data.has("train")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, r"data\.batch_size=0: expected 1"),
        ({"batch_size": -3}, r"data\.batch_size=-3: expected 1"),
        ({"batch_size": 4, "crop": -1}, r"data\.crop=-1: expected 0 or more"),
        ({"batch_size": 4, "val": -0.1}, r"data\.val=-0\.1: expected 0"),
        ({"batch_size": 4, "test": -1}, r"data\.test=-1: expected 0"),
        ({"batch_size": 4, "cutout": -1}, r"data\.cutout=-1: expected 0 or more"),
        ({"batch_size": 4, "mixup": -0.1}, r"data\.mixup=-0\.1: expected 0 or more"),
        (
            {"batch_size": 4, "flip": True, "alternating_flip": True},
            r"data\.flip=true, data\.alternating_flip=true: expected one of the two",
        ),
    ],
)
def test_impossible_values_are_named(options, words):
    with pytest.raises(UserError, match=words):
        DataModule(pictures, **options)


def test_a_batch_larger_than_the_set_is_refused():
    with pytest.raises(UserError, match=r"data\.batch_size=41: there are 40 training samples"):
        ready(pictures, 41)
    with pytest.raises(UserError, match=r"data\.batch_size=40: there are 30 training samples"):
        ready(pictures, 40, val=10)
    assert len(training(ready(pictures, 40))) == 1
    with pytest.raises(UserError, match=r"data\.batch_size=31: there are 30 training samples"):
        ready(pictures, 31, test=0.25, extra=())


def test_mixup_gives_a_share_of_each_class():
    data = ready(pictures, 8, crop=1, mixup=0.5)
    loader, plain = training(data), training(ready(pictures, 8, crop=1))
    for (x, y), (_, own) in zip(loader, plain, strict=True):
        assert x.shape == (8, 3, 6, 6)
        assert y.shape == (8, 4)
        torch.testing.assert_close(y.sum(1), torch.ones(8))
        assert (y.gather(1, own[:, None]) >= 0.5).all()
    for split in ("train", "test"):  # evaluation has labels
        assert torch.equal(evaluated(data, split)[1], pictures().load()[split][1])


def test_a_hole_is_the_mean_of_the_training_images():
    data, plain = ready(pictures, 40, cutout=3), ready(pictures, 40)
    cut, whole = training(data).batch(2, 0)[0], training(plain).batch(2, 0)[0]
    holes = (cut != whole).any(1)
    assert 4 <= holes.sum((1, 2)).min() < holes.sum((1, 2)).max() <= 9
    assert (cut.movedim(1, -1)[holes] == 0).all()
    assert torch.equal(evaluated(data, "test")[0], evaluated(plain, "test")[0])


def test_an_epoch_holds_at_least_one_batch():
    for fresh in (True, False):
        with pytest.raises(UserError, match=r"data\.samples=9: expected at least one batch of 10"):
            DataModule(adding, 10, samples=9, length=5, fresh=fresh)
    data = ready(adding, 10, samples=10, length=5)
    assert len(data.train_dataloader()) == 1
    assert data.val_dataloader() == []


def test_an_endless_source_counts_what_it_is_told():
    data = ready(adding, 10, samples=35, val=12, test=5, length=5)
    sizes = [
        [len(y) for _, y in loader]
        for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    ]
    assert sizes == [[10, 10, 10], [10, 2], [5]]


@pytest.mark.parametrize(("batch_size", "world"), [(10, 4), (3, 2), (1, 2)])
def test_a_batch_that_devices_cannot_share_is_refused(batch_size, world):
    data = ready(pictures, batch_size)
    for use in (data.attach, lambda trainer: training(data, trainer)):
        with pytest.raises(UserError, match=rf"data\.batch_size={batch_size}: {world} devices"):
            use(trainer_of(world=world))


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_split_with_fewer_samples_than_devices_is_refused(split):
    data = ready(pictures, 4, extra=(), **{split: 3})
    data.trainer = trainer_of(world=4)
    with pytest.raises(UserError, match=rf"^{split} has 3 samples: too few for 4 devices$"):
        data.loader(split)
    data = ready(pictures, 4, extra=(), **{split: 4})
    data.trainer = trainer_of(world=4)
    assert len(data.loader(split)) == 1


def test_the_trainer_gives_rank_and_epoch():
    data = ready(pictures, 8, crop=2, flip=True)
    alone = training(data, trainer_of(epoch=3))
    x, y = alone.batch(3, 2)
    for rank in range(2):
        shared = training(data, trainer_of(rank, 2, epoch=3))
        part = list(shared)[2]
        assert torch.equal(part[0], x[4 * rank : 4 * rank + 4])
        assert torch.equal(part[1], y[4 * rank : 4 * rank + 4])


def test_a_resumed_epoch_goes_on_where_it_was():
    data = ready(pictures, 8)
    whole = list(training(data, trainer_of(epoch=1)))
    rest = list(training(data, trainer_of(epoch=1, done=2)))
    assert len(rest) == len(whole) - 2
    assert all(torch.equal(a[0], b[0]) for a, b in zip(rest, whole[2:], strict=True))


def test_overfitting_sees_the_same_batches_in_each_epoch():
    data = ready(pictures, 8, crop=2, flip=True)
    for overfit, same in ((1, True), (0, False)):
        first, later = (list(training(data, trainer_of(0, 1, epoch, overfit))) for epoch in (0, 4))
        assert all(torch.equal(a[1], b[1]) for a, b in zip(first, later, strict=True)) is same


def test_the_spec_is_known_before_the_data():
    def never() -> dict:
        raise AssertionError("loaded")

    spec = Spec("vector", (2,), "regression", outputs=1)
    data = DataModule(lambda: Source("late", spec, load=never, prepare=never), 4)
    assert data.spec is spec
    with pytest.raises(AssertionError, match="loaded"):
        data.prepare_data()


def test_sources_prepare_and_load_once():
    calls = []

    def source() -> Source:
        made = pictures()
        return Source(
            "counted",
            made.spec,
            load=lambda: calls.append("load") or made.load(),
            prepare=lambda: calls.append("prepare"),
        )

    data = DataModule(source, 4)
    for stage in ("fit", "validate", "test"):
        data.prepare_data()
        data.setup(stage)
    assert calls == ["prepare", "load"]


def test_the_description_names_the_data():
    told = ready(pictures, 4, val=0.25).describe()
    counts = {"train": 30, "val": 10, "test": 40}
    assert told == {"name": "pictures", "samples": counts, "memory": "in the host's memory"}
    told = ready(adding, 4, val=3, samples=9, length=5).describe()
    counts = {"train": 9, "val": 3, "test": 0}
    assert told == {"name": "adding", "samples": counts, "memory": "generated on the fly"}


@pytest.mark.parametrize(
    ("size", "places"), [(1, [0]), (4, [0, 2, 5, 7]), (10, list(range(10))), (64, list(range(10)))]
)
@pytest.mark.parametrize(("val", "split"), [(10, "val"), (0, "train")])
def test_a_sample_is_spread_over_what_is_held_out(size, places, val, split):
    data = ready(lambda: pictures(40 if val else 10), 5, val=val, crop=2, flip=True, mixup=1.0)
    whole = evaluated(data, split)
    for rank, epoch in ((0, 0), (1, 4)):
        data.trainer = trainer_of(rank, 5, epoch)
        assert all(torch.equal(part, all_of[places]) for part, all_of in zip(data.sample(size), whole, strict=True))


def test_training_inputs_are_spread_over_the_training_part_alone():
    data = ready(numbered, 10, val=30, test=30)
    held_out = {*numbers(data, "val"), *numbers(data, "test")}
    for rank in (0, 1):
        data.trainer = trainer_of(rank, 2)
        assert data.training_inputs(60).flatten().tolist() == numbers(data, "train")
        few = data.training_inputs(6).flatten().tolist()
        assert few == numbers(data, "train")[::10]
        assert not held_out & {*few}


@pytest.mark.parametrize(("val", "fresh"), [(12, True), (12, False), (0, True), (0, False)])
def test_a_sample_of_an_endless_source_is_always_the_same(val, fresh):
    data = ready(adding, 10, seed=3, samples=20, val=val, fresh=fresh, length=5)
    x, y = data.sample(8)
    assert len(x) == len(y) == 8
    torch.testing.assert_close(x.prod(2).sum(1, keepdim=True), y)
    data.trainer = trainer_of(rank=1, world=2, epoch=5)
    assert all(torch.equal(a, b) for a, b in zip(data.sample(8), (x, y), strict=True))
    assert len(data.sample(99)[0]) == (val or 20)


def fixed(batch_size: int = 10, fresh: bool = False, samples: int = 40, source=adding, **more) -> DataModule:
    return ready(source, batch_size, samples=samples, fresh=fresh, val=12, test=5, length=5, **more)


def shown(data: DataModule, epoch: int, rank: int = 0, world: int = 1) -> list[tuple]:
    """The samples of an epoch in their order."""
    loader = training(data, trainer_of(rank, world, epoch))
    return [(str(x.tolist()), str(y.tolist())) for batch in loader for x, y in zip(*batch, strict=True)]


@pytest.mark.parametrize("source", [adding, copy_memory])
def test_a_fixed_set_is_the_same_in_each_epoch(source):
    data = fixed(source=source)
    epochs = [shown(data, epoch) for epoch in (0, 1, 7)]
    assert len(set(epochs[0])) == 40
    assert set(epochs[0]) == set(epochs[1]) == set(epochs[2])
    assert len(set(map(tuple, epochs))) == 3
    assert shown(fixed(source=source), 7) == epochs[2]
    assert not set(epochs[0]) & set(shown(fixed(source=source, seed=1), 0))


def test_a_fixed_set_comes_at_most_once_an_epoch():
    data = fixed(10, samples=37)
    assert data.sizes == {"train": 37, "val": 12, "test": 5}
    everyone = set()
    for epoch in range(12):
        now = shown(data, epoch)
        assert len(now) == len(set(now)) == 30
        everyone |= set(now)
    assert len(everyone) == 37


@pytest.mark.parametrize(("batch_size", "world"), [(1, 1), (4, 2), (8, 4), (40, 1)])
def test_a_fixed_set_does_not_depend_on_the_batches(batch_size, world):
    data = fixed(batch_size)
    ranks = [shown(data, 3, rank, world) for rank in range(world)]
    assert set().union(*ranks) == set(shown(fixed(10), 0))
    assert sum(map(len, ranks)) == 40


def test_samples_of_a_fixed_set_keep_their_targets():
    for x, y in training(fixed(), trainer_of(epoch=2)):
        torch.testing.assert_close(x.prod(2).sum(1, keepdim=True), y)


@pytest.mark.parametrize("source", [adding, copy_memory])
def test_fresh_samples_differ_from_epoch_to_epoch_and_from_the_fixed(source):
    data = fixed(fresh=True, source=source)
    epochs = [set(shown(data, epoch)) for epoch in range(3)]
    assert len(set.union(*epochs)) == 120
    assert data.splits == {}


def test_a_fixed_set_leaves_val_and_test_as_they_are():
    for split in ("val", "test"):
        one, other = (evaluated(fixed(5, fresh), split) for fresh in (True, False))
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
        assert len(one[0]) == {"val": 12, "test": 5}[split]
        numbers, train = (set(x[..., 0].flatten().tolist()) for x in (one[0], evaluated(fixed(5), "train")[0]))
        assert not numbers & train  # nor are they drawn alike


def test_a_fixed_set_is_described_and_drawn_once():
    made, calls = adding(5), []

    def draw(n: int, generator: torch.Generator):
        calls.append(n)
        return made.generate(n, generator)

    data = ready(lambda: Source("counted", made.spec, generate=draw), 10, samples=40, fresh=False)
    data.setup("test")
    list(training(data, trainer_of(epoch=0)))
    list(training(data, trainer_of(epoch=1)))
    assert calls == [40]
    assert data.describe()["memory"] == "in the host's memory"


@pytest.mark.parametrize(
    "option", [{"crop": 1}, {"flip": True}, {"alternating_flip": True}, {"cutout": 2}, {"mixup": 0.2}]
)
def test_augmentation_is_for_images(option):
    fixed_set = {"length": 5, "samples": 8, "fresh": False}
    for source, kind, options in ((points, "vector", {}), (adding, "sequence", fixed_set)):
        with pytest.raises(UserError, match=rf"^data\.crop, .*: are for images, not for a {kind}$"):
            DataModule(source, 4, **options, **option)


def test_an_unknown_memory_is_told_before_data_load():
    with pytest.raises(UserError, match=r"^data\.memory=nonsense: expected auto, device, host, mapped$"):
        DataModule(adding, 4, samples=8, length=5, memory="nonsense")


@pytest.mark.parametrize(
    ("spec", "options", "words"),
    [
        (
            {"task": "segmentation"},
            {"crop": 2},
            r"data\.crop=2: brings padding into the targets.*\(ignored=…\); expected 0$",
        ),
        (
            {"task": "segmentation"},
            {"mixup": 0.5},
            r"data\.mixup=0\.5: masks of two samples can't be mixed; expected 0$",
        ),
        ({"task": "regression"}, {"flip": True}, r"data\.flip=true: whether numbers stay the same.*; expected false$"),
        ({"task": "regression"}, {"crop": 1}, r"data\.crop=1: whether numbers stay the same.*; expected 0$"),
        ({"task": "segmentation"}, {"flip": True}, ""),
        ({"task": "segmentation", "ignored": 9}, {"crop": 2}, ""),
        ({"task": "regression"}, {"cutout": 2}, ""),
    ],
)
def test_geometry_that_would_move_the_images_alone_is_refused(spec, options, words):
    whole = Spec("image", (1, 8, 8), outputs=3, **spec)
    source = Source("made", whole, load=dict)
    if not words:
        assert DataModule(lambda: source, 4, **options).spec == whole
        return
    with pytest.raises(UserError, match=words):
        DataModule(lambda: source, 4, **options)
