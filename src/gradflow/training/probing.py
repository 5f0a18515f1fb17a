"""What `probe.py` does: looks at a network as it is drawn, compares with theory, and tries what might help."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from lightning import Trainer
from omegaconf import DictConfig, OmegaConf
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from gradflow import runs
from gradflow.config import build
from gradflow.data.datamodule import DataModule
from gradflow.diagnostics import verdict
from gradflow.diagnostics.probe import ELEMENTWISE, PROBE_SAMPLES, Profile, loss_on, probe, trunk_of
from gradflow.plots.heatmap import spread
from gradflow.plots.profile import depth_profile, time_profile, trap
from gradflow.runs.errors import UserError
from gradflow.theory.mean_field import critical
from gradflow.theory.prediction import lines

Look = dict[str, Any]
ROWS = 24  # blocks or time steps that a table on the screen shows
MOST = 1000  # draws that are held in memory at once
SHOWN = 6  # suggestions
LIMITS = (
    "Judged is the gradient of the initial weights, which is necessary for training, not sufficient: not the step "
    "size, nor what data and optimizer make of it."
)


def first(cfg: DictConfig, data: DataModule, model: Any, trainer: Trainer) -> dict[str, Any]:
    """Before a run: what a look at its own weights says. `on_alarm=prune` ends a run that FAILs here."""
    judged = verdict.plain(verdict.judge(look_at(model, data, PROBE_SAMPLES)))
    if trainer.is_global_zero:
        print(f"probe: {judged['word']}, log₁₀ gradient ratio = {judged['decades']:.1f}: {judged['reason']}")
        print(f"       {judged['meaning']}")
    if judged["word"] == "FAIL" and cfg.on_alarm == "prune":
        raise runs.Pruned(f"before the first step: {judged['reason']}")
    return judged


def look_at(model: Any, data: DataModule, batch: int) -> Profile:
    device = next(model.parameters()).device  # a model that the Trainer has not moved yet is not where the data are
    x, y = (tensor.to(device) for tensor in data.sample(batch))
    return probe(model, x, loss_on(model, y), trunk_of(model))


def drawn(cfg: DictConfig, data: DataModule, number: int) -> Any:
    """The model as the seed draws it, and as the next ones do."""
    with torch.random.fork_rng([]):
        torch.manual_seed(cfg.seed + number)
        return build.model(cfg, data.spec)


def average(cfg: DictConfig, data: DataModule) -> Look:
    """Over draws of the weights, of logarithms: a gradient's size scatters by factors (Hanin & Nica 2018)."""
    if cfg.seeds < 1 or cfg.batch < 2:
        raise UserError(f"seeds={cfg.seeds}, batch={cfg.batch}: expected 1 or more, and 2 or more")
    if cfg.seeds > MOST:
        raise UserError(f"seeds={cfg.seeds}: expected {MOST:,} at most; each is a network of its own")
    models = [drawn(cfg, data, number) for number in range(cfg.seeds)]
    profiles = [look_at(model, data, cfg.batch) for model in models]
    mean = geometric(profiles)
    judged = verdict.judge(mean)
    found = [verdict.axes(profile).get(judged.axis, []) for profile in profiles]
    spread_of = [gap for norms in found if math.isfinite(gap := verdict.decades(norms))]
    return {
        "step": 0,
        **mean.plain(),
        "keys": verdict.keys(mean),
        "verdict": verdict.plain(judged) | {"sd": float(np.std(spread_of)) if len(spread_of) > 1 else 0.0},
        "seeds": cfg.seeds,
        "theory": lines(models[0], models[0].net, models[0].trunk, data.sample(cfg.batch)[0]),
        "words": task_words(),
    }


def geometric(profiles: Sequence[Profile]) -> Profile:
    first = profiles[0]

    def mean(name: str) -> list[float]:
        with np.errstate(divide="ignore"):
            return np.exp(np.mean(np.log([getattr(profile, name) for profile in profiles]), 0)).tolist()

    def table(name: str) -> dict[str, float]:
        found = [getattr(profile, name) for profile in profiles]
        return {key: float(np.mean([shares[key] for shares in found])) for key in found[0]}

    single: dict[str, Any] = {
        name: float(np.mean([getattr(one, name) for one in profiles])) for name in ("loss", "alike", "waking")
    }
    lists: dict[str, Any] = {name: mean(name) if getattr(first, name) else [] for name in ("gradient", "rms", "time")}
    tables: dict[str, Any] = {name: table(name) for name in ("weights", "dead", "saturated")}
    return Profile(trunk=first.trunk, **single, **lists, **tables)


