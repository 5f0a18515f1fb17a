"""Gradient by depth and by time, and what hides it: lines over the blocks of a network, from the probe's snapshots.

A snapshot is a line of `flow.jsonl`, with its `step` and, where there is one, `theory`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from gradflow.plots.curves import FLOOR, Line, Panel, relative, sheet, start_and_end
from gradflow.plots.theme import save

_Snapshot = Mapping[str, Any]
_USUAL = (1e-4, 1e-2)  # ‖ΔW‖ / ‖W‖ of trainings that go well


def depth_profile(snapshots: Sequence[_Snapshot], path: Path) -> bool:
    """Draw ‖∂L/∂h‖ by depth at the start and the end; return False where there is nothing to draw."""
    names = snapshots[0]["trunk"]
    x = f"block l (1: {names[0]}, {len(names)}: {names[-1]})"
    return _profile(snapshots, "gradient", "gradient by depth", x, "‖∂L/∂h_l‖ / ‖∂L/∂h_L‖", path)


def time_profile(snapshots: Sequence[_Snapshot], path: Path) -> bool:
    """Draw ‖∂L/∂x_t‖ by time step, at the input of the first recurrent layer."""
    x = f"time step t (the loss is at step {len(snapshots[0].get('time') or [])})"
    return _profile(snapshots, "time", "gradient through time", x, "‖∂L/∂x_t‖ / ‖∂L/∂x_T‖", path)


def _profile(snapshots: Sequence[_Snapshot], key: str, title: str, x: str, y: str, path: Path) -> bool:
    if len(snapshots[0].get(key) or []) < 2:
        return False
    ends = [snapshots[0], snapshots[-1]] if len(snapshots) > 1 else snapshots
    panel = Panel(f"{title}: {log_ratios(ends, key)}", x, y, start_and_end(ends, key), "profile")
    save(partial(sheet, [panel]), path)
    return True


def log_ratios(snapshots: Sequence[_Snapshot], key: str) -> str:
    """Return the log10 gradient ratio, first over last place, of each snapshot."""
    ratios = [relative(snapshot[key])[0] for snapshot in snapshots]
    texts = [f"{np.log10(ratio):+.1f}" if ratio > FLOOR else "zero or not finite" for ratio in ratios]
    return f"log10 ratio {' → '.join(texts)}"


def update_profile(snapshots: Sequence[_Snapshot], path: Path) -> bool:
    """Draw ‖ΔW‖ / ‖W‖ by layer at three steps, with the band in which training usually goes well."""
    known = [snapshot for snapshot in snapshots if snapshot.get("updates")]
    if not known:
        return False
    names = list(known[0]["updates"])
    shown = [known[index] for index in sorted({0, len(known) // 2, len(known) - 1})]
    x = np.arange(1, len(names) + 1)
    lines = [_line(f"step {one['step']}", x, one["updates"].values(), slot) for slot, one in enumerate(shown)]
    label = f"layer (1: {names[0]}, {len(names)}: {names[-1]})"
    panel = Panel("change of each layer in one step (shaded: usual)", label, "‖ΔW‖ / ‖W‖", lines, "log")

    def draw() -> Figure:
        figure = sheet([panel])
        axes, (low, high) = figure.axes[0], figure.axes[0].get_ylim()
        axes.axhspan(*_USUAL, color="#009E73", alpha=0.12, lw=0)
        axes.set_ylim(min(low, _USUAL[0] / 2), max(high, _USUAL[1] * 2))
        return figure

    save(draw, path)
    return True


def weight_gradient_profile(snapshot: _Snapshot, path: Path) -> bool:
    """Draw ‖∂L/∂W‖ beside ‖∂L/∂h‖: the former may be level while the latter vanishes."""
    weights = snapshot["weights"].values()
    if len(snapshot["gradient"]) < 2 or len(weights) < 2:
        return False
    norms = {
        "‖∂L/∂h_l‖: what reaches the block": snapshot["gradient"],
        "‖∂L/∂W_l‖: what is usually logged": weights,
        "rms of h_l: the forward signal": snapshot["rms"],
    }
    profiles = enumerate(norms.items())
    lines = [_line(label, np.linspace(0, 1, len(y)), relative(y), slot) for slot, (label, y) in profiles]
    x, y = "depth (0: first, 1: last)", "relative to the last one"
    save(partial(sheet, [Panel("gradients of the weights may hide a vanishing gradient", x, y, lines, "log")]), path)
    return True


def _line(label: str, x: np.ndarray, norms: Iterable[float | None], slot: int) -> Line:
    return Line(label, x, np.maximum(np.array([*norms], float), 1e-12), slot)  # of None nan
