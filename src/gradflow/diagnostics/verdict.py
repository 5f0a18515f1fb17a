"""From norms to a verdict: does the gradient reach the early layers?

The log₁₀ gradient ratio is that of the norms at the first and at the last block of the trunk (or at the first and the
last time step). On 80 MLPs, its size before training told which would learn with an AUC of 0.97 under SGD and 0.91
under Adam (scripts/calibrate.py, docs/flow.md). 1.3 is the 6ξ of Schoenholz et al. 2017. Norms do not show dead
and saturated units and outputs that are alike, so these count, too; the networks behind their limits are those of
tests/diagnostics/test_labelled.py. Alarms rest on the same limits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from gradflow.diagnostics.probe import Profile
from gradflow.plots.limits import CAUTION, FAIL

DEAD = 0.75  # of a layer's units; a deep ReLU net whose outputs are alike has each unit on or off: half are dead
SATURATED, LOST = 0.5, 0.8  # of a layer's entries: CAUTION, FAIL
_ALIKE = 0.999  # mean cosine between samples
WORDS = ("OK", "CAUTION", "FAIL")
_JUDGED = "judged is the gradient at these weights, not the step size"
MEANING = {
    "OK": f"the gradient reaches the early layers; {_JUDGED}",
    "CAUTION": f"training will probably be slow; {_JUDGED}",
    "FAIL": "training will probably stall or diverge",
}
_ABOVE, _BELOW = str.maketrans("0123456789-.", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻·"), str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


def log_ratio(norms: Sequence[float]) -> float:
    """Return log10 of first / last: below 0 where the gradient vanishes on its way to the input.

    It is ±inf where one of them is 0, and −inf where both are, since nothing arrives then.
    """
    if len(norms) < 2:
        return 0.0
    first, last = norms[0], norms[-1]
    if not (math.isfinite(first) and math.isfinite(last)):
        return math.nan
    if first == 0 or last == 0:
        return math.inf if first > 0 else -math.inf
    return math.log10(first) - math.log10(last)


def rate(norms: Sequence[float]) -> float:
    """Return the factor of the norm from one block (or time step) to the one before it: a line through the logs."""
    places = [index for index, norm in enumerate(norms) if norm > 0 and math.isfinite(norm)]
    if len(places) < 2:
        return math.nan
    slope = np.polyfit(places, np.log([norms[index] for index in places]), 1)[0]
    return math.exp(-slope)


def horizon(rate: float) -> float:
    """Return the steps over which the gradient shrinks by e; infinite where it does not."""
    return -1 / math.log(rate) if 0 < rate < 1 else math.inf


@dataclass(frozen=True)
class Verdict:
    word: str
    axis: str  # depth or time
    decades: float  # log₁₀ gradient ratio of the worse axis
    reason: str

    @property
    def meaning(self) -> str:
        return MEANING[self.word]


class Start(NamedTuple):
    """What the first probe of a run measured."""

    loss: float
    time: float  # log₁₀ gradient ratio over time


class _Finding(NamedTuple):
    rank: int  # of its word
    reason: str


def judge(profile: Profile, start: Start | None = None) -> Verdict:
    """Name the worst of what a probe measured; `start` is of the run's first probe, where this is a later one."""
    verdict = _judge(profile, start)
    if not profile.moved:
        return verdict
    names = profile.moved[0] + (f" and {len(profile.moved) - 1} more" if profile.moved[1:] else "")
    note = f"judged after a virtual step of {names}, zero until then, which let no gradient pass"
    return replace(verdict, reason=f"{verdict.reason}; {note}")


def asleep(profile: Profile) -> bool:
    """Tell whether no gradient arrives before weights that are zero have moved, which they do with the next step."""
    stopped = not any(profile.gradient) or any(math.isinf(log_ratio(norms)) for norms in axes(profile).values())
    return stopped and bool(profile.waking) and profile.loss != 0


def _judge(profile: Profile, start: Start | None) -> Verdict:
    gaps = {axis: log_ratio(norms) for axis, norms in axes(profile).items()}
    if not all(map(math.isfinite, [profile.loss, *profile.gradient, *profile.time])):
        return Verdict("FAIL", "depth", math.nan, "the loss or a gradient is not finite")
    limits = {axis: math.inf if learned(axis, gap, profile.loss, start) else CAUTION for axis, gap in gaps.items()}
    axis = max(gaps, key=lambda axis: (abs(gaps[axis]) > limits[axis], abs(gaps[axis])), default="depth")
    if profile.loss == 0:
        return Verdict("OK", axis, 0.0, "the loss is zero: nothing is left to learn")
    if not any(profile.gradient):
        rank, reason = _blocked(profile, "every ‖∂L/∂h‖ = 0: no gradient arrives anywhere")
        return Verdict(WORDS[rank], axis, 0.0 if profile.waking else -math.inf, reason)
    findings = [_of_gap(profile, axis, gaps[axis], limits[axis])] if gaps else []
    findings += _of_units(profile)
    rank = max((one.rank for one in findings), default=0)
    reasons = [one.reason for one in findings if one.rank == rank]
    only = "a gradient arrives at the only block, which has no other to be compared with"
    return Verdict(WORDS[rank], axis, gaps.get(axis, 0.0), "; ".join(reasons) or only)


