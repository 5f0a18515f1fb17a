"""The probes of a training: on which samples, at which steps, and the verdicts at the first and at the latest."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gradflow import runs
from gradflow.diagnostics import verdict
from gradflow.diagnostics.batches import first_samples
from gradflow.diagnostics.diagnostic import EARLY
from gradflow.diagnostics.isolation import Loss
from gradflow.diagnostics.probe import PROBE_SAMPLES, Profile
from gradflow.diagnostics.subject import Subject, reason_against
from gradflow.diagnostics.verdict import Start
from gradflow.runs.errors import UserError


class Snapshots:
    """Probes a network again and again.

    The verdict at the start is that of the first probe at which it can be judged: not yet, where weights that start at
    zero let no gradient pass.
    """

    def __init__(self, loss: Loss | None, trunk: Sequence[str]) -> None:
        self.loss, self.trunk = loss, trunk
        self.verdicts: list[dict[str, Any]] = []  # at the start, and at the latest probe
        self.waiting = False  # for the first step at which a gradient can arrive

    def read(self, folder: Path) -> None:
        """Take up the verdicts of a run that goes on."""
        earlier = runs.read_lines(folder / runs.FLOW)
        judged = [one["verdict"] for one in earlier if not one.get("asleep")] or [one["verdict"] for one in earlier[:1]]
        self.verdicts = judged[:1] + [one["verdict"] for one in earlier[1:][-1:]]
        self.waiting = bool(earlier) and all(one.get("asleep") for one in earlier)

    def start(self, model: nn.Module, steps: set[int], step: int, samples: Any) -> str | None:
        """Get ready for probes at these steps, the run being at `step`; return why there will be none, where a foreign
        model has no loss that could be probed."""
        self.model, self.steps, self.seen, self.batch = model, steps, step - 1, samples
        self.subject, self.checked = None, False
        if not steps:
            return None
        try:
            self.subject = Subject(model, self.loss, self.trunk)
        except UserError as error:
            if self.loss or self.trunk:
                raise
            self.steps = set()
            return str(error)
        return None

    def due(self, step: int, batch: Any) -> bool:
        """Return whether to probe before this step; the first batch is what is probed, where there are no samples."""
        if self.batch is None and self.steps:
            self.batch = first_samples(batch, PROBE_SAMPLES)
        passed, self.seen = range(self.seen + 1, step + 1), step  # several, where one batch takes several steps
        return any(one in self.steps for one in passed)

    def check(self) -> str | None:
        """Return, at the first probe, why there will be none: the model's step can't be run apart from its training."""
        if self.checked or self.subject is None or self.subject.ours or self.loss:
            return None
        self.checked = True
        if why := reason_against(self.subject, self.batch):
            self.steps, self.batch = set(), None
        return why

    def take(self, step: int, updates: Mapping[str, float], start: Start | None) -> tuple[Profile, dict[str, Any]]:
        """Probe the network, and return its profile and the line of flow.jsonl."""
        assert self.subject is not None
        profile = self.subject.profile(self.batch, torch.float32, virtual=False)
        judged = verdict.plain(verdict.judge(profile, start))
        is_first, asleep = not self.verdicts, verdict.asleep(profile)
        line = {"step": step, **profile.plain(), "updates": updates, "verdict": judged}
        if asleep:
            line["asleep"] = True
        if is_first:
            line["theory"] = self.subject.theory(self.batch, profile.trunk)
        at_start = judged if is_first or self.waiting else self.verdicts[0]
        self.verdicts = [judged] if is_first else [at_start, judged]
        self.waiting = asleep and (is_first or self.waiting)
        return profile, line

    def draw(self, folder: Path) -> Iterator[tuple[str, Path]]:
        """Draw what the probes found, and yield the name and the file of each picture."""
        from gradflow.plots.profile import depth_profile, time_profile  # with matplotlib, which no step needs

        if snapshots := runs.read_lines(folder / runs.FLOW):
            for name, file, draw in (("depth", runs.DEPTH, depth_profile), ("time", runs.TIME, time_profile)):
                if draw(snapshots, folder / file):
                    yield name, folder / file


def probe_steps(steps: float, probes: int) -> set[int]:
    """Return the steps at which to probe: early and often, then evenly; ever more rarely where the end is unknown."""
    if not probes:
        return set()
    if not math.isfinite(steps):
        return {*EARLY, *(2**power for power in range(7, 40))}
    late = max(probes - len(EARLY), 1)
    return {*EARLY[:probes], *(round(steps * number / late) for number in range(1, late))}