def advice(data: DataModule, look: Look) -> list[dict[str, Any]]:
    """What might help, each probed as the network was; the best first, and only what makes R smaller."""
    judged = look["verdict"]
    if judged["word"] == "OK":
        return []
    tried = []
    for words, why in dict(candidates(look)).items():  # in each, one choice is another
        try:
            cfg = changed(words)
            found = average_of(cfg, data)
        except UserError:
            continue  # it does not fit this architecture
        better = verdict.WORDS.index(found.word) < verdict.WORDS.index(judged["word"])
        if better or abs(found.decades) < abs(judged["decades"]) - 0.3:
            tried.append({"words": words, "why": why, "decades": found.decades, "word": found.word})
    return sorted(tried, key=size_of)[:SHOWN]


def size_of(told: Mapping[str, Any]) -> float:
    return abs(told["decades"])


def average_of(cfg: DictConfig, data: DataModule) -> verdict.Verdict:
    return verdict.judge(geometric([look_at(drawn(cfg, data, number), data, cfg.batch) for number in range(2)]))


def candidates(look: Look) -> Iterator[tuple[str, str]]:
    """Overrides of one choice each, and the reason."""
    name, cfg = HydraConfig.get().runtime.choices["model"], compose("probe", task_words())
    if look["verdict"]["axis"] == "time":
        yield from memories(name, cfg.model)
        return
    yield from draws(name, cfg)
    yield from paths(name, cfg.model)
    if name == "mlp" and (budget := depth_budget(look)) and budget < cfg.model.depth:
        yield f"model.depth={budget}", f"the depth at which the log₁₀ gradient ratio stays within ±{verdict.CAUTION}"


def memories(name: str, keys: DictConfig) -> Iterator[tuple[str, str]]:
    """For what is lost through time."""
    for gate in ("forget_bias", "update_bias"):
        if gate in keys:
            yield f"model.{gate}=chrono", "gates that remember as long as the sequence (Tallec & Ollivier 2018)"
    if name == "rnn":
        yield "init=orthogonal", "recurrent weights that keep the norm (Saxe et al. 2013)"
        yield "activation=relu model.identity=true", "recurrent weights that start as the identity (Le et al. 2015)"
    if name != "lstm":
        yield "model=lstm model.forget_bias=chrono", "a cell that keeps its state"


def draws(name: str, cfg: DictConfig) -> Iterator[tuple[str, str]]:
    """Other weights and activations."""
    drawn_to_fit = cfg.init.name == "auto"
    if sigma := critical_width(cfg):
        yield f"init=mean_field init.sigma_w={sigma:.4g}", "the σ_w at which χ = 1 (Schoenholz et al. 2017)"
    if not drawn_to_fit:
        yield "init=auto", "the draw that fits the activation"
    yield "init=orthogonal", "orthogonal weights keep the norm (Saxe et al. 2013)"
    if name in ("cnn", "resnet"):
        yield "init=delta_orthogonal", "orthogonal at the centre tap (Xiao et al. 2018)"
    for other in ("relu", "tanh"):
        if cfg.activation.name != other:
            yield f"activation={other}", "another activation"
            if not drawn_to_fit:
                yield f"activation={other} init=auto", "another activation and the draw that fits it"


def paths(name: str, keys: DictConfig) -> Iterator[tuple[str, str]]:
    """Norms, and ways around the layers."""
    if "norm" in keys:
        yield "model.norm=layer", "layer norm keeps the scale of each sample"
        yield "model.norm=batch", "batch norm keeps the scale of each unit"
    if name == "cnn":
        yield "model=bn_cnn", "batch norm keeps the scale of each unit"
    if "residual" in keys:
        yield "model.residual=true", "a path around each layer"
        yield "model.residual=true model.branch_scale=depth", "branches scaled by 1/√L: the factor stays below e"
    if keys.get("skip") is False:
        yield "model.skip=true", "a path around each pair of layers"
    if keys.get("residual") or keys.get("skip"):
        yield "model.branch_scale=depth", "branches scaled by 1/√L: the factor stays below e"


def critical_width(cfg: DictConfig) -> float | None:
    """σ_w with χ = 1 for the activation, where there is one."""
    node = OmegaConf.to_container(cfg.activation)
    from gradflow.models.activation import make

    phi = make(node)  # type: ignore[arg-type]
    found = critical(phi) if isinstance(phi, ELEMENTWISE) else None
    return found[0] if found else None


