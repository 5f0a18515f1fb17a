"""Generated data against their definitions, in slow loops, and against the scores that their docstrings promise."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from gradflow.data.sources.adding import adding
from gradflow.data.sources.copy_memory import copy_memory
from gradflow.data.sources.markov import markov, stationary, transitions
from gradflow.data.sources.regression import regression
from gradflow.data.sources.temporal_order import temporal_order
from gradflow.runs.errors import UserError
from gradflow.spec import Spec
from gradflow.tasks.task import task_of


def drawn(source, n: int, seed: int = 0):
    return source.generate(n, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("source", [adding(9), copy_memory(4), temporal_order(23), markov(5, 9)])
def test_the_generator_says_what_is_drawn(source):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    (x, y), (again, same) = drawn(source, 50), drawn(source, 50)
    assert torch.equal(x, again)
    assert torch.equal(y, same)
    assert not torch.equal(drawn(source, 50, seed=1)[0], x)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("source", "spec"),
    [
        (adding(9), Spec("sequence", (9, 2), "regression", outputs=1)),
        (copy_memory(4), Spec("sequence", (24,), "classification", outputs=9, tokens=10, per_step=True, blank=0)),
        (markov(5, 9), Spec("sequence", (9,), "next_token", outputs=5, tokens=5, per_step=True)),
        (temporal_order(23), Spec("sequence", (23,), "classification", outputs=4, tokens=8)),
    ],
)
def test_specs_tell_the_shapes(source, spec):
    assert source.spec == spec
    x, y = drawn(source, 300)
    assert x.shape == (300, *spec.shape)
    if spec.tokens:
        assert x.dtype == y.dtype == torch.int64
        assert sorted(set(x.flatten().tolist())) == list(range(spec.tokens))
        assert sorted(set(y.flatten().tolist())) == list(range(spec.outputs))
        assert y.shape == ((300, spec.shape[0]) if spec.per_step else (300,))
    else:
        assert x.dtype == y.dtype == torch.float32
        assert y.shape == (300, spec.outputs)


@pytest.mark.parametrize("length", [2, 3, 10, 11])
def test_adding_sums_the_marked_numbers(length):
    x, y = drawn(adding(length), 400)
    places = [set(), set()]
    for sample, target in zip(x.tolist(), y.tolist(), strict=True):
        marked = [step for step, (_, mark) in enumerate(sample) if mark == 1]
        assert all(mark in (0, 1) for _, mark in sample)
        assert len(marked) == 2
        assert marked[0] < length // 2 <= marked[1]
        assert target == [pytest.approx(sample[marked[0]][0] + sample[marked[1]][0], abs=1e-6)]
        for seen, place in zip(places, marked, strict=True):
            seen.add(place)
    assert places == [set(range(length // 2)), set(range(length // 2, length))]
    assert 0 <= x[:, :, 0].min() < 0.02
    assert 0.98 < x[:, :, 0].max() < 1


def test_adding_best_constant_guess():
    _, y = drawn(adding(2), 100_000)
    assert y.mean().item() == pytest.approx(1, abs=0.005)
    assert (y - 1).square().mean().item() == pytest.approx(1 / 6, rel=0.02)


@pytest.mark.parametrize("length", [1, 2, 30])
def test_copying_repeats_the_first_ten_after_the_sign(length):
    x, y = drawn(copy_memory(length), 200)
    for sample, target in zip(x.tolist(), y.tolist(), strict=True):
        symbols = sample[:10]
        assert all(1 <= symbol <= 8 for symbol in symbols)
        assert sample[10:] == [0] * (length - 1) + [9] + [0] * 10
        assert target == [0] * (length + 10) + symbols


@pytest.mark.parametrize("length", [10, 100])
def test_copying_best_guess_without_a_memory(length):
    _, y = drawn(copy_memory(length), 2000)
    guess = torch.zeros(length + 20, 9)
    guess[: length + 10, 0] = 1
    guess[length + 10 :, 1:] = 1 / 8
    loss = F.nll_loss(guess.log().clamp(min=-1e4).expand(len(y), -1, -1).transpose(1, 2), y)
    assert loss.item() == pytest.approx(10 * math.log(8) / (length + 20), rel=1e-5)
    recalled = y[y != 0].bincount(minlength=9)[1:] / (y != 0).sum()
    torch.testing.assert_close(recalled, torch.full((8,), 1 / 8), rtol=0, atol=0.01)
    by_place = torch.stack([(y[:, -10:] == symbol).float().mean(0) for symbol in range(1, 9)])
    assert (by_place - 1 / 8).abs().max() < 0.04  # five standard deviations


@pytest.mark.parametrize("length", [10, 19, 20, 57])
def test_temporal_order_names_the_two_symbols(length):
    x, y = drawn(temporal_order(length), 400)
    tenth = length // 10
    seen = [set(), set()]
    for sample, target in zip(x.tolist(), y.tolist(), strict=True):
        assert (sample[0], sample[-1]) == (6, 7)
        places = [step for step, symbol in enumerate(sample) if symbol in (4, 5)]
        assert len(places) == 2
        assert tenth <= places[0] < 2 * tenth
        assert 5 * tenth <= places[1] < 6 * tenth
        assert all(sample[step] < 4 for step in range(1, length - 1) if step not in places)
        assert target == ["XX", "XY", "YX", "YY"].index("".join("XY"[sample[place] - 4] for place in places))
        for places_seen, place in zip(seen, places, strict=True):
            places_seen.add(place)
    assert seen == [set(range(tenth, 2 * tenth)), set(range(5 * tenth, 6 * tenth))]


def test_temporal_order_best_constant_guess():
    x, y = drawn(temporal_order(10), 20_000)
    shares = y.bincount(minlength=4) / len(y)
    torch.testing.assert_close(shares, torch.full((4,), 1 / 4), rtol=0, atol=0.015)
    assert -(shares * shares.log()).sum().item() == pytest.approx(math.log(4), abs=1e-3)
    distractors = x[x < 4].bincount() / (x < 4).sum()
    torch.testing.assert_close(distractors, torch.full((4,), 1 / 4), rtol=0, atol=0.01)


@pytest.mark.parametrize(
    ("source", "shortest"),
    [(adding, 2), (copy_memory, 1), (temporal_order, 10)],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_lengths_too_short_are_refused(source, shortest):
    for length in (shortest - 1, 0, -5):
        with pytest.raises(UserError, match=rf"data\.length={length}: .* at least {shortest} "):
            source(length)
    assert drawn(source(shortest), 3)[0].shape[1] == source(shortest).spec.shape[0]


@pytest.mark.parametrize(("points", "features", "noise"), [(4000, 2, 0.0), (4000, 3, 0.5), (3000, 1, 2.0)])
def test_regression_has_the_variance_it_promises(points, features, noise):
    source = regression(points, features, noise)
    assert source.spec == Spec("vector", (features,), "regression", outputs=1)
    splits = source.load()
    assert sorted(splits) == ["test", "train"]
    for x, y in splits.values():
        assert x.shape == (points, features)
        assert y.shape == (points, 1)
        assert x.dtype == y.dtype == torch.float32
        assert x.std().item() == pytest.approx(1, abs=0.05)
    y = splits["train"][1]
    error = 5 * noise / points**0.5  # of the mean of the noise, five standard deviations
    assert y.mean().item() == pytest.approx(0, abs=1e-5 + error)
    assert y.var().item() == pytest.approx(1 + noise**2, rel=1e-5 if noise == 0 else 0.1)


def test_regression_adds_noise_to_the_same_curve():
    clean, noisy = (regression(5000, 2, noise).load() for noise in (0.0, 0.3))
    for split in ("train", "test"):
        assert torch.equal(clean[split][0], noisy[split][0])
        assert (noisy[split][1] - clean[split][1]).std().item() == pytest.approx(0.3, rel=0.05)


def test_regression_is_the_same_for_each_call():
    torch.manual_seed(0)
    first = regression(50, 2, 0.1).load()
    torch.manual_seed(1)
    again = regression(50, 2, 0.1).load()
    for split in ("train", "test"):
        assert all(torch.equal(a, b) for a, b in zip(first[split], again[split], strict=True))
    assert not torch.equal(first["train"][0], first["test"][0])


@pytest.mark.parametrize(("points", "features", "noise"), [(0, 1, 0.1), (1, 0, 0.1), (1, 1, -0.1)])
def test_regression_refuses_impossible_sizes(points, features, noise):
    words = rf"data\.points={points}, data\.features={features}, data\.noise={noise}"
    with pytest.raises(UserError, match=words):
        regression(points, features, noise)


def test_markov_text_follows_its_transitions_from_the_first_step_on():
    chances = transitions(5)
    start = stationary(chances)
    torch.testing.assert_close(start @ chances, start)
    x, y = drawn(markov(5, 9), 20_000)
    assert torch.equal(x[:, 1:], y[:, :-1])  # the target is the next symbol
    for step in (0, 8):
        torch.testing.assert_close(x[:, step].bincount(minlength=5) / 20_000, start.float(), atol=0.015, rtol=0)
    pairs, each = Counter(zip(x.flatten().tolist(), y.flatten().tolist(), strict=True)), x.flatten().bincount()
    for (before, after), number in pairs.items():
        spread = 5 * (0.25 / each[before].item()) ** 0.5
        assert number / each[before].item() == pytest.approx(chances[before, after].item(), abs=spread)


def test_the_least_loss_of_markov_text_is_its_entropy_rate():
    """Who knows P has it; the trivial answer has the entropy of π."""
    chances = transitions(8)
    start = stationary(chances)
    rate = -(start[:, None] * chances * chances.log()).sum().item()
    source = markov(8, 20)
    x, y = drawn(source, 20_000)
    task = task_of(source.spec)
    assert task.loss(chances[x].log(), y, "cross_entropy").item() == pytest.approx(rate, abs=0.005)
    scores = task.trivial({"train": y}, "cross_entropy")
    assert scores["loss/train"] == pytest.approx(-(start * start.log()).sum().item(), abs=0.005)
    assert scores["accuracy/train"] == pytest.approx(start.max().item(), abs=0.01)
    entropy = -(start * start.log()).sum().item()
    assert f"entropy: {entropy:.3f} against {rate:.3f} for 8 symbols" in markov.__doc__


@pytest.mark.parametrize(("symbols", "length"), [(1, 9), (4, 0)])
def test_impossible_text_is_refused(symbols, length):
    with pytest.raises(UserError, match=f"data.symbols={symbols}, data.length={length}: expected 2 or more"):
        markov(symbols, length)


def test_random_targets_have_nothing_to_do_with_the_inputs():
    """The same points, and targets of mean 0 and variance 1 that no linear or even function of the inputs explains."""
    (x, y), (_, fresh) = (regression(20_000, 2, 0.0, "random").load()[split] for split in ("train", "test"))
    assert torch.equal(x, regression(20_000, 2, 0.0).load()["train"][0])
    assert (y.mean().item(), y.std().item()) == pytest.approx((0, 1), abs=1e-4)
    assert fresh.std().item() == pytest.approx(1, abs=0.02)
    terms = torch.cat([x, x.square(), x[:, :1] * x[:, 1:]], 1)
    assert (terms * y).mean(0).abs().max() < 0.05
    with pytest.raises(UserError, match=r"data.targets=randomm: expected one of tanh, random"):
        regression(10, 2, 0.0, "randomm")
