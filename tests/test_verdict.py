"""From norms to decades, rate, horizon and a word; every closed form and every edge."""

from __future__ import annotations

import math

import pytest

from gradflow.flow import verdict
from gradflow.flow.probe import Profile
from gradflow.flow.verdict import decades, horizon, judge, keys, rate

INF = math.inf


def profile(gradient, time=(), **known):
    names = [f"block{index + 1}" for index in range(len(gradient))]
    rms = known.pop("rms", [1.0] * len(gradient))
    return Profile(known.pop("loss", 0.5), names, list(gradient), rms, {}, list(time), **known)


@pytest.mark.parametrize(
    ("norms", "expected"),
    [
        ([1e-5, 1.0], -5),
        ([1.0, 7.0, 1e-3], 3),
        ([1e-300, 1e300], -600),  # a ratio that no float holds
        ([2.0, 2.0], 0),
        ([2.0], 0),
        ([], 0),
        ([0.0, 1.0], -INF),
        ([1.0, 0.0], INF),
        ([0.0, 0.0], 0),
    ],
)
def test_decades(norms, expected):
    assert decades(norms) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("norms", [[math.nan, 1.0], [1.0, math.nan], [INF, 1.0], [1.0, INF]])
def test_no_decades_of_what_is_not_finite(norms):
    assert math.isnan(decades(norms))


@pytest.mark.parametrize("factor", [0.02, 0.5, 1.0, 1.467, 3.0])
@pytest.mark.parametrize("count", [2, 3, 30])
def test_rate_is_the_factor_a_block_towards_the_input(factor, count):
    norms = [3.0 * factor ** (count - 1 - index) for index in range(count)]
    assert rate(norms) == pytest.approx(factor, rel=1e-9)


def test_rate_is_the_least_squares_line_through_the_logarithms():
    logs = [0.3, -1.1, 0.8, 2.0, 1.9]
    middle = sum(logs) / 5
    slope = sum((x - 2) * (y - middle) for x, y in enumerate(logs)) / sum((x - 2) ** 2 for x in range(5))
    assert rate([math.exp(y) for y in logs]) == pytest.approx(math.exp(-slope), rel=1e-12)


def test_rate_leaves_out_what_has_no_logarithm():
    assert rate([0.0, 1.0, math.nan, 4.0, INF, 16.0]) == pytest.approx(0.5, rel=1e-9)
    for norms in ([], [1.0], [0.0, 1.0], [math.nan, INF, 2.0]):
        assert math.isnan(rate(norms))


def test_horizon():
    assert horizon(math.exp(-1 / 50)) == pytest.approx(50)
    assert 0.5 ** horizon(0.5) == pytest.approx(1 / math.e)
    assert all(horizon(none) == INF for none in (1.0, 1.5, 0.0, math.nan))


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize(
    ("size", "word"), [(0, "OK"), (1.3, "OK"), (1.3001, "CAUTION"), (3, "CAUTION"), (3.0001, "FAIL"), (300, "FAIL")]
)
def test_words_at_their_thresholds(monkeypatch, size, word, sign):
    monkeypatch.setattr(verdict, "decades", lambda norms: sign * float(size))  # powers of ten are not exact
    told = judge(profile([1.0, 1.0]))
    assert (told.word, told.axis, told.decades) == (word, "depth", sign * size)
    assert told.meaning == verdict.MEANING[word]


def test_the_worse_axis_is_judged_and_the_sentence_has_its_numbers():
    deep = judge(profile([1e-4, 1e-2, 1.0], time=[0.1, 1.0]))
    assert (deep.word, deep.axis, deep.decades) == ("FAIL", "depth", pytest.approx(-4))
    assert deep.reason == "h_1 gets 10^-4.0 times the gradient of h_3"
    long = judge(profile([0.1, 1.0], time=[100.0, 10.0, 1.0, 1.0]))
    assert (long.word, long.axis, long.decades) == ("CAUTION", "time", pytest.approx(2))
    assert long.reason == "step 1 gets 10^+2.0 times the gradient of step 4"


@pytest.mark.parametrize(("gradient", "sign"), [([0.0, 1.0], -1), ([1.0, 0.0], 1)])
def test_a_gradient_that_is_zero_at_one_end_fails(gradient, sign):
    told = judge(profile(gradient))
    assert (told.word, told.decades) == ("FAIL", sign * INF)
    assert "no the" not in told.reason


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("value", [math.nan, INF])
def test_a_gradient_that_is_not_finite_anywhere_fails(value, place):
    gradient = [1.0, 1.0, 1.0]
    gradient[place] = value
    told = judge(profile(gradient))
    assert told.word == "FAIL"
    assert math.isnan(told.decades)


@pytest.mark.parametrize("loss", [math.nan, INF])
def test_a_loss_that_is_not_finite_fails(loss):
    assert judge(profile([1.0, 1.0], loss=loss)).word == "FAIL"


def test_one_block_has_nothing_to_compare():
    assert judge(profile([1.0])).word == "OK"
    assert keys(profile([1.0])) == {}


def test_exact_keys_of_a_deep_net():
    shares = {"dead": {"act1": 0.25, "act2": 0.0}, "saturated": {"act1": 0.5}}
    told = keys(profile([0.01, 0.1, 1.0], rms=[1.0, 100.0, 0.1], **shares))
    expected = {"flow/decades_depth": -2, "flow/rate_depth": 0.1, "act/dead_max": 0.25, "act/saturated_max": 0.5}
    assert told == pytest.approx(expected | {"act/rms_decades": 3})


def test_exact_keys_of_one_recurrent_layer():
    told = keys(profile([1.0], time=[0.25, 0.5, 1.0]))
    expected = {"flow/decades_time": math.log10(0.25), "flow/rate_time": 0.5, "flow/horizon_time": 1 / math.log(2)}
    assert told == pytest.approx(expected)


def test_plain_holds_every_word():
    told = verdict.plain(judge(profile([1e-9, 1.0])))
    assert set(told) == {"word", "axis", "decades", "reason", "meaning"}
