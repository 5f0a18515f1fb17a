"""Make a training batch of a run again: the one whose numbers stopped being finite, or any other.

python src/replay.py run=runs/2026-01-31/12-00-00-mlp-shapes
python src/replay.py run=… epoch=3 batch=17
"""

from __future__ import annotations

from omegaconf import DictConfig

from gradflow.config.command import command
from gradflow.runs.errors import UserError
from gradflow.sweeps import plugins


@command("replay", plugins.register)
def main(cfg: DictConfig) -> None:
    """The address is that of the run's nonfinite.json unless it is given; the data are those of its own overrides."""
    from gradflow.training import startup

    with startup.loading():
        from gradflow import runs
        from gradflow.config import build, checks, previous_runs
        from gradflow.training import replay

    run, trained = previous_runs.finished_run(cfg)
    nonfinite = runs.read_json(run / runs.NONFINITE)
    epoch, batches = replay.address(cfg, nonfinite)
    data = build.data(trained)
    checks.check(trained)
    build.seed(trained)
    data.attach(build.trainer(trained, [], []))
    startup.read_data(data)
    loader = data.loader("train", training=True)
    if max(batches) >= len(loader):
        raise UserError(f"batch={max(batches)}: an epoch has {len(loader)} batches, the first is 0")
    batch = replay.joined([loader.batch(epoch, index) for index in batches])
    replay.save_batch(run, trained.seed, epoch, batches, batch)
    replay.print_batch(run, nonfinite.get("sentence"), epoch, batches, batch)


if __name__ == "__main__":
    main()
