"""What `probe.py` does: probes a network at its initial weights, compares with theory, and prints the verdict."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from lightning import Trainer
from omegaconf import DictConfig

from gradflow import runs
from gradflow.data.datamodule import DataModule
from gradflow.diagnostics import verdict
from gradflow.diagnostics.probe import PROBE_SAMPLES, Profile
from gradflow.diagnostics.subject import Subject
from gradflow.diagnostics.table import COLOURS, print_norms
from gradflow.runs.errors import UserError
from gradflow.runs.overrides import of_command
from gradflow.runs.screen import Screen, link
from gradflow.spec import Spec
from gradflow.theory.prediction import lines

Snapshot = dict[str, Any]
Build = Callable[[DictConfig, Spec], Any]  # a configuration and a spec -> a model
_MOST_SEEDS = 1000  # networks that are in memory at once
_LIMITS = (
    "Judged is the gradient of the initial weights, which is necessary for training, not sufficient: not the step "
    "size, nor what data and optimizer make of it."
)


def before_training(cfg: DictConfig, data: DataModule, model: Any, trainer: Trainer) -> dict[str, Any]:
    """Return the verdict on a run's own initial weights. `on_alarm=prune` ends a run that FAILs here."""
    judged = verdict.plain(verdict.judge(_probe_on(model, data, PROBE_SAMPLES)))
    if trainer.is_global_zero:
        print(f"probe: {judged['word']}, log₁₀ gradient ratio = {judged['decades']:.1f}: {judged['reason']}")
        print(f"       {judged['meaning']}")
    if judged["word"] == "FAIL" and cfg.on_alarm == "prune":
        raise runs.Pruned(f"before the first step: {judged['reason']}")
    return judged


def _probe_on(model: Any, data: DataModule, batch: int) -> Profile:
    return Subject(model).profile(data.sample(batch))


def probe_initialised(cfg: DictConfig, data: DataModule, build: Build, number: int) -> tuple[Any, Profile]:
    """Return the model as the seed, or one of the `number` next, initialises it, and what the probe finds there."""
    with torch.random.fork_rng([]):
        torch.manual_seed(cfg.seed + number)
        model = build(cfg, data.spec)
        model.adapt(data.training_inputs)
    return model, _probe_on(model, data, cfg.batch)


def probe_seeds(cfg: DictConfig, data: DataModule, build: Build) -> Snapshot:
    """Return the geometric mean over seeds: a gradient's size scatters by factors (Hanin & Nica 2018)."""
    if cfg.seeds < 1 or cfg.batch < 2:
        raise UserError(f"seeds={cfg.seeds}, batch={cfg.batch}: expected 1 or more, and 2 or more")
    if cfg.seeds > _MOST_SEEDS:
        raise UserError(f"seeds={cfg.seeds}: expected {_MOST_SEEDS:,} at most; each is a network of its own")
    probed = [probe_initialised(cfg, data, build, number) for number in range(cfg.seeds)]
    model, profiles = probed[0][0], [profile for _, profile in probed]
    mean = geometric_mean(profiles)
    judged = verdict.judge(mean)
    norms_by_seed = [verdict.axes(profile).get(judged.axis, []) for profile in profiles]
    ratios = [gap for norms in norms_by_seed if math.isfinite(gap := verdict.log_ratio(norms))]
    return {
        "step": 0,
        **mean.plain(),
        "keys": verdict.keys(mean),
        "verdict": verdict.plain(judged) | {"sd": float(np.std(ratios)) if len(ratios) > 1 else 0.0},
        "seeds": cfg.seeds,
        "theory": lines(model, model.net, model.trunk, data.sample(cfg.batch)[0]),
        "words": of_command(),
    }


def geometric_mean(profiles: Sequence[Profile]) -> Profile:
    """Return the geometric mean of lists of norms, and the arithmetic one of shares and single numbers."""
    merged: dict[str, Any] = {}
    for name, first in vars(profiles[0]).items():
        every = [getattr(profile, name) for profile in profiles]
        if name in ("trunk", "moved"):
            merged[name] = first
        elif not isinstance(first, (list, dict)):
            merged[name] = float(np.mean(every))
        elif isinstance(first, dict):
            merged[name] = {key: float(np.mean([shares[key] for shares in every])) for key in first}
        else:
            with np.errstate(divide="ignore"):  # a norm of 0 stays 0
                merged[name] = np.exp(np.mean(np.log(every), 0)).tolist() if first else []
    return Profile(**merged)


def save(cfg: DictConfig, data: DataModule, snapshot: Snapshot, advice: Sequence[Mapping[str, Any]]) -> None:
    from gradflow.plots.profile import depth_profile, time_profile, weight_gradient_profile  # with matplotlib

    folder = Path(cfg.run_dir)
    choices = {group: choice for group, choice in HydraConfig.get().runtime.choices.items() if "/" not in group}
    runs.write_json(
        folder / runs.PROBE, {**snapshot, "choices": choices, "data": data.describe(), "advice": list(advice)}
    )
    depth_profile([snapshot], folder / runs.DEPTH)
    time_profile([snapshot], folder / runs.TIME)
    weight_gradient_profile(snapshot, folder / runs.WEIGHT_GRADIENTS)


def show(cfg: DictConfig, data: DataModule, snapshot: Snapshot, advice: Sequence[Mapping[str, Any]]) -> None:
    console = Screen()
    name = HydraConfig.get().runtime.choices["model"]
    initialisations = f"{cfg.seeds} initialisations" if cfg.seeds > 1 else "one initialisation"
    console.print(f"{name} on {data.describe()['name']}, {initialisations}", markup=False)
    if not runs.in_sweep():
        print_norms(console, snapshot, snapshot["theory"])
    judged = snapshot["verdict"]
    size = f"log₁₀ gradient ratio = {judged['decades']:.1f}" + (f" ± {judged['sd']:.1f}" if cfg.seeds > 1 else "")
    console.row("verdict", f"{judged['word']}  {size}: {judged['reason']}", COLOURS[judged["word"]])
    console.row("", judged["meaning"])
    if snapshot["theory"]["no_prediction"]:
        console.row("theory", f"no prediction here: {snapshot['theory']['no_prediction']}")
    width = max((len(one["words"]) for one in advice), default=0)
    for one in advice:
        result = f"{one['word']:<7}  ratio {round(one['decades'], 1) + 0.0:4.1f}"  # no -0.0
        console.row("try", f"{one['words']:<{width}}  {result}: {one['why']}")
    console.row("limits", _LIMITS)
    console.row("run folder", os.path.relpath(cfg.run_dir), link(Path(cfg.run_dir)))
