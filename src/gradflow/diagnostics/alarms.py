"""Alarms: each is raised once a run, as one sentence with its numbers and the first thing to try.

All rest on ratios, never on absolute norms. What a probe measures must hold for three probes in turn; its limits are
those of the verdict.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from gradflow.diagnostics.probe import Profile
from gradflow.diagnostics.verdict import (
    DEAD,
    SATURATED,
    Start,
    asleep,
    axes,
    collapsed,
    learned,
    log_ratio,
    most,
    superscript,
)
from gradflow.plots.limits import CAUTION, FAIL

SUSTAINED = 3  # probes in turn
_HALF = 0.5  # of the logged steps
_FROZEN, _TOO_LARGE = 1e-7, 3e-2  # ‖ΔW‖ / ‖W‖
WARM = 20  # logged steps before an update counts as too large, or clipping as a habit
_FAR = 10  # times the loss at the first probe
KINDS = (
    *("vanish", "explode", "dead", "saturated", "nonfinite"),
    *("frozen", "update_too_large", "clipped", "collapsed", "diverging"),
)


class Alarm(NamedTuple):
    kind: str
    sentence: str


class Alarms:
    """Raises alarms from what probes and logged steps measure; `raised` holds all of the run, by kind."""

    def __init__(self) -> None:
        self.raised: dict[str, str] = {}
        self.turns: Counter[str] = Counter()
        self.logged = self.clipped = self.still = 0
        self.start: Start | None = None  # of the first probe

    def keys(self) -> dict[str, float]:
        return {f"alarm/{kind}": float(kind in self.raised) for kind in KINDS}

    def state(self) -> dict[str, Any]:
        """Plain data, which a checkpoint can hold."""
        start = list(self.start) if self.start else None
        return {**vars(self), "raised": dict(self.raised), "turns": dict(self.turns), "start": start}

    def load(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)
        self.raised = dict(state["raised"])
        self.turns = Counter(state["turns"])
        self.start = Start(*self.start) if self.start else None

    def probed(self, step: int, profile: Profile) -> list[Alarm]:
        """Return the alarms that a probe raises."""
        start = self.start or Start(profile.loss, log_ratio(profile.time))
        if not asleep(profile):  # of a gradient that can't arrive yet nothing is known
            self.start = start
        current = dict(_of_profile(profile, start))
        self.turns = Counter({kind: self.turns[kind] + 1 for kind in current})
        lasting = {kind: sentence for kind, sentence in current.items() if self.turns[kind] >= SUSTAINED}
        return self.new(step, lasting)

    def updated(
        self, step: int, ratios: Mapping[str, float], clip_coefficient: float, nonfinite: Mapping[str, bool]
    ) -> list[Alarm]:
        """Return the alarms that a logged step raises.

        It brings ‖ΔW‖ / ‖W‖ by layer, what clipping multiplied with, and which gradients are not finite.
        """
        self.logged += 1
        self.clipped += clip_coefficient < 1
        current = dict(self._of_update(ratios, nonfinite))
        self.still = self.still + 1 if "frozen" in current else 0  # a branch scaled by 0 stands still for one step
        if self.still < SUSTAINED:
            current.pop("frozen", None)
        return self.new(step, current)

    def _of_update(self, ratios: Mapping[str, float], nonfinite: Mapping[str, bool]) -> Iterator[Alarm]:
        if bad := [name for name, is_bad in nonfinite.items() if is_bad]:
            what = f"the gradient of {bad[0]} ({len(bad)} layers) is not finite"
            yield Alarm("nonfinite", f"{what}; try a tenth of optimizer.lr")
            return
        finite = sorted(ratio for ratio in ratios.values() if math.isfinite(ratio))
        if not finite:
            return
        least, median, largest = finite[0], finite[len(finite) // 2], finite[-1]
        if least < _FROZEN < largest:
            slowest = next(name for name, ratio in ratios.items() if ratio == least)
            what = f"{slowest} changes by {least:.0e} of its weights a step, another layer by {largest:.0e}"
            cure = "try model.norm=batch, or an init that  python src/probe.py  suggests"
            yield Alarm("frozen", f"{what}: it stays at its initial weights; {cure}")
        if median > _TOO_LARGE and self.logged > WARM:
            what = f"half of the layers change by {median:.1%} of their weights a step"
            yield Alarm("update_too_large", f"{what}; try a third of optimizer.lr")
        if self.clipped > _HALF * self.logged and self.logged > WARM:
            what = f"the gradient is clipped at {self.clipped} of {self.logged} logged steps"
            cure = "try a larger trainer.gradient_clip_val or a smaller optimizer.lr"
            yield Alarm("clipped", f"{what}: clipping acts as the learning rate; {cure}")

    def new(self, step: int, current: Mapping[str, str]) -> list[Alarm]:
        """Raise those of the current alarms that have not been raised yet, and return them."""
        fresh = [Alarm(kind, f"step {step}: {text}") for kind, text in current.items() if kind not in self.raised]
        self.raised |= dict(fresh)
        return fresh


def _of_profile(profile: Profile, start: Start) -> Iterator[Alarm]:
    """Yield what one probe would raise if it lasted."""
    if not math.isfinite(profile.loss) or not all(map(math.isfinite, profile.gradient)):
        what = "a gradient is not finite" if math.isfinite(profile.loss) else f"the loss is {profile.loss}"
        yield Alarm("nonfinite", f"{what} on the probed batch; try a tenth of optimizer.lr")
        return
    for axis, norms in axes(profile).items():
        gap = log_ratio(norms)
        if abs(gap) > CAUTION and profile.loss and not learned(axis, gap, profile.loss, start):
            yield _of_gap(axis, gap, len(norms))
    if profile.loss > _FAR * start.loss > 0:
        what = f"the loss is {profile.loss:.2g}, where it was {start.loss:.2g} at the first probe"
        yield Alarm("diverging", f"{what}; try a tenth of optimizer.lr")
    for kind, shares, limit, cure in (
        ("dead", profile.dead, DEAD, "try activation=leaky_relu, or a smaller optimizer.lr"),
        ("saturated", profile.saturated, SATURATED, "try init=glorot, or model.norm=batch"),
    ):
        layer, share = most(shares)
        if share > limit:
            yield Alarm(kind, f"{share:.0%} of {layer} is {kind}; {cure}")
    if collapsed(profile):
        what = f"the last hidden layer gives nearly the same for every sample (mean cosine {profile.alike:.4f})"
        yield Alarm("collapsed", f"{what}; try model.norm=batch, or fewer layers")


def _of_gap(axis: str, gap: float, length: int) -> Alarm:
    kind, verb = ("vanish", "shrinks") if gap < 0 else ("explode", "grows")
    unit = "layer" if axis == "depth" else "time step"
    size = "to nothing" if math.isinf(gap) else f"by a factor of 10{superscript(abs(gap))}"
    degree = "training will probably stall" if abs(gap) > FAIL else f"early {unit}s learn at another pace"
    if axis == "time":
        cure = "model=lstm model.forget_bias=chrono" if gap < 0 else "init=auto"
    else:
        cure = "model.norm=batch or model.residual=true" if gap < 0 else "init=auto"
    what = f"the gradient {verb} {size} over {length} {unit}s"
    return Alarm(kind, f"{what}: {degree}; try {cure}, or see  python src/probe.py")
