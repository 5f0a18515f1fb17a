"""What is held out, and sources that contradict their spec."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_datamodule import pictures, points, ready

from gradflow.data.datamodule import DataModule
from gradflow.data.sources.source import Source
from gradflow.data.splits import Part, check, held_out
from gradflow.runs.errors import UserError
from gradflow.spec import Spec

LABELS = (0,) * 60 + (1,) * 30 + (2,) * 10
CLASSES = Spec("vector", (), "classification", outputs=3)
NUMBERS = Spec("vector", (), "regression", outputs=1)


def everyone() -> Part:
    """Samples with their numbers, and labels in no order."""
    y = torch.tensor(LABELS)[np.random.default_rng(0).permutation(len(LABELS))]
    return Part(torch.arange(len(y)), y)


def both(part: Part) -> tuple[torch.Tensor, torch.Tensor]:
    return part.take("x", slice(None)), part.take("y", slice(None))


def held(amount: float, seed: int = 0, spec: Spec = CLASSES):
    """The numbers of the two parts' samples, and their labels."""
    return [both(part) for part in held_out(everyone(), amount, seed, spec)]


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
    y = everyone().y
    for x, labels in held(0.3):
        assert torch.equal(labels, y[x])
        assert torch.equal(x, x.sort().values)


@pytest.mark.parametrize("spec", [CLASSES, NUMBERS])
def test_the_seed_says_who_is_held_out(spec):
    first, again, other = (held(0.3, seed, spec)[1][0] for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_labels_of_each_step_are_held_out_at_random():
    part = Part(torch.arange(40), torch.zeros(40, 3, dtype=int))
    train, val = held_out(part, 10, 0, replace(CLASSES, per_step=True))
    assert sorted(torch.cat([train.rows, val.rows]).tolist()) == list(range(40))
    assert val.rows.tolist() != list(range(10))


def test_the_global_generator_has_no_say():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    held(0.3)
    ready(pictures, 10, val=0.2, test=0.2, extra=())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("second", [0.25, 20])
def test_a_part_of_a_part(second):
    """The numbers of samples stay those of the whole set, and nothing is copied."""
    whole = everyone()
    rest, test = held_out(whole, 0.2, 0, CLASSES, "test")
    train, val = held_out(rest, second, 1, CLASSES)
    assert [len(part) for part in (train, val, test)] == [60, 20, 20]
    assert sorted(torch.cat([part.rows for part in (train, val, test)]).tolist()) == list(range(100))
    for part, counts in ((train, [36, 18, 6]), (val, [12, 6, 2]), (test, [12, 6, 2])):
        x, y = both(part)
        assert part.x is whole.x
        assert part.y is whole.y
        assert torch.equal(x, part.rows)
        assert torch.equal(y, whole.y[part.rows])
        assert y.bincount().tolist() == counts


@pytest.mark.parametrize("rows", [None, torch.tensor([7, 1, 1, 4, 0])])
@pytest.mark.parametrize("which", [slice(1, 3), slice(3, 99), torch.tensor([4, 0, 4]), torch.tensor([], dtype=int)])
def test_a_part_is_those_rows(rows, which):
    source = torch.Generator().manual_seed(0)
    x, y = torch.rand(9, 2, 3, generator=source), torch.arange(9)
    part = Part(x, y, rows)
    plain = (x, y) if rows is None else (x[rows], y[rows])
    assert torch.equal(part.take("x", which), plain[0][which])
    assert torch.equal(part.take("y", which), plain[1][which])
    assert len(part) == len(plain[1])
    assert part.nbytes == plain[0].nbytes + plain[1].nbytes == len(part) * (6 * 4 + 8)


def contradiction(split: str, x: torch.Tensor, y: torch.Tensor) -> Source:
    splits = {**pictures(extra=("val", "test")).load(), split: (x, y)}
    return replace(pictures(), load=lambda: splits)


GOOD = torch.zeros(5, 3, 6, 6, dtype=torch.uint8)


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (GOOD, torch.zeros(4, dtype=int), "5 inputs and 4 targets: expected as many of both, and one at least"),
        (GOOD[:0], torch.zeros(0, dtype=int), "0 inputs and 0 targets: expected as many of both, and one at least"),
        (GOOD[..., :5], torch.zeros(5, dtype=int), r"inputs of shape \(3, 6, 5\), but the spec says \(3, 6, 6\)"),
        (GOOD[:, 0], torch.zeros(5, dtype=int), r"inputs of shape \(6, 6\), but the spec says \(3, 6, 6\)"),
        (GOOD, torch.tensor([0, 1, -1, 2, 3]), "classes -1 to 3, but the spec says 4, counted from 0"),
        (GOOD, torch.tensor([1, 2, 3, 4, 4]), "classes 1 to 4, but the spec says 4, counted from 0"),
    ],
)
def test_a_source_that_contradicts_its_spec_is_named(split, x, y, words):
    data = DataModule(lambda: contradiction(split, x, y), 1)
    with pytest.raises(UserError, match=f"^pictures, {split}: {words}$"):
        data.setup()


def test_a_contradiction_in_what_is_held_out_is_found():
    x, y = pictures().load()["train"]
    y = y.index_fill(0, torch.tensor([7]), 4)
    source = replace(pictures(), load=lambda: {"train": (x, y)})
    with pytest.raises(UserError, match=r"^pictures, train: classes 0 to 4"):
        DataModule(lambda: source, 4, val=0.25, test=0.25).setup()


def test_what_agrees_with_its_spec_passes():
    ready(lambda: contradiction("test", GOOD, torch.tensor([0, 3, 3, 0, 3])), 4)
    x, y = points().load()["train"]
    check(Part(x, -y), points().spec, "negative numbers are no classes")
    steps = Spec("sequence", (4,), "classification", outputs=3, tokens=2, per_step=True)
    check(Part(torch.zeros(2, 4, dtype=int), torch.tensor([[0, 1, 2, 0]] * 2)), steps, "a label at each step")
    with pytest.raises(UserError, match=r"^steps: classes 0 to 3"):
        check(Part(torch.zeros(2, 4, dtype=int), torch.tensor([[0, 1, 2, 0], [0, 0, 3, 0]])), steps, "steps")
