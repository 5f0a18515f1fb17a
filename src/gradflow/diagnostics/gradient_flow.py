"""Watch the gradient while a network trains: every layer's norm, probes beside what theory predicts, and alarms."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lightning import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from gradflow import runs
from gradflow.diagnostics import verdict
from gradflow.diagnostics.alarms import Alarm, Alarms
from gradflow.diagnostics.diagnostic import Diagnostic, Step
from gradflow.diagnostics.gradients import Gradients
from gradflow.diagnostics.isolation import Loss
from gradflow.diagnostics.layers import layers
from gradflow.diagnostics.norms import clip_coefficient
from gradflow.diagnostics.optimizer_rounds import Rounds
from gradflow.diagnostics.output import log_metrics, log_picture, print_line, shows_pictures, working
from gradflow.diagnostics.probe import PROBE_SAMPLES
from gradflow.diagnostics.recorder import Recorder
from gradflow.diagnostics.snapshots import Snapshots, probe_steps
from gradflow.diagnostics.trainer_facts import folder_of, reject_shards, steps_of
from gradflow.diagnostics.updates import Updates
from gradflow.models.penalty import remaining_scale
from gradflow.runs.errors import UserError
from gradflow.spec import Spec

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

    Snapshots go to ``flow.jsonl``, a line a probe; at the end come the pictures. All lie in `run_dir`, one a run, or in
    a new folder beside the logger's files. A step that is measured costs a transfer from the device, a probe another.

    Any LightningModule will do (docs/library.md): `loss(model, batch)` and `trunk` say how to probe it, else what
    `training_step` returns and the blocks that are found (subject.py). A step of each of several optimizers is one.

    `on_alarm` says what follows an alarm: log (the keys alone), warn (and a sentence), stop (and the run ends and is
    tested), prune (and the run ends at once, with that status). Alarms on updates and gradients need the diagnostics
    of these names.

    Where an epoch's batches don't divide by ``accumulate_grad_batches``, Lightning divides the shorter last sum by the
    full number all the same: that step's norms are smaller, as its update is. A run that ends early, by a time limit or
    early stopping, has no row for its last step, because nobody knew that it was the last.
    """

    def __init__(
        self,
        run_dir: str | None = None,
        every_n_steps: int = 50,
        probes: int = 20,
        on_alarm: str = "warn",
        diagnostics: Sequence[Diagnostic] | None = None,
        loss: Loss | None = None,
        trunk: Sequence[str] = (),
    ) -> None:
        if every_n_steps < 1:
            raise UserError(f"callbacks.gradient_flow.every_n_steps={every_n_steps}: expected 1 or more")
        if not 0 <= probes <= _MOST_PROBES:
            raise UserError(f"callbacks.gradient_flow.probes={probes}: expected 0 to {_MOST_PROBES:,}")
        if on_alarm not in _ACTIONS:
            raise UserError(f"on_alarm={on_alarm}: expected one of {', '.join(_ACTIONS)}")
        self.run_dir, self.every_n_steps, self.probes, self.on_alarm = run_dir, every_n_steps, probes, on_alarm
        self.snapshots = Snapshots(loss, trunk)
        self.recorder = Recorder([Gradients(), Updates()] if diagnostics is None else diagnostics)
        self.alarms = Alarms()
        self.writes = False
        self.pruned: str | None = None
        self.over = False  # nothing is left to stop
        self.undrawn = self.draws_later = False
        self.ratios: dict[str, float] = {}

    @property
    def verdicts(self) -> list[dict[str, Any]]:
        """Return the verdict at the start and at the latest probe, as plain data."""
        return self.snapshots.verdicts

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        reject_shards(pl_module, strategy=trainer.strategy)
        self.layers = layers(pl_module)
        self.ours = isinstance(getattr(pl_module, "spec", None), Spec)
        if not self.layers:
            raise UserError("callbacks.gradient_flow: the model has no trainable layer to watch")
        self.writes = trainer.is_global_zero
        self.folder = folder_of(trainer, self.run_dir)
        self.recorder.start(pl_module, self.layers, self.folder if self.writes else None)
        if self.writes:
            self.snapshots.read(self.folder)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        steps = steps_of(trainer, pl_module)
        self.last, self.probe_steps = steps - 1, probe_steps(steps, self.probes)
        data: Any = getattr(trainer, "datamodule", None)
        ours = self.ours and self.probe_steps and hasattr(data, "sample")
        samples = data.sample(PROBE_SAMPLES) if ours else None
        self.explain(trainer, self.snapshots.start(pl_module, self.probe_steps, trainer.global_step, samples))
        self.latest = trainer.global_step - 1  # step that was about to be made
        several = len(trainer.optimizers) > 1
        self.rounds = Rounds(self.recorder, trainer.optimizers, self.layers, self.latest) if several else None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self.snapshots.due(trainer.global_step, batch):
            self.take_snapshot(trainer)

    def explain(self, trainer: Trainer, why: str | None) -> None:
        """Say why there are no probes."""
        if why and self.writes:
            print_line(trainer, f"gradient_flow: gradients and updates alone, no probes: {why}")

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        step = trainer.global_step  # which costs Lightning a look at every optimizer
        if step != self.latest and not self.rounds:
            self.record(trainer, pl_module)  # an earlier step of the same batch, as manual optimization makes them
        self.latest = step
        if not self.writes and self.on_alarm in ("log", "warn"):
            return  # every rank holds the same averaged gradient; the first one reports, but all must agree to stop
        if self.rounds:
            self.rounds.add(step, optimizer, remaining_scale(trainer, optimizer), self.due)
        elif (due := self.due(step)) or self.recorder.updated:
            penalty = getattr(pl_module, "penalty_gradient", dict) if self.ours else dict
            scale = remaining_scale(trainer, optimizer)
            inputs = self.snapshots.batch[0] if self.ours and self.snapshots.batch else None
            self.recorder.before_step(Step(step, self.layers, scale, penalty, inputs), due)

    def due(self, step: int) -> list[Diagnostic]:
        return self.recorder.due(step, self.last, self.every_n_steps)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.record(trainer, pl_module)

    def record(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take down the step that was measured, if one was and it is over."""
        if self.rounds:
            self.rounds.end()
        if (measured := self.recorder.after_step()) is None:
            return
        step, norm, values = measured
        limit = trainer.gradient_clip_val if trainer.gradient_clip_algorithm != "value" else None
        clip = clip_coefficient(norm, limit)
        self.ratios = values.get("updates", self.ratios)
        if ("updates" if "updates" in self.recorder.diagnostics else "gradients") in values:
            searching = getattr(trainer.precision_plugin, "scaler", None) is not None  # by infinities it finds a scale
            norms = {} if searching else values.get("gradients", {})
            bad = {name: not math.isfinite(value) for name, value in norms.items()}
            self.act_on(trainer, self.alarms.updated(step, values.get("updates", {}), clip, bad))
        if self.writes:
            own = {"grad/clip_coef": clip}
            if self.ours and any(getattr(pl_module, name, 0) for name in ("l1", "l2")):
                own["grad/norm_with_penalty"] = norm
            log_metrics(trainer, {**self.recorder.keys(values), **own, **self.alarms.keys()}, step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.over = True
        if self.snapshots.batch is not None:
            self.take_snapshot(trainer)

    def take_snapshot(self, trainer: Trainer) -> None:
        """Probe the network, on every rank, since a norm layer may ask the others."""
        if why := self.snapshots.check():
            return self.explain(trainer, why)
        step = trainer.global_step
        profile, line = self.snapshots.take(step, self.ratios, self.alarms.start)
        alarms = self.alarms.probed(step, profile)
        if self.writes:
            runs.append_json(self.folder / runs.FLOW, line)
            log_metrics(trainer, verdict.keys(profile) | self.alarms.keys(), step)
        self.act_on(trainer, alarms)

    def act_on(self, trainer: Trainer, alarms: list[Alarm]) -> None:
        """Print new alarms, and end the run where `on_alarm` asks for it."""
        for alarm in alarms:
            if self.on_alarm != "log" and trainer.is_global_zero:
                text = alarm.sentence if self.ours else alarm.sentence.partition("; try ")[0]  # keys of our own models
                print_line(trainer, f"ALARM {alarm.kind}: {text}")
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
        self.undrawn = False
        with working(trainer, "drawing the pictures"):
            for name, picture in (*self.recorder.draw(), *self.snapshots.draw(self.folder)):
                log_picture(trainer, name, picture)

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
