"""What it costs to watch the gradient: our callback beside none, Lightning's `grad_norm`, and `wandb.watch`.

    python scripts/bench_flow.py           # several minutes; one thread, since two beside each other are slow

Each round trains every contender in turn, on batches of 128 that are in memory: a 20-layer MLP of width 64 on grey
images of 16×16, and a ResNet-20 on coloured ones of 32×32. The table gives medians over rounds: of the time a step
takes without a callback, and of what is added to it. `norms` computes and logs the gradient norms of all layers at
every step (the time inside it, which is less than the noise of a step); theirs is the difference to the step without.
`everything` is our callback as it is by default: the time inside it over that of a run of 10,000 steps.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import grad_norm

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from gradflow.data.datamodule import DataModule
from gradflow.data.sources.shapes import shapes
from gradflow.diagnostics.gradient_flow import GradientFlow
from gradflow.diagnostics.layers import layers
from gradflow.diagnostics.norms import gradient_norms
from gradflow.models.mlp import MLP
from gradflow.models.resnet import ResNet

BATCH, RUN = 128, 10_000  # samples; steps of the run that shares are of


class Kept(Logger):
    """A logger that costs nothing."""

    name = version = "kept"

    def log_hyperparams(self, *arguments: Any, **keywords: Any) -> None: ...

    def log_metrics(self, metrics: Any, step: int | None = None) -> None: ...


class Norms(Callback):
    """What `GradientFlow` does at each logged step, without what else it looks at."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.layers = layers(pl_module)
        self.inside: list[float] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        start = time.perf_counter()
        values = dict(zip(self.layers, gradient_norms(self.layers).tolist(), strict=True))
        for logger in trainer.loggers:
            logger.log_metrics(values, trainer.global_step)
        self.inside.append(time.perf_counter() - start)


class Theirs(Callback):
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        pl_module.log_dict(grad_norm(pl_module, norm_type=2))


class Watched(Callback):
    """`wandb.watch` at every step."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.loggers[0].watch(pl_module, log="gradients", log_freq=1)  # type: ignore[attr-defined]

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.loggers[0].experiment.unwatch(pl_module)


class Timed(GradientFlow):
    """Our callback with a watch on its hooks: `inside` holds the seconds of each kind of step."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.inside: dict[str, list[float]] = {"probe": [], "logged": [], "idle": []}
        self.spent, self.kind = 0.0, "idle"
        super().on_train_start(trainer, pl_module)

    def timed(self, hook: Callable[..., None], *arguments: Any) -> None:
        start = time.perf_counter()
        hook(*arguments)
        self.spent += time.perf_counter() - start

    def on_train_batch_start(self, trainer: Trainer, *rest: Any) -> None:
        before = self.spent
        self.timed(super().on_train_batch_start, trainer, *rest)
        if trainer.global_step == self.probed:
            self.inside["probe"].append(self.spent - before)
            self.spent = before

    def on_before_optimizer_step(self, trainer: Trainer, *rest: Any) -> None:
        self.timed(super().on_before_optimizer_step, trainer, *rest)
        self.kind = "logged" if self.pending else "idle"

    def on_train_batch_end(self, *arguments: Any) -> None:
        self.timed(super().on_train_batch_end, *arguments)
        self.inside[self.kind].append(self.spent)
        self.spent = 0.0


class Clock(Callback):
    """Seconds of each step from the tenth on."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.marks: list[float] = []

    def on_train_batch_end(self, *arguments: Any) -> None:
        self.marks.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        steps = [after - before for before, after in zip(self.marks[10:], self.marks[11:], strict=False)]
        return statistics.median(steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    quiet()
    small, large = (DataModule(shapes, BATCH, size=size, channels=channels) for size, channels in ((16, 1), (32, 3)))
    print(f"{os.cpu_count()} CPU cores, one thread, torch {torch.__version__}; batches of {BATCH}\n")
    print("| network | no callback | norms at every step | `grad_norm` + `log_dict` | `wandb.watch` | everything |")
    print("|---|---|---|---|---|---|")
    networks = {
        "20-layer MLP, width 64": (lambda: MLP(small.spec, depth=20, width=64, optimizer=sgd), 200, small),
        "ResNet-20": (lambda: ResNet(large.spec, optimizer=sgd), 25, large),
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, (make, steps, data) in networks.items():
            print(row(name, make, steps, data, Path(folder), args.rounds), flush=True)


def quiet() -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    os.environ |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 1e-3)


def row(name: str, make: Callable, steps: int, data: DataModule, folder: Path, rounds: int) -> str:
    contenders: dict[str, Callable[[], tuple[list[Callback], Logger]]] = {
        "none": lambda: ([], Kept()),
        "norms": lambda: ([Norms()], Kept()),
        "theirs": lambda: ([Theirs()], Kept()),
        "watch": lambda: ([Watched()], WandbLogger(save_dir=folder)),
    }
    times: dict[str, list[float]] = {contender: [] for contender in contenders}
    shares = []
    for _ in range(rounds):
        for contender, build in contenders.items():
            callbacks, logger = build()
            seconds = train(make(), data, steps, callbacks, logger, folder)
            inside = [statistics.median(callback.inside) for callback in callbacks if isinstance(callback, Norms)]
            times[contender].append(inside[0] + times["none"][-1] if inside else seconds)
            finish()
        shares.append(share_of(make(), data, max(steps, 130), folder, times["none"][-1]))
    base = statistics.median(times["none"])
    ratios = [statistics.median(times[contender]) / base - 1 for contender in ("norms", "theirs", "watch")]
    cells = [
        f"{base * 1e3:.1f} ms",
        *(f"{ratio:+.1%}" for ratio in ratios),
        f"{statistics.median(shares):.2%} of a run",
    ]
    return f"| {name} | {' | '.join(cells)} |"


def train(
    model: LightningModule, data: DataModule, steps: int, callbacks: list[Callback], logger: Logger, folder: Path
) -> float:
    clock = Clock()
    off = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    where: dict[str, Any] = {"accelerator": "cpu", "default_root_dir": folder, "logger": logger}
    trainer = Trainer(max_steps=steps, max_epochs=-1, callbacks=[*callbacks, clock], **where, **off)
    trainer.fit(model, train_dataloaders=loader(data), val_dataloaders=None)
    return clock.seconds


def loader(data: DataModule) -> Any:
    data.prepare_data()
    data.setup()
    return data.loader("train", training=True)


def share_of(model: LightningModule, data: DataModule, steps: int, folder: Path, step: float) -> float:
    """Time inside the callback over that of RUN steps: 20 probes, a logged step in 50, the rest idle."""
    timed = Timed(str(folder / f"run-{time.time_ns()}"))
    timed.folder.mkdir()
    train(model, data, steps, [timed], Kept(), folder)
    mean = {kind: statistics.median(found) for kind, found in timed.inside.items()}
    logged = RUN // timed.every_n_steps
    inside = timed.probes * mean["probe"] + logged * mean["logged"] + (RUN - logged) * mean["idle"]
    return inside / (RUN * step + inside)


def finish() -> None:
    if (wandb := sys.modules.get("wandb")) and wandb.run:
        wandb.finish()


if __name__ == "__main__":
    main()
