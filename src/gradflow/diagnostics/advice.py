"""What might make a network trainable: changes of one choice, each probed as the network was."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from gradflow.data.datamodule import DataModule
from gradflow.diagnostics import verdict
from gradflow.diagnostics.initial_probe import Build, geometric_mean, probe_initialised
from gradflow.diagnostics.units import ELEMENTWISE
from gradflow.models import activation
from gradflow.plots.limits import CAUTION
from gradflow.runs.errors import UserError
from gradflow.runs.overrides import key, of_command, top_key
from gradflow.theory.mean_field import critical

_SHOWN = 6  # suggestions
_PATIENCE = 20.0  # seconds after which a run that is over tries no other change
NETWORK = ("model", "activation", "init", "data", "experiment", "seed")  # what a probe has of a training's choices
_Candidate = tuple[bool, str, str]  # whether it is one, its overrides, and the reason


def suggestions(data: DataModule, snapshot: Mapping[str, Any], build: Build) -> list[dict[str, Any]]:
    """Return what might help, the best first, and only what brings the log₁₀ gradient ratio closer to 0."""
    return sorted(_helpful(data, snapshot, build), key=lambda one: abs(one["decades"]))[:_SHOWN]


def cure(data: DataModule, build: Build, judged: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the first change that lets a run's initial weights pass for OK, or the best there is: a command for the
    end of a training, which should not wait for all of them."""
    network = [word for word in of_command() if top_key(word) in NETWORK]
    best = None
    until = time.monotonic() + _PATIENCE
    for one in _helpful(data, {"verdict": judged, "words": network, "keys": {}}, build, until):
        if one["word"] == "OK":
            return one
        best = min(best or one, one, key=lambda tried: abs(tried["decades"]))
    return best


def _helpful(
    data: DataModule, snapshot: Mapping[str, Any], build: Build, until: float = math.inf
) -> Iterator[dict[str, Any]]:
    judged = snapshot["verdict"]
    if judged["word"] == "OK":
        return
    for overrides, reason in _candidates(snapshot):  # in each, one choice is another
        if time.monotonic() > until:
            return
        cfg = compose("probe", changed(snapshot["words"], overrides))
        try:
            profiles = [probe_initialised(cfg, data, build, number)[1] for number in range(2)]
        except UserError:
            continue  # it does not fit this architecture
        result = verdict.judge(geometric_mean(profiles))
        better = verdict.WORDS.index(result.word) < verdict.WORDS.index(judged["word"])
        if better or abs(result.decades) < abs(judged["decades"]) - 0.3:
            yield {"words": overrides, "why": reason, "decades": result.decades, "word": result.word}


def _candidates(snapshot: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield overrides of one choice each, and the reason."""
    name, cfg = HydraConfig.get().runtime.choices["model"], compose("probe", snapshot["words"])
    if snapshot["verdict"]["axis"] == "time":
        rows = _over_time(name, cfg.model)
    else:
        budget = depth_budget(snapshot) if name == "mlp" else 0
        why = f"the depth at which the log₁₀ gradient ratio stays within ±{CAUTION}"
        rows = [*_initialisations(name, cfg), *_norms_and_branches(name, cfg.model)]
        rows.append((0 < budget < cfg.model.get("depth", 0), f"model.depth={budget}", why))
    yield from {overrides: reason for possible, overrides, reason in rows if possible}.items()


def _over_time(name: str, keys: DictConfig) -> list[_Candidate]:
    remembers = "gates that remember as long as the sequence (Tallec & Ollivier 2018)"
    identity = "recurrent weights that start as the identity (Le et al. 2015)"
    return [
        ("forget_bias" in keys, "model.forget_bias=chrono", remembers),
        ("update_bias" in keys, "model.update_bias=chrono", remembers),
        (name == "rnn", "init=orthogonal", "recurrent weights that keep the norm (Saxe et al. 2013)"),
        (name == "rnn", "activation=relu model.identity=true", identity),
        (name != "lstm", "model=lstm model.forget_bias=chrono", "a cell that keeps its state"),
    ]


def _initialisations(name: str, cfg: DictConfig) -> list[_Candidate]:
    fits, phi = cfg.init.name == "auto", cfg.activation.name
    sigma = _critical_width(cfg)
    both = "another activation and the initialisation that fits it"
    return [
        (bool(sigma), f"init=mean_field init.sigma_w={sigma:.4g}", "the σ_w at which χ = 1 (Schoenholz et al. 2017)"),
        (not fits, "init=auto", "the initialisation that fits the activation"),
        (True, "init=orthogonal", "orthogonal weights keep the norm (Saxe et al. 2013)"),
        (name in ("cnn", "resnet"), "init=delta_orthogonal", "orthogonal at the centre tap (Xiao et al. 2018)"),
        (phi != "relu", "activation=relu", "another activation"),
        (phi != "relu" and not fits, "activation=relu init=auto", both),
        (phi != "tanh", "activation=tanh", "another activation"),
        (phi != "tanh" and not fits, "activation=tanh init=auto", both),
    ]


def _norms_and_branches(name: str, keys: DictConfig) -> list[_Candidate]:
    branches = bool(keys.get("residual") or keys.get("skip"))
    scaled = "branches scaled by 1/√L: the factor stays below e"
    return [
        ("norm" in keys, "model.norm=layer", "layer norm keeps the scale of each sample"),
        ("norm" in keys, "model.norm=batch", "batch norm keeps the scale of each unit"),
        (name == "cnn", "model=bn_cnn", "batch norm keeps the scale of each unit"),
        (keys.get("residual") is False, "model.residual=true", "a path around each layer"),
        (keys.get("residual") is False, "model.residual=true model.branch_scale=depth", scaled),
        (keys.get("skip") is False, "model.skip=true", "a path around each pair of layers"),
        (branches, "model.branch_scale=depth", scaled),
        ("gate_bias" in keys, "model.gate_bias=-4", "gates that begin nearly shut (Srivastava et al. 2015)"),
    ]


def _critical_width(cfg: DictConfig) -> float:
    """Return σ_w with χ = 1 for the activation, 0 where there is none."""
    phi = activation.make(OmegaConf.to_container(cfg.activation))  # type: ignore[arg-type]
    solution = critical(phi) if isinstance(phi, ELEMENTWISE) else None
    return solution[0] if solution else 0.0


def depth_budget(snapshot: Mapping[str, Any]) -> int:
    rate = snapshot["keys"].get("flow/rate_depth", 1.0)
    return 1 + int(CAUTION / abs(math.log10(rate))) if rate > 0 and rate != 1 else 0


def changed(overrides: Sequence[str], changes: str) -> list[str]:
    """Return overrides with others in the place of those about the same choice."""
    new = changes.split()
    keys = [key(override) for override in new]
    return [*(override for override in overrides if not replaced(key(override), keys)), *new]


def replaced(key: str, keys: Sequence[str]) -> bool:
    return any(key == other or ("." not in other and key.startswith(f"{other}.")) for other in keys)
