"""Evaluate a finished run on a split of its data.

python src/eval.py run=runs/2026-01-31/12-00-00-mlp-shapes
python src/eval.py run=… split=val checkpoint=last
"""

from __future__ import annotations

from omegaconf import DictConfig

from gradflow.config.command import command
from gradflow.runs.errors import UserError
from gradflow.sweeps import plugins


@command("eval", plugins.register)
def main(cfg: DictConfig) -> None:
    """Only weights are read from the checkpoint; everything else comes from conf/ and the run's recorded overrides."""
    from gradflow.training import startup

    with startup.loading():
        from gradflow import runs
        from gradflow.config import build, checks, previous_runs
        from gradflow.training import checkpoints, end_screen, progress

    run, trained = previous_runs.finished_run(cfg)
    data = build.data(trained)
    checks.check(trained)
    build.seed(trained)
    model = build.model(trained, data.spec)
    trainer = build.trainer(trained, [progress.Progress()], [])
    checkpoint = checkpoints.read_for(run / runs.CHECKPOINTS / f"{cfg.checkpoint}.ckpt", model)
    model.load_state_dict(checkpoint["state_dict"])

    startup.read_data(data, trainer)
    if not data.has(cfg.split):
        known = ", ".join(sorted(split for split, samples in data.sizes.items() if samples))
        raise UserError(f"split={cfg.split}: {data.source.name} has {known}")
    loader = data.loader(cfg.split)
    (scores,) = trainer.test(model, loader, verbose=False)
    scores = {name.replace("/test", f"/{cfg.split}"): value for name, value in scores.items()}
    end_screen.print_scores(run, cfg.checkpoint, scores)
    runs.write_json(run / runs.SCORES, runs.read_json(run / runs.SCORES) | {f"{cfg.checkpoint} on {cfg.split}": scores})


if __name__ == "__main__":
    main()
