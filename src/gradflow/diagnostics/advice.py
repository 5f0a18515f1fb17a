"""What might make a network trainable: changes of one choice, each probed as the network was."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from gradflow.data.datamodule import DataModule
from gradflow.diagnostics import verdict
from gradflow.diagnostics.initial_probe import Build, geometric_mean, probe_initialised, size_of, task_overrides
from gradflow.diagnostics.probe import ELEMENTWISE
from gradflow.runs.errors import UserError
from gradflow.runs.overrides import key
from gradflow.theory.mean_field import critical

SHOWN = 6  # suggestions


def suggestions(data: DataModule, snapshot: Mapping[str, Any], build: Build) -> list[dict[str, Any]]:
    """Return what might help, the best first, and only what brings the log₁₀ gradient ratio closer to 0."""
    judged = snapshot["verdict"]
    if judged["word"] == "OK":
        return []
    tried = []
    for overrides, reason in dict(_candidates(snapshot)).items():  # in each, one choice is another
        try:
            result = _verdict_of(_with_overrides(overrides), data, build)
        except UserError:
            continue  # it does not fit this architecture
        better = verdict.WORDS.index(result.word) < verdict.WORDS.index(judged["word"])
        if better or abs(result.decades) < abs(judged["decades"]) - 0.3:
            tried.append({"words": overrides, "why": reason, "decades": result.decades, "word": result.word})
    return sorted(tried, key=size_of)[:SHOWN]


def _verdict_of(cfg: DictConfig, data: DataModule, build: Build) -> verdict.Verdict:
    return verdict.judge(geometric_mean([probe_initialised(cfg, data, build, number)[1] for number in range(2)]))


def _candidates(snapshot: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield overrides of one choice each, and the reason."""
    name, cfg = HydraConfig.get().runtime.choices["model"], compose("probe", task_overrides())
    if snapshot["verdict"]["axis"] == "time":
        yield from _for_time(name, cfg.model)
        return
    yield from _initialisations(name, cfg)
    yield from _norms_and_branches(name, cfg.model)
    if name == "mlp" and (budget := depth_budget(snapshot)) and budget < cfg.model.depth:
        yield f"model.depth={budget}", f"the depth at which the log₁₀ gradient ratio stays within ±{verdict.CAUTION}"


def _for_time(name: str, keys: DictConfig) -> Iterator[tuple[str, str]]:
    """Yield changes for a gradient that is lost through time."""
    for gate in ("forget_bias", "update_bias"):
        if gate in keys:
            yield f"model.{gate}=chrono", "gates that remember as long as the sequence (Tallec & Ollivier 2018)"
    if name == "rnn":
        yield "init=orthogonal", "recurrent weights that keep the norm (Saxe et al. 2013)"
        yield "activation=relu model.identity=true", "recurrent weights that start as the identity (Le et al. 2015)"
    if name != "lstm":
        yield "model=lstm model.forget_bias=chrono", "a cell that keeps its state"


def _initialisations(name: str, cfg: DictConfig) -> Iterator[tuple[str, str]]:
    """Yield other initial weights and activations."""
    fitted = cfg.init.name == "auto"
    if sigma := _critical_width(cfg):
        yield f"init=mean_field init.sigma_w={sigma:.4g}", "the σ_w at which χ = 1 (Schoenholz et al. 2017)"
    if not fitted:
        yield "init=auto", "the initialisation that fits the activation"
    yield "init=orthogonal", "orthogonal weights keep the norm (Saxe et al. 2013)"
    if name in ("cnn", "resnet"):
        yield "init=delta_orthogonal", "orthogonal at the centre tap (Xiao et al. 2018)"
    for other in ("relu", "tanh"):
        if cfg.activation.name != other:
            yield f"activation={other}", "another activation"
            if not fitted:
                yield f"activation={other} init=auto", "another activation and the initialisation that fits it"


def _norms_and_branches(name: str, keys: DictConfig) -> Iterator[tuple[str, str]]:
    """Yield norm layers, and branches around the layers."""
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


def _critical_width(cfg: DictConfig) -> float | None:
    """Return σ_w with χ = 1 for the activation, where there is one."""
    node = OmegaConf.to_container(cfg.activation)
    from gradflow.models.activation import make

    phi = make(node)  # type: ignore[arg-type]
    solution = critical(phi) if isinstance(phi, ELEMENTWISE) else None
    return solution[0] if solution else None


def depth_budget(snapshot: Mapping[str, Any]) -> int:
    rate = snapshot["keys"].get("flow/rate_depth", 1.0)
    return 1 + int(verdict.CAUTION / abs(math.log10(rate))) if rate > 0 and rate != 1 else 0


def _with_overrides(changes: str) -> DictConfig:
    """Return the configuration with other overrides in the place of those about the same choice."""
    new = changes.split()
    keys = [key(override) for override in new]
    unchanged = [override for override in task_overrides() if not replaced(key(override), keys)]
    return compose("probe", [*unchanged, *new])


def replaced(key: str, keys: Sequence[str]) -> bool:
    return any(key == other or ("." not in other and key.startswith(f"{other}.")) for other in keys)