def learned(axis: str, gap: float, loss: float, start: Start | None) -> bool:
    """Tell whether a gap over time is what learning looks like.

    ‖∂L/∂x_t‖ of a trained network is largest at the steps that carry information, wherever they are. So a gap that
    was not there at the run's first probe counts only where the loss has not become smaller since.
    """
    if axis != "time" or start is None or math.isinf(gap) or not loss < start.loss:
        return False
    return abs(start.time) <= CAUTION or start.time * gap < 0


def superscript(power: float) -> str:
    return f"{round(power, 1) + 0.0:.1f}".translate(_ABOVE)  # + 0.0: no minus before a zero


def _blocked(profile: Profile, what: str) -> _Finding:
    """Return that nothing arrives: for good, or until weights that start at zero (a head, a norm's γ) have moved."""
    if profile.waking:
        return _Finding(1, f"{what}, yet: weights that start at zero are in the way, and move with the next step")
    return _Finding(2, what)


def _of_gap(profile: Profile, axis: str, gap: float, limit: float) -> _Finding:
    norms, symbol = axes(profile)[axis], "h" if axis == "depth" else "x"
    first, last = (f"‖∂L/∂{symbol}{str(place).translate(_BELOW)}‖" for place in (1, len(norms)))
    which = "first against last " + ("block" if axis == "depth" else "time step")
    rank = (abs(gap) > limit) + (abs(gap) > max(limit, FAIL))
    if not math.isinf(gap):
        return _Finding(rank, f"{first} = 10{superscript(gap)} · {last} ({which})")
    if norms[0] == norms[-1]:
        return _blocked(profile, f"{first} = {last} = 0: no gradient arrives ({which})")
    zero, other = (first, last) if gap < 0 else (last, first)
    return _blocked(profile, f"{zero} = 0, unlike {other} ({which})")


def _of_units(profile: Profile) -> Iterator[_Finding]:
    """Yield what dead, saturated and alike outputs say, which norms of gradients don't show."""
    layer, dead = most(profile.dead)
    if dead > DEAD:
        cut = dead == 1 and not next(iter(profile.weights.values()), 1.0)  # no branch goes past the dead layer
        yield _Finding(1 + cut, f"{dead:.0%} of {layer} is dead: no sample moves it")
    layer, saturated = most(profile.saturated)
    if saturated > SATURATED:
        yield _Finding(1 + (saturated > LOST), f"{saturated:.0%} of {layer} is saturated: |φ'| is below 5 % there")
    if collapsed(profile):
        yield _Finding(1, f"the last block gives nearly the same for every sample (mean cosine {profile.alike:.4f})")


def collapsed(profile: Profile) -> bool:
    """Tell whether the last block no longer tells samples apart.

    States of a healthy recurrent net are alike, too: what all sequences have in common adds up over the steps.
    """
    return profile.alike > _ALIKE and not profile.time


def most(shares: Mapping[str, float]) -> tuple[str, float]:
    """Return the layer with the largest share, and that share."""
    return max(shares.items(), key=lambda pair: pair[1], default=("", 0.0))


def axes(profile: Profile) -> dict[str, list[float]]:
    """Return the norms that have a first and a last."""
    return {axis: norms for axis, norms in (("depth", profile.gradient), ("time", profile.time)) if len(norms) > 1}


def keys(profile: Profile) -> dict[str, float]:
    """Return the numbers of a profile that are logged, by name."""
    values: dict[str, float] = {}
    for axis, norms in axes(profile).items():
        values |= {f"flow/decades_{axis}": log_ratio(norms), f"flow/rate_{axis}": rate(norms)}
    if "flow/rate_time" in values:
        values["flow/horizon_time"] = horizon(values["flow/rate_time"])
    for kind, shares in (("dead", profile.dead), ("saturated", profile.saturated)):
        if shares:
            values[f"act/{kind}_max"] = max(shares.values())
    if len(sizes := [rms for rms in profile.rms if rms > 0]) > 1:
        values["act/rms_decades"] = math.log10(max(sizes) / min(sizes))
    return values


def plain(verdict: Verdict) -> dict[str, Any]:
    """Return a verdict as data that JSON holds."""
    return {**asdict(verdict), "meaning": verdict.meaning}
