"""One call that judges any network: the verdict, and what it rests on."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from gradflow.diagnostics import verdict
from gradflow.diagnostics.isolation import Loss
from gradflow.diagnostics.probe import Profile
from gradflow.diagnostics.subject import Subject
from gradflow.diagnostics.table import print_norms
from gradflow.diagnostics.verdict import Verdict
from gradflow.runs.screen import Screen


@dataclass(frozen=True)
class ModelProbe:
    """What `probe_model` found; printed, it is a table and sentences."""

    verdict: Verdict  # word (OK, CAUTION, FAIL), axis, decades, reason, meaning
    profile: Profile  # trunk, gradient, rms, weights, time, dead, saturated, alike, loss
    theory: dict[str, Any]  # norms relative to the last, as `gradient` and `time`; `no_prediction` says why not
    trunk: str  # where the trunk comes from

    def __str__(self) -> str:
        told, seen, text = self.verdict, self.profile, io.StringIO()
        console = Screen(file=text, width=100, force_jupyter=False)
        print_norms(console, vars(seen), self.theory)
        for share, what in ((seen.dead, "dead"), (seen.saturated, "saturated")):
            layer, most = verdict.most(share)
            if most:
                text.write(f"most {what}: {most:.0%} of {layer}\n")
        text.write(f"{told.word}: {told.reason}\n{told.meaning}\n")
        if why := self.theory["no_prediction"]:
            text.write(f"no prediction here: {why}\n")
        text.write(self.trunk)
        return text.getvalue()


def probe_model(model: nn.Module, batch: Any, loss: Loss | None = None, trunk: Sequence[str] = ()) -> ModelProbe:
    """Judge a network by one pass forward and back on a batch, which leaves no trace in it.

    `loss(model, batch)` returns the number to be minimised; a LightningModule's own is what its `training_step`
    returns. `trunk` names the blocks to compare, first to last; without it they are found. Where weights that start at
    zero let no gradient pass, a copy of these takes a step first, and the verdict says so.
    """
    subject = Subject(model, loss, trunk)
    profile = subject.profile(batch)
    theory = subject.theory(batch, profile.trunk)
    return ModelProbe(verdict.judge(profile), profile, theory, subject.how())
