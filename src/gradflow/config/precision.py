"""`trainer.precision=auto`: bf16-mixed where the machine multiplies bfloat16 by itself, else 32-true."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from omegaconf import DictConfig

from gradflow import runs
from gradflow.config.checks import on_cpu
from gradflow.runs import ranks

_OUTCOMES = ("bf16-mixed", "32-true")
_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")  # of x86, and of ARM


def resolve(cfg: DictConfig) -> str:
    """Return the precision of a run. The first rank decides for all, and a run that goes on keeps its own, also where
    another machine would choose another."""
    if cfg.trainer.precision != "auto":
        return str(cfg.trainer.precision)
    return ranks.agreed(lambda: recorded(Path(cfg.run_dir)) or _OUTCOMES[not _is_native(cfg.trainer)])


def recorded(run: Path) -> str | None:
    """Return what `auto` may have come to in a run; None in any other, since a stranger may have written its record."""
    precision = runs.read_json(run / runs.SUMMARY).get("precision")
    return precision if precision in _OUTCOMES else None


def _is_native(node: DictConfig) -> bool:
    if on_cpu(node):  # on a Mac torch does not use those instructions
        return sys.platform != "darwin" and any(map(torch.cpu.get_capabilities().get, _INSTRUCTIONS))
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