def depth_budget(look: Look) -> int:
    rate = look["keys"].get("flow/rate_depth", 1.0)
    return 1 + int(verdict.CAUTION / abs(math.log10(rate))) if rate > 0 and rate != 1 else 0


def task_words() -> list[str]:
    return [str(word) for word in HydraConfig.get().overrides.task]


def changed(words: str) -> DictConfig:
    """The configuration with other words in the place of those about the same choice."""
    new = words.split()
    keys = [word.partition("=")[0] for word in new]
    kept = [word for word in task_words() if not replaced(word.lstrip("+~").partition("=")[0], keys)]
    return compose("probe", [*kept, *new])


def replaced(key: str, keys: Sequence[str]) -> bool:
    return any(key == other or ("." not in other and key.startswith(f"{other}.")) for other in keys)


def save(cfg: DictConfig, data: DataModule, look: Look, advice: Sequence[Mapping[str, Any]]) -> None:
    folder = Path(cfg.run_dir)
    choices = {group: choice for group, choice in HydraConfig.get().runtime.choices.items() if "/" not in group}
    runs.write_json(folder / runs.PROBE, {**look, "choices": choices, "data": data.describe(), "advice": list(advice)})
    depth_profile([look], folder / runs.DEPTH)
    time_profile([look], folder / runs.TIME)
    trap(look, folder / runs.TRAP)


def show(cfg: DictConfig, data: DataModule, look: Look, advice: Sequence[Mapping[str, Any]]) -> None:
    console = Console(highlight=False)
    name = HydraConfig.get().runtime.choices["model"]
    draws = f"{cfg.seeds} initialisations" if cfg.seeds > 1 else "one initialisation"
    console.print(f"{name} on {data.describe()['name']}, {draws}", markup=False)
    if len(look["gradient"]) > 1 and not runs.in_sweep():
        console.print(table("block", look["trunk"], look["gradient"], look["theory"]["gradient"], look["rms"]))
    if look["time"] and not runs.in_sweep():
        steps = [f"step {number + 1}" for number in range(len(look["time"]))]
        console.print(table("time", steps, look["time"], look["theory"]["time"]))
    told = look["verdict"]
    colour = {"OK": "green", "CAUTION": "yellow", "FAIL": "red"}[told["word"]]
    size = f"log₁₀ gradient ratio = {told['decades']:.1f}" + (f" ± {told['sd']:.1f}" if cfg.seeds > 1 else "")
    console.print(f"[bold {colour}]{told['word']}[/]  {size}: {told['reason']}", soft_wrap=True)
    console.print(f"     {told['meaning']}", soft_wrap=True)
    if look["theory"]["no_prediction"]:
        console.print(f"     no prediction here: {look['theory']['no_prediction']}", soft_wrap=True, markup=False)
    for one in advice:
        result = f"{one['word']}, log₁₀ gradient ratio = {one['decades']:.1f}"
        console.print(f"try  {one['words']:<48} {result}: {one['why']}", soft_wrap=True, markup=False)
    console.print(f"[dim]{LIMITS}[/]", soft_wrap=True)
    console.print(f"folder  {os.path.relpath(cfg.run_dir)}", soft_wrap=True, markup=False)


def table(
    title: str,
    names: Sequence[str],
    norms: Sequence[float],
    predicted: Sequence[float | None] | None,
    rms: Sequence[float] | None = None,
) -> Table:
    """Norms, decades below or above the last place, and the same as theory has them."""
    shown = Table(title, box=SIMPLE_HEAD)
    columns = ["‖dL/dh‖" if title == "block" else "‖dL/dx‖", "log₁₀ to last"]
    columns += ["theory"] if predicted else []
    columns += ["rms of h"] if rms else []
    for column in columns:
        shown.add_column(column, justify="right")
    for index in spread(len(names), ROWS):
        cells = [f"{norms[index]:.1e}", decade(norms[index] / norms[-1] if norms[-1] else math.nan)]
        cells += [decade(predicted[index])] if predicted else []
        cells += [f"{rms[index]:.2g}"] if rms else []
        shown.add_row(names[index], *cells)
    return shown


def decade(ratio: float | None) -> str:
    if ratio is None or math.isnan(ratio):
        return "–"
    return f"{math.log10(ratio):+.1f}" if ratio > 0 else "zero"
