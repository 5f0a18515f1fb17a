"""Judge whether a network can be trained, before training it.

python src/probe.py model=mlp model.depth=30 activation=sigmoid data=shapes
python src/probe.py -m model.depth=5,10,20,40 activation=sigmoid,tanh,relu data=shapes
"""

from __future__ import annotations

import sys

from omegaconf import DictConfig

from gradflow.config.command import command


@command("probe")
def main(cfg: DictConfig) -> float:
    from gradflow import runs
    from gradflow.config import build
    from gradflow.training import probing

    build.seed(cfg)
    data = build.data(cfg)
    build.model(cfg, data.spec)  # what does not fit is told before data are loaded
    data.prepare_data()
    data.setup()
    look = probing.average(cfg, data)
    advice = probing.advice(data, look) if cfg.advice else []
    probing.save(cfg, data, look, advice)
    probing.show(cfg, data, look, advice)
    if cfg.strict and look["verdict"]["word"] == "FAIL" and not runs.in_sweep():
        sys.exit(3)
    return abs(look["verdict"]["decades"])


if __name__ == "__main__":
    main()
