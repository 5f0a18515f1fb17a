"""Watch the gradient while a network trains: every layer's norm, probes beside what theory predicts, and alarms."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import nn
from torch.optim import Optimizer

from gradflow import runs
from gradflow.diagnostics import verdict
from gradflow.diagnostics.alarms import Alarm, Alarms
from gradflow.diagnostics.diagnostic import EARLY, Diagnostic, Step
from gradflow.diagnostics.gradients import Gradients
from gradflow.diagnostics.layers import layers
from gradflow.diagnostics.norms import clip_coefficient
from gradflow.diagnostics.output import log_metrics, log_picture, print_line, shows_pictures
from gradflow.diagnostics.probe import PROBE_SAMPLES, loss_on, probe, trunk_of
from gradflow.diagnostics.recorder import Recorder
from gradflow.diagnostics.updates import Updates
from gradflow.models.penalty import remaining_scale
from gradflow.runs.errors import UserError
from gradflow.theory.prediction import lines

_MOST_PROBES = 100_000  # whose steps are held as a set
_ACTIONS = ("log", "warn", "stop", "prune")


class GradientFlow(Callback):
    """Runs the diagnostics, each at its steps: 0, 1, 2, 4 … 64, every `every_n_steps`-th and the last one. They write
    `<name>.csv`, a row a step, and log what their own files say; beside them

    ===================================  =======================================================================
    key                                  value
    ===================================  =======================================================================
    ``grad/clip_coef``                   what clipping by norm multiplies the gradient with; 1: it is not clipped
    ``grad/norm_with_penalty``           norm of the whole gradient, where the model has l1 or l2
    ``alarm/<kind>``                     1 from the step on at which an alarm was raised (alarms.py)
    ===================================  =======================================================================

    and at about `probes` steps of the run, from a pass of its own over the same few held-out samples
    (probe.py),

    ===================================  =======================================================================
    ``flow/decades_depth``               log10 of ‖dL/dh_1‖ / ‖dL/dh_L‖, of the trunk's first and last block
    ``flow/rate_depth``                  factor of ‖dL/dh‖ from a block to the one before it, fitted
    ``flow/{decades,rate}_time``         the same over time steps, at the input of a recurrent layer
    ``flow/horizon_time``                time steps over which the gradient shrinks by e
    ``act/dead_max``                     largest share of a layer's units with derivative 0 for every sample
    ``act/saturated_max``                largest share of a layer's entries with a derivative below 5 %
    ``act/rms_decades``                  log10 between the largest and the smallest rms of the blocks' outputs
    ===================================  =======================================================================

    Snapshots go to ``flow.jsonl``, a line a probe; at the end come the pictures. A step that is measured costs one
    transfer from the device, a probe another; the rest cost nothing.

    `on_alarm` says what follows an alarm: log (the keys alone), warn (and a sentence), stop (and the run ends and is
    tested), prune (and the run ends at once, with that status). Alarms on updates and gradients need the diagnostics
    of these names.

    Where an epoch's batches don't divide by ``accumulate_grad_batches``, Lightning divides the shorter last sum by the
    full number all the same: that step's norms are smaller, as its update is. A run that ends early, by a time limit or
    early stopping, has no row for its last step, because nobody knew that it was the last.
    """

    def __init__(
        self,
        run_dir: str,
        every_n_steps: int = 50,
        probes: int = 20,
        on_alarm: str = "warn",
        diagnostics: Sequence[Diagnostic] | None = None,
    ) -> None:
        if every_n_steps < 1:
            raise UserError(f"callbacks.gradient_flow.every_n_steps={every_n_steps}: expected 1 or more")
        if not 0 <= probes <= _MOST_PROBES:
            raise UserError(f"callbacks.gradient_flow.probes={probes}: expected 0 to {_MOST_PROBES:,}")
        if on_alarm not in _ACTIONS:
            raise UserError(f"on_alarm={on_alarm}: expected one of {', '.join(_ACTIONS)}")
        self.folder, self.every_n_steps, self.probes, self.on_alarm = Path(run_dir), every_n_steps, probes, on_alarm
        self.recorder = Recorder([Gradients(), Updates()] if diagnostics is None else diagnostics)
        self.alarms = Alarms()
        self.writes = False
        self.pruned: str | None = None
        self.over = False  # nothing is left to stop
        self.undrawn = self.draws_later = False
        self.verdicts: list[dict[str, Any]] = []  # at the first probe, and at the latest
        self.ratios: dict[str, float] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        reject_shards(pl_module)
        self.layers = layers(pl_module)
        if not self.layers:
            raise UserError("callbacks.gradient_flow: the model has no trainable layer to watch")
        self.writes = trainer.is_global_zero
        self.recorder.start(pl_module, self.layers, self.folder if self.writes else None)
        if self.writes:
            earlier = runs.read_lines(self.folder / runs.FLOW)  # of a run that goes on
            self.verdicts = [snapshot["verdict"] for snapshot in earlier[:1] + earlier[1:][-1:]]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        steps = trainer.estimated_stepping_batches
        self.last = steps - 1
        self.probe_steps = probe_steps(steps, self.probes)
        self.probed = -1
        data: Any = getattr(trainer, "datamodule", None)
        self.batch = data.sample(PROBE_SAMPLES) if self.probe_steps and hasattr(data, "sample") else None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self.batch is None and self.probe_steps:
            self.batch = tuple(tensor[:PROBE_SAMPLES].clone() for tensor in batch[:2])  # of a foreign DataModule
        if trainer.global_step in self.probe_steps and trainer.global_step != self.probed:
            self.take_snapshot(trainer, pl_module)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        due = self.recorder.due(trainer.global_step, self.last, self.every_n_steps)
        if not due and not self.recorder.updated:
            return
        if not self.writes and self.on_alarm in ("log", "warn"):
            return  # every rank holds the same averaged gradient; the first one reports, but all must agree to stop
        penalty = getattr(pl_module, "penalty_gradient", dict)
        inputs = self.batch[0] if self.batch else None
        step = Step(trainer.global_step, self.layers, remaining_scale(trainer, optimizer), penalty, inputs)
        self.recorder.before_step(step, due)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (measured := self.recorder.after_step()) is None:
            return
        step, norm, values = measured
        limit = trainer.gradient_clip_val if trainer.gradient_clip_algorithm != "value" else None
        clip = clip_coefficient(norm, limit)
        if "updates" in values:
            self.ratios = values["updates"]
        if ("updates" if "updates" in self.recorder.diagnostics else "gradients") in values:
            searching = getattr(trainer.precision_plugin, "scaler", None) is not None  # by infinities it finds a scale
            norms = {} if searching else values.get("gradients", {})
            bad = {name: not math.isfinite(value) for name, value in norms.items()}
            self.act_on(trainer, self.alarms.updated(step, values.get("updates", {}), clip, bad))
        if self.writes:
            own = {"grad/clip_coef": clip}
            if getattr(pl_module, "l1", 0) or getattr(pl_module, "l2", 0):
                own["grad/norm_with_penalty"] = norm
            log_metrics(trainer, {**self.recorder.keys(values), **own, **self.alarms.keys()}, step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.over = True
        if self.batch is not None:
            self.take_snapshot(trainer, pl_module)

    def take_snapshot(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Probe the network, on every rank, since a norm layer may ask the others."""
        assert self.batch is not None
        x, y = self.batch
        step = self.probed = trainer.global_step
        profile = probe(pl_module, x, loss_on(pl_module, y), trunk_of(pl_module), torch.float32)
        judged = verdict.plain(verdict.judge(profile, self.alarms.start))
        alarms = self.alarms.probed(step, profile)
        self.verdicts = [*self.verdicts[:1], judged]
        if self.writes:
            line = {"step": step, **profile.plain(), "updates": self.ratios, "verdict": judged}
            if len(self.verdicts) == 1 and isinstance(net := getattr(pl_module, "net", None), nn.Module):
                line["theory"] = lines(pl_module, net, getattr(pl_module, "trunk", []), x)
            runs.append_json(self.folder / runs.FLOW, line)
            log_metrics(trainer, verdict.keys(profile) | self.alarms.keys(), step)
        self.act_on(trainer, alarms)

    def act_on(self, trainer: Trainer, alarms: list[Alarm]) -> None:
        """Print new alarms, and end the run where `on_alarm` asks for it."""
        for alarm in alarms:
            if self.on_alarm != "log" and trainer.is_global_zero:
                print_line(trainer, f"ALARM {alarm.kind}: {alarm.sentence}")
        if self.on_alarm not in ("stop", "prune") or self.over:
            return
        if trainer.strategy.reduce_boolean_decision(bool(alarms), all=False):  # all ranks stop, or none
            trainer.should_stop = True
            if self.on_alarm == "prune" and not self.pruned:
                self.pruned = "; ".join(f"{alarm.kind}: {alarm.sentence}" for alarm in alarms) or "another rank's alarm"

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.undrawn = self.writes
        if not self.draws_later:
            self.draw(trainer)

    def draw(self, trainer: Trainer) -> None:
        """Draw the pictures of a training that is over, once."""
        if not self.undrawn:
            return
        from gradflow.plots.profile import depth_profile, time_profile  # with matplotlib, which no step needs

        self.undrawn = False
        for name, picture in self.recorder.draw():
            log_picture(trainer, name, picture)
        if snapshots := runs.read_lines(self.folder / runs.FLOW):
            for name, file, draw in (("depth", runs.DEPTH, depth_profile), ("time", runs.TIME, time_profile)):
                if draw(snapshots, self.folder / file):
                    log_picture(trainer, name, self.folder / file)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, (runs.Diverged, runs.Pruned)) and hasattr(self, "layers"):
            self.on_fit_end(trainer, pl_module)  # the pictures show what led to it

    def state_dict(self) -> dict[str, Any]:
        return {"alarms": self.alarms.state(), "ratios": self.ratios, "diagnostics": self.recorder.state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.alarms.load(state_dict["alarms"])
        self.ratios = dict(state_dict["ratios"])
        self.recorder.saved = state_dict.get("diagnostics", {})  # earlier versions had none


@contextmanager
def pictures_last(trainer: Trainer) -> Iterator[None]:
    """Draw the pictures of a run when its result is on the screen, except for a logger that is to have them."""
    watching = [one for one in trainer.callbacks if isinstance(one, GradientFlow)]  # type: ignore[attr-defined]
    for callback in watching:
        callback.draws_later = not shows_pictures(trainer)
    try:
        yield
    finally:
        for callback in watching:
            callback.draw(trainer)


def probe_steps(steps: float, probes: int) -> set[int]:
    """Return the steps at which to probe: early and often, then evenly; ever more rarely where the end is unknown."""
    if not probes:
        return set()
    if not math.isfinite(steps):
        return {*EARLY, *(2**power for power in range(7, 40))}
    late = max(probes - len(EARLY), 1)
    return {*EARLY[:probes], *(round(steps * number / late) for number in range(1, late))}


def reject_shards(model: LightningModule, name: str = "gradient_flow") -> None:
    """Reject sharded parameters: the norm of a part, shown as that of the whole, would be worse than none."""
    for key, parameter in model.named_parameters():
        if hasattr(parameter, "device_mesh") or hasattr(parameter, "_is_flat_param") or "_flat_param" in key:
            raise UserError(f"callbacks.{name}: parameters are sharded (FSDP); it reads whole ones, as in ddp")
