"""From norms to a log₁₀ ratio, rate, horizon and a word; every closed form and every edge."""

from __future__ import annotations

import math

import pytest

from gradflow.diagnostics import verdict
from gradflow.diagnostics.probe import Profile
from gradflow.diagnostics.verdict import horizon, judge, keys, log_ratio, rate

INF = math.inf


def profile(gradient, time=(), **known):
    names = [f"block{index + 1}" for index in range(len(gradient))]
    known = {"loss": 0.5, "rms": [1.0] * len(gradient), "weights": dict.fromkeys(names, 1.0)} | known
    return Profile(trunk=names, gradient=list(gradient), time=list(time), **known)


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
        ([0.0, 0.0], -INF),  # nothing arrives
    ],
)
def test_log_ratio(norms, expected):
    assert log_ratio(norms) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("norms", [[math.nan, 1.0], [1.0, math.nan], [INF, 1.0], [1.0, INF]])
def test_no_log_ratio_of_what_is_not_finite(norms):
    assert math.isnan(log_ratio(norms))


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
    monkeypatch.setattr(verdict, "log_ratio", lambda norms: sign * float(size))  # powers of ten are not exact
    told = judge(profile([1.0, 1.0]))
    assert (told.word, told.axis, told.decades) == (word, "depth", sign * size)
    assert told.meaning == verdict.MEANING[word]


def test_the_worse_axis_is_judged_and_the_sentence_has_its_numbers():
    deep = judge(profile([1e-4, 1e-2, 1.0], time=[0.1, 1.0]))
    assert (deep.word, deep.axis, deep.decades) == ("FAIL", "depth", pytest.approx(-4))
    assert deep.reason == "‖∂L/∂h₁‖ = 10⁻⁴·⁰ · ‖∂L/∂h₃‖ (first against last block)"
    long = judge(profile([0.1, 1.0], time=[100.0, 10.0, 1.0, 1.0]))
    assert (long.word, long.axis, long.decades) == ("CAUTION", "time", pytest.approx(2))
    assert long.reason == "‖∂L/∂x₁‖ = 10²·⁰ · ‖∂L/∂x₄‖ (first against last time step)"


@pytest.mark.parametrize(("gradient", "sign"), [([0.0, 1.0], -1), ([1.0, 0.0], 1)])
def test_a_gradient_that_is_zero_at_one_end_fails(gradient, sign):
    told = judge(profile(gradient))
    assert (told.word, told.decades) == ("FAIL", sign * INF)
    assert told.reason == f"‖∂L/∂h{'₁₂'[sign > 0]}‖ = 0, unlike ‖∂L/∂h{'₂₁'[sign > 0]}‖ (first against last block)"


@pytest.mark.parametrize(
    ("gradient", "time", "axis"),
    [
        ([0.0, 0.0], [], "depth"),
        ([0.0, 1.0, 0.0], [], "depth"),
        ([1.0], [0.0, 0.0], "time"),
        ([1.0, 1.0], [0.0, 0.0], "time"),
        ([0.0], [], "depth"),
        ([0.0], [0.0, 0.0], "time"),
    ],
)
def test_where_nothing_arrives_training_fails(gradient, time, axis):
    """Zero at both ends is not the same as level."""
    told = judge(profile(gradient, time, weights={"layer": 0.0, "head": 0.0}))
    assert (told.word, told.axis, told.decades) == ("FAIL", axis, -INF)
    assert "no gradient arrives" in told.reason


def test_a_last_layer_of_zeros_lets_nothing_through_at_first():
    for time in ([], [0.0, 0.0]):
        told = judge(profile([0.0, 0.0], time, weights={"block1": 0.0, "head": 0.3}, waking=1.0))
        assert (told.word, told.decades) == ("CAUTION", 0)
        assert "weights that start at zero are in the way" in told.reason


