"""Splits, normalisation, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as reference

from gradflow.data.adding import adding
from gradflow.data.datamodule import DataModule, channel_moments, held_out
from gradflow.data.source import Source
from gradflow.mistakes import Mistake
from gradflow.spec import Spec

LABELS = (0,) * 60 + (1,) * 30 + (2,) * 10


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


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("split", ["train", "test"])
def test_images_are_normalised_as_torchvision_would(channels, split):
    data = ready(pictures, 40, channels=channels)
    x, y = data.loader(split, None, training=False).batch(0, 0)
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
    x, _ = data.loader("train", None, training=True).batch(3, 0)
    assert x.double().mean((0, 2, 3)).abs().max() < 1e-6
    assert (x.double().std((0, 2, 3), correction=0) - 1).abs().max() < 1e-6


def test_moments_come_from_the_training_part_alone():
    data = ready(pictures, 20, val=0.25)
    mean, std = channel_moments(data.splits["train"][0])
    assert torch.equal(data.mean, mean)
    assert torch.equal(data.std, std)
    assert not torch.equal(mean, channel_moments(pictures().load()["train"][0])[0])


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_channel_moments_are_exact(channels):
    images = torch.randint(256, (17, channels, 5, 3), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    images[:, 0] //= 16  # a dark channel
    exact = images.numpy().astype(np.float64) / 255
    mean, std = channel_moments(images)
    np.testing.assert_allclose(mean.numpy(), exact.mean((0, 2, 3)), rtol=6e-8)
    np.testing.assert_allclose(std.numpy(), exact.std((0, 2, 3)), rtol=1e-7)


@pytest.mark.parametrize("samples", [3, 7])
def test_a_constant_channel_keeps_finite_moments(samples):
    for value in range(256):
        mean, std = channel_moments(torch.full((samples, 1, 5, 5), value, dtype=torch.uint8))
        assert mean.item() == pytest.approx(value / 255)
        assert std.item() == pytest.approx(1 / 255), f"all pixels are {value}"


def test_floats_are_served_as_they_are():
    x, y = ready(points, 40).loader("train", None, training=False).batch(0, 0)
    assert torch.equal(x, points().load()["train"][0])
    assert torch.equal(y, points().load()["train"][1])


def held(amount: float, seed: int = 0, task: str = "classification"):
    """Labels of the two parts, and the numbers of their samples."""
    order = np.random.default_rng(0).permutation(len(LABELS))
    y = torch.tensor(LABELS)[order]
    return held_out((torch.arange(len(y)), y), amount, seed, task)


@pytest.mark.parametrize(
    ("amount", "counts"), [(0.1, [6, 3, 1]), (0.5, [30, 15, 5]), (20, [12, 6, 2]), (0.9, [54, 27, 9])]
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_each_class_gives_its_share(amount, counts, seed):
    (train, kept), (val, taken) = held(amount, seed)
    assert taken.bincount(minlength=3).tolist() == counts
    assert kept.bincount(minlength=3).tolist() == [60 - counts[0], 30 - counts[1], 10 - counts[2]]
    assert sorted(train.tolist() + val.tolist()) == list(range(100))


@pytest.mark.parametrize("count", [1, 7, 33, 99])
def test_shares_that_do_not_divide_are_off_by_less_than_one(count):
    _, (_, taken) = held(count)
    assert len(taken) == count
    for size, got in zip((60, 30, 10), taken.bincount(minlength=3).tolist(), strict=True):
        assert abs(got - size * count / 100) <= 1


def test_samples_keep_their_targets_and_their_order():
    order = np.random.default_rng(0).permutation(len(LABELS))
    y = torch.tensor(LABELS)[order]
    for x, labels in held(0.3):
        assert torch.equal(labels, y[x])
        assert torch.equal(x, x.sort().values)


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_the_seed_says_who_is_held_out(task):
    first, again, other = (held(0.3, seed, task)[1][0] for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_global_generator_has_no_say():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    held(0.3)
    ready(pictures, 10, val=0.2)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("val", "count"), [(0.25, 10), (1, 1), (13, 13), (0.03, 1)])
def test_a_fraction_or_a_number(val, count):
    data = ready(pictures, 1, val=val)
    assert data.sizes == {"train": 40 - count, "val": count, "test": 40}
    assert len(data.val_dataloader()) == count


@pytest.mark.parametrize("val", [40, 41, 0.01, 0.99, 1e9])
def test_impossible_parts_are_refused(val):
    with pytest.raises(Mistake, match=r"data\.val=.* 40 samples"):
        ready(pictures, 4, val=val)


def test_a_number_of_samples_is_whole():
    with pytest.raises(Mistake, match=r"data\.val=1\.5"):
        ready(pictures, 4, val=1.5)


@pytest.mark.parametrize("val", [0.1, 1.5])
def test_an_endless_source_has_no_fractions(val):
    with pytest.raises(Mistake, match=r"data\.val="):
        DataModule(adding, 4, samples=40, val=val, length=5)


def test_a_split_of_the_source_comes_first():
    data = ready(pictures, 4, val=0.5, extra=("val", "test"))
    assert data.sizes == {"train": 40, "val": 40, "test": 40}
    assert torch.equal(data.splits["val"][0], dealt(40, 3, 1)[0])


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
        ({"batch_size": 4, "crop": -1}, r"data\.crop=-1: expected 0"),
        ({"batch_size": 4, "val": -0.1}, r"data\.val=-0\.1: expected 0"),
        ({"batch_size": 4, "test": -1}, r"data\.test=-1: expected 0"),
    ],
)
def test_impossible_values_are_named(options, words):
    with pytest.raises(Mistake, match=words):
        DataModule(pictures, **options)


def test_a_batch_larger_than_the_set_is_refused():
    with pytest.raises(Mistake, match=r"data\.batch_size=41: there are 40 training samples"):
        ready(pictures, 41)
    with pytest.raises(Mistake, match=r"data\.batch_size=40: there are 30 training samples"):
        ready(pictures, 40, val=10)
    assert len(ready(pictures, 40).loader("train", None, training=True)) == 1


def test_an_epoch_holds_at_least_one_batch():
    with pytest.raises(Mistake, match=r"data\.samples=9: expected at least one batch of 10"):
        DataModule(adding, 10, samples=9, length=5)
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
    with pytest.raises(Mistake, match=rf"data\.batch_size={batch_size}: {world} devices"):
        data.loader("train", trainer_of(world=world), training=True)


def test_the_trainer_gives_rank_and_epoch():
    data = ready(pictures, 8, crop=2, flip=True)
    alone = data.loader("train", trainer_of(epoch=3), training=True)
    x, y = alone.batch(3, 2)
    for rank in range(2):
        shared = data.loader("train", trainer_of(rank, 2, epoch=3), training=True)
        part = list(shared)[2]
        assert torch.equal(part[0], x[4 * rank : 4 * rank + 4])
        assert torch.equal(part[1], y[4 * rank : 4 * rank + 4])


def test_a_resumed_epoch_goes_on_where_it_was():
    data = ready(pictures, 8)
    whole = list(data.loader("train", trainer_of(epoch=1), training=True))
    rest = list(data.loader("train", trainer_of(epoch=1, done=2), training=True))
    assert len(rest) == len(whole) - 2
    assert all(torch.equal(a[0], b[0]) for a, b in zip(rest, whole[2:], strict=True))


def test_overfitting_sees_the_same_batches_in_each_epoch():
    data = ready(pictures, 8, crop=2, flip=True)
    for overfit, same in ((1, True), (0, False)):
        first, later = (list(data.loader("train", trainer_of(0, 1, epoch, overfit), training=True)) for epoch in (0, 4))
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
    assert told == {"name": "pictures", "samples": {"train": 30, "val": 10, "test": 40}}
