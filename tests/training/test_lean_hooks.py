"""Hooks that are called directly: the same ones, in the same order, under the same names, as Lightning calls them."""

from __future__ import annotations

import gc
import os
import weakref

import pytest
import torch
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loops import training_epoch_loop
from lightning.pytorch.profilers import SimpleProfiler
from lightning.pytorch.trainer import call
from lightning.pytorch.trainer.connectors.data_connector import _DataHookSelector

from gradflow.training import lean_hooks

HOOKS = [name for name in vars(Callback) if name.startswith("on_") and "checkpoint" not in name and "exc" not in name]


class Batches:
    """Three batches; of a list Lightning would think as of three loaders."""

    def __len__(self):
        return 3

    def __iter__(self):
        return iter(torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0)))


class Net(LightningModule):
    def __init__(self, seen):
        super().__init__()
        self.net, self.seen = torch.nn.Linear(2, 1), seen

    def training_step(self, batch, batch_idx):
        self.seen.append(("model", self._current_fx_name))
        loss = self.net(batch).square().mean()
        self.log("loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val", self.net(batch).sum())

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.log("end", outputs["loss"])

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), 0.1)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


def recorder(number, names, seen):
    def method(name):
        def hook(self, trainer, pl_module, *rest):
            seen.append((number, name, pl_module._current_fx_name, len(rest)))

        return hook

    return type(f"Recorder{number}", (Callback,), {name: method(name) for name in names})()


def train(folder, direct, profiler=None):
    """Return what was seen, what was logged, and the weights."""
    torch.manual_seed(0)
    seen: list = []
    watchers = [recorder(0, HOOKS, seen), Callback(), recorder(1, HOOKS[::2], seen), ModelCheckpoint(folder)]
    off = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(max_epochs=2, callbacks=watchers, default_root_dir=folder, profiler=profiler, **off)
    if direct:
        lean_hooks.install(trainer)
    model = Net(seen)
    trainer.fit(model, Batches(), Batches())
    return seen, trainer.logged_metrics, model.net.weight.detach()


@pytest.fixture(autouse=True)
def _lightning_as_it_was(monkeypatch):
    for name in ("_call_callback_hooks", "_call_lightning_module_hook", "_call_strategy_hook"):
        monkeypatch.setattr(call, name, lean_hooks._theirs.get(name, getattr(call, name)))
    monkeypatch.setattr(training_epoch_loop, "is_param_in_hook_signature", lean_hooks._signature)
    monkeypatch.setattr(_DataHookSelector, "get_instance", lean_hooks._chosen)
    monkeypatch.setenv("PYTORCH_NVML_BASED_CUDA_CHECK", "1")


def test_the_same_hooks_in_the_same_order(tmp_path):
    (theirs, logged, weight), (ours, ours_logged, ours_weight) = (train(tmp_path / str(d), d) for d in (False, True))
    assert len(theirs) > 100
    assert ours == theirs
    assert ours_logged == logged
    assert torch.equal(ours_weight, weight)


def test_a_profiler_sees_all(tmp_path):
    profiler = SimpleProfiler()
    seen, *_ = train(tmp_path, True, profiler)
    assert seen == train(tmp_path, False)[0]
    assert len(profiler.recorded_durations["[LightningModule]Net.on_train_batch_end"]) == 6


def test_no_step_loads_the_library_of_another_device(tmp_path):
    train(tmp_path, True)
    assert "PYTORCH_NVML_BASED_CUDA_CHECK" not in os.environ


def test_a_signature_keeps_no_model():
    net = Net([])
    kept = weakref.ref(net)
    assert lean_hooks._takes(net.training_step, "batch_idx")
    assert not lean_hooks._takes(net.training_step, "dataloader_iter")
    del net
    gc.collect()
    assert kept() is None


@pytest.mark.filterwarnings("ignore:You have overridden")
@pytest.mark.parametrize("mover", ["data", "model"])
def test_a_batch_is_moved_by_whoever_has_a_hook_for_it(tmp_path, mover):
    """Asked once a fit, not once a process: the next one may be of another model or other data."""
    moved = []

    def move(self, batch, dataloader_idx):
        moved.append(type(self).__name__)
        return batch

    own = {"on_before_batch_transfer": move}
    every = {f"{part}_dataloader": lambda self: Batches() for part in ("train", "val")}
    net = type("Model", (Net,), own if mover == "model" else {})([])
    data = type("Data", (LightningDataModule,), every | (own if mover == "data" else {}))
    trainer = Trainer(
        max_epochs=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        enable_checkpointing=False,
        default_root_dir=tmp_path,
    )
    lean_hooks.install(trainer)
    trainer.fit(net, datamodule=data())
    assert moved == [mover.capitalize()] * 8  # two batches before training, three of training and three of validation
