"""What Hydra calls after the last job of a sweep, in the process that was started: its result, or a phase diagram."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from gradflow import runs


class WriteReport(Callback):
    """The result on the screen, and one page on all runs of the sweep; `report=false` leaves the page out."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        if not any(folder.glob(f"*/{runs.SUMMARY}")):
            return
        from gradflow.report.collect import collect
        from gradflow.sweeps import sweep_result

        collection = collect([folder])
        sweep_result.print_result(collection)
        if config.report:
            from gradflow.report.page import write_page

            sweep_result.print_page(write_page(collection, folder))


class DrawPhaseDiagram(Callback):
    """Of a sweep of probes: a line a job, and a picture of where networks can be trained."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        from gradflow.plots.phase import phase_diagram, varied

        folder = Path(config.hydra.sweep.dir)
        files = sorted(folder.glob(f"*/{runs.PROBE}"), key=lambda path: int(path.parent.name))
        probes = [runs.read_json(path) for path in files]
        if not probes:
            return
        keys = varied([probe["words"] for probe in probes])
        for probe in probes:
            verdict, decades = probe["verdict"]["word"], probe["verdict"]["decades"]
            overrides = " ".join(one for one in probe["words"] if one.partition("=")[0] in keys)
            ratio = "no finite number" if decades is None else f"log₁₀ gradient ratio = {decades:5.1f}"
            print(f"{verdict:<8} {ratio}  {overrides}")
        picture = folder / runs.PHASE
        if phase_diagram(probes, keys, picture):
            print(f"picture {os.path.relpath(picture)}")