@pytest.mark.parametrize(("gradient", "time"), [([0.0, 1.0], []), ([1.0, 0.0], []), ([1.0], [0.0, 0.0])])
def test_branches_that_end_in_zeros_let_nothing_through_at_first(gradient, time):
    """As those of a residual network whose last norms start at γ = 0, measured at its leaf layers."""
    assert judge(profile(gradient, time)).word == "FAIL"
    told = judge(profile(gradient, time, waking=8.0))
    assert told.word == "CAUTION"
    assert "weights that start at zero are in the way" in told.reason


def test_a_loss_of_zero_leaves_nothing_to_learn():
    assert judge(profile([0.0, 0.0], loss=0.0, weights={"head": 0.0})).word == "OK"


@pytest.mark.parametrize(
    ("seen", "word", "reason"),
    [
        ({"dead": {"a": 0.75}}, "OK", "first against last"),
        ({"dead": {"a": 0.2, "b": 0.8}}, "CAUTION", "80% of b is dead"),
        ({"dead": {"a": 1.0}}, "CAUTION", "100% of a is dead"),  # a branch goes past it
        ({"dead": {"a": 1.0}, "weights": {"first": 0.0, "head": 1.0}}, "FAIL", "100% of a is dead"),
        ({"saturated": {"a": 0.5}}, "OK", "first against last"),
        ({"saturated": {"a": 0.51}}, "CAUTION", "51% of a is saturated"),
        ({"saturated": {"a": 0.81}}, "FAIL", "81% of a is saturated"),
        ({"alike": 0.999}, "OK", "first against last"),
        ({"alike": 0.9995}, "CAUTION", "nearly the same for every sample (mean cosine 0.9995)"),
        ({"alike": 0.9995, "time": [1.0, 1.0]}, "OK", "first against last"),
    ],
)
def test_units_count_as_ratios_do(seen, word, reason):
    told = judge(profile([1.0, 1.0], **seen))
    assert (told.word, told.decades) == (word, 0)
    assert reason in told.reason


def test_the_worst_finding_is_the_reason_and_equals_stand_together():
    told = judge(profile([0.01, 1.0], dead={"a": 0.8}, saturated={"b": 0.7}))
    assert told.word == "CAUTION"
    assert told.reason.count("; ") == 2
    assert judge(profile([0.01, 1.0], saturated={"b": 0.9})).reason.startswith("90% of b")


@pytest.mark.parametrize(
    ("start", "time", "loss", "word"),
    [
        (0.0, [1.0, 0.01], 0.4, "OK"),  # where the information is
        (0.0, [1.0, 1e-9], 0.4, "OK"),
        (0.0, [0.01, 1.0], 0.4, "OK"),
        (-2.0, [1.0, 0.01], 0.4, "OK"),  # it vanished, and grows since it has learned
        (0.0, [1.0, 0.01], 0.5, "CAUTION"),  # nothing has been learned
        (2.0, [1.0, 0.01], 0.4, "CAUTION"),  # it was there before
        (-2.0, [1e-9, 1.0], 0.4, "FAIL"),
        (0.0, [0.0, 1.0], 0.4, "FAIL"),  # nothing arrives at the first step
        (0.0, [0.0, 0.0], 0.4, "FAIL"),
    ],
)
def test_a_gap_over_time_that_comes_with_a_smaller_loss_is_what_was_learned(start, time, loss, word):
    assert judge(profile([1.0], time, loss=loss), verdict.Start(0.5, start)).word == word


def test_a_gap_over_depth_counts_however_small_the_loss():
    told = judge(profile([0.01, 1.0], [1e4, 1.0], loss=0.1), verdict.Start(0.5, 0.0))
    assert (told.word, told.axis, told.decades) == ("CAUTION", "depth", pytest.approx(-2))


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
    told = judge(profile([1.0]))
    assert (told.word, told.decades) == ("OK", 0)
    assert "no other to be compared with" in told.reason
    assert judge(profile([1.0], [1.0, 1.0])).axis == "time"  # and is never the reason
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


def test_what_was_judged_is_said():
    assert "not the step size" in verdict.MEANING["OK"]
    assert "stands in the way" not in str(verdict.MEANING)


def test_plain_holds_every_word():
    told = verdict.plain(judge(profile([1e-9, 1.0])))
    assert set(told) == {"word", "axis", "decades", "reason", "meaning"}
