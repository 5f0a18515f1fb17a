"""Train a run again, or make one of its batches again: the one whose numbers stopped being finite, or any other.

python src/replay.py runs/2026-01-31/12-00-00-mlp-shapes
python src/replay.py run=runs/2026-01-31/12-00-00-mlp-shapes
python src/replay.py run=… epoch=3 batch=17
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from hydra.errors import HydraException
from omegaconf import DictConfig

from gradflow.config.command import command, report_error
from gradflow.config.trust import check_recorded, check_run
from gradflow.runs import folder, provenance
from gradflow.runs.errors import UserError
from gradflow.runs.overrides import initial_resume, key, of_run
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
    startup.read_data(data, build.trainer(trained, [], []))
    loader = data.loader("train", training=True)
    if max(batches) >= len(loader):
        raise UserError(f"batch={max(batches)}: an epoch has {len(loader)} batches, the first is 0")
    batch = replay.joined([loader.batch(epoch, index) for index in batches])
    replay.save_batch(run, trained.seed, epoch, batches, batch)
    replay.print_batch(run, nonfinite.get("sentence"), epoch, batches, batch)


def train_again(name: str, arguments: list[str]) -> None:
    """Start the run's own command in a new folder, after a word on what is another today."""
    try:
        run = folder.find(name)
        sys.argv = [str(Path(__file__).with_name("train.py")), *repeated(run, arguments)]
        print(f"replay of {name}: {'; '.join(provenance.differences(run)) or 'the same code and packages as then'}")
    except (UserError, HydraException) as error:
        report_error(error)
    runpy.run_path(sys.argv[0], run_name="__main__")


def repeated(run: Path, arguments: list[str]) -> list[str]:
    """Return a run's overrides, with `arguments` in the place of their like; what a stranger added is rejected."""
    check_run(run)
    replaced = set(map(key, arguments))
    recorded = [*of_run(folder.recorded_overrides(run)), *initial_resume(run)]
    return arguments + check_recorded([one for one in recorded if key(one) not in replaced])


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1][0] != "-" and ("=" not in sys.argv[1] or Path(sys.argv[1]).is_dir()):
        train_again(sys.argv[1], sys.argv[2:])
    else:
        main()
