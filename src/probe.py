"""Judge whether a network can be trained, before training it.

python src/probe.py model=mlp model.depth=30 activation=sigmoid data=shapes
python src/probe.py -m model.depth=5,10,20,40 activation=sigmoid,tanh,relu data=shapes
"""

from __future__ import annotations

import sys

from omegaconf import DictConfig

from gradflow.config.command import command
from gradflow.sweeps import plugins


@command("probe", plugins.register)
def main(cfg: DictConfig) -> float:
    from gradflow.training import startup

    with startup.loading():
        from gradflow import runs
        from gradflow.config import build, checks
        from gradflow.diagnostics import advice, initial_probe

    data = build.data(cfg)
    checks.check(cfg)
    build.seed(cfg)
    build.model(cfg, data.spec)  # what does not fit is found before data are loaded
    startup.read_data(data)
    snapshot = initial_probe.probe_seeds(cfg, data, build.model)
    suggestions = advice.suggestions(data, snapshot, build.model) if cfg.advice else []
    initial_probe.save(cfg, data, snapshot, suggestions)
    initial_probe.show(cfg, data, snapshot, suggestions)
    if cfg.strict and snapshot["verdict"]["word"] == "FAIL" and not runs.in_sweep():
        sys.exit(3)
    return abs(snapshot["verdict"]["decades"])


if __name__ == "__main__":
    main()
