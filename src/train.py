"""Train one network, test it, and show where its gradient went.

python src/train.py model=resnet optimizer=rmsprop data=shapes
python src/train.py --help
"""

from __future__ import annotations

from functools import partial

from omegaconf import DictConfig

from gradflow.config.command import command
from gradflow.sweeps import plugins


@command("train", plugins.register)
def main(cfg: DictConfig) -> float | None:
    """Imports stand inside, so that --help, --cfg and wrong arguments are answered at once."""
    from gradflow.training import signals, startup

    signals.listen()
    with startup.loading():
        from gradflow import runs
        from gradflow.config import build, checks, no_effect, previous_runs
        from gradflow.diagnostics import advice, gradient_flow, initial_probe
        from gradflow.sweeps import prune
        from gradflow.training import checkpoints, end_screen, lean_hooks, start_screen, summary, wandb_logger

    data = build.data(cfg)
    checks.check(cfg)
    build.seed(cfg)
    model = build.model(cfg, data.spec)
    loggers = build.loggers(cfg)
    trainer = build.trainer(cfg, build.callbacks(cfg, model) + prune.callbacks(cfg), loggers)
    lean_hooks.install(trainer)
    start = previous_runs.start(cfg, model)
    startup.read_data(data, trainer)
    checks.check_batch_limits(cfg, trainer, data)
    model.adapt(data.training_inputs)
    build.reseed_rank(cfg, trainer)
    facts = summary.before(cfg, trainer, data, model)
    start_screen.print_start(cfg, trainer, data, model, facts, no_effect.notes(cfg))

    end = end_screen.print_end(cfg, trainer, model, partial(advice.cure, data, build.model))
    pictures = gradient_flow.pictures_last(trainer)
    record = runs.Run(cfg.run_dir, facts, writes=trainer.is_global_zero)
    with pictures, end, record as run, wandb_logger.ended(loggers, run):
        summary.log_choices(cfg, trainer)
        if cfg.probe:
            run.note(probe=initial_probe.before_training(cfg, data, model, trainer))
        trainer.fit(model, data, ckpt_path=start, weights_only=True)
        run.note(**summary.after(trainer))
        summary.prune(trainer)
        if cfg.test and data.has("test"):
            run.note(**checkpoints.test_best(trainer, model, data))
    return next(iter(run.facts.get("best", {}).values()), None)  # of the metric that callbacks.best monitors


if __name__ == "__main__":
    main()
