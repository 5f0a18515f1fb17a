"""What only a CUDA device can show."""

from __future__ import annotations

import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning import Callback

from gradflow import runs
from gradflow.data.cache import cached, write
from gradflow.data.datamodule import DataModule
from gradflow.data.sources import cifar10

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]
SHORT = ("data=shapes", "trainer=gpu", "logger=none", "callbacks.progress=null", "trainer.max_epochs=1")


SMALL = (*SHORT, "data.size=16", "model=mlp", "model.depth=2", "model.width=32", "test=false")


def norms(run):
    _, rows = runs.read_table(run / runs.GRADIENTS)
    return torch.tensor(rows)[:, 1:]


@pytest.mark.parametrize("fused", ["false", "true"])
@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_mixed_precision_logs_the_unscaled_gradient(trained, precision, fused):
    words = (*SHORT, "model=mlp", "trainer.limit_train_batches=1", "test=false")
    full = norms(trained(*words))
    mixed = norms(trained(*words, f"trainer.precision={precision}", f"optimizer.fused={fused}"))
    torch.testing.assert_close(mixed, full, rtol=0.05, atol=0)


def test_the_fast_paths_are_as_the_plain_one(trained):
    words = (*SHORT, "model=resnet", "model.depth=8", "trainer.limit_train_batches=5", "test=false")
    words += ("optimizer=momentum", "optimizer.lr=0.003", "trainer.gradient_clip_val=1.0")
    plain = trained(*words, "optimizer.fused=false", "trainer.channels_last=false")
    try:
        fast = trained(*words, "trainer.precision=auto", "trainer.compile=auto", "trainer.tf32=true")
    finally:
        torch.set_float32_matmul_precision("highest")
    assert runs.read_json(fast / runs.SUMMARY)["precision"] == "bf16-mixed"
    torch.testing.assert_close(norms(fast), norms(plain), rtol=0.2, atol=0)


def test_clipping_works_with_16_bit_gradients(trained):
    run = trained(
        *SHORT,
        "model=mlp",
        "trainer.limit_train_batches=3",
        "trainer.precision=16-mixed",
        "trainer.gradient_clip_val=0.1",
    )
    names, rows = runs.read_table(run / runs.METRICS)
    first = dict(zip(names, rows[0], strict=True))
    assert first["grad/clip_coef"] == pytest.approx(0.1 / first["grad/norm"], rel=1e-4)


def test_the_same_batches_as_on_the_cpu(trained):
    words = (*SHORT, "model=mlp", "trainer.limit_train_batches=5", "data.crop=4", "data.flip=true", "test=false")
    on_gpu = norms(trained(*words))
    on_cpu = norms(trained(*words, "trainer=cpu"))
    torch.testing.assert_close(on_gpu, on_cpu, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("model", ["resnet", "densenet", "bn_cnn", "lstm"])
def test_compiled_bf16_channels_last_trains_and_its_checkpoint_scores_on_the_cpu(trained, model):
    extra = ("trainer.compile=true",) if model != "lstm" else ()
    words = (*SHORT, f"model={model}", "trainer.limit_train_batches=10", "trainer.precision=bf16-mixed", *extra)
    run = trained(*words)
    tested = runs.read_json(run / runs.SUMMARY)["test"]["accuracy/test"]
    trained(f"run={run}", "accelerator=cpu", program="eval")
    scored = runs.read_json(run / runs.SCORES)["best on test"]["accuracy/test"]
    assert scored == pytest.approx(tested, abs=0.02)  # bf16 against float32


class NoWaiting(Callback):
    """Raises when anything in a step that logs nothing waits for the device."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        logs = trainer.global_step in (0, 9, 18, 19)  # gradients at 0, 9, 18 and the last; the loss at 9 and 19
        torch.cuda.set_sync_debug_mode("default" if logs else "error")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("chosen", [(), ("metrics=[accuracy,top5,f1]",)])
def test_a_step_that_logs_nothing_never_waits_for_the_device(trained, monkeypatch, chosen):
    from gradflow.config import build

    plain = build.callbacks
    monkeypatch.setattr(build, "callbacks", lambda *made_of: [*plain(*made_of), NoWaiting()])
    words = (
        "trainer.log_every_n_steps=10",
        "callbacks.gradient_flow.every_n_steps=9",
        "trainer.limit_train_batches=20",
    )
    run = trained(*SHORT, "model=resnet", *words, *chosen)
    assert runs.read_json(run / runs.SUMMARY)["steps"] == 20


class Kept(Callback):
    """The weights after each optimizer step."""

    def __init__(self):
        self.seen = []

    def on_train_start(self, trainer, pl_module):
        self.keep(pl_module)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.keep(pl_module)

    def keep(self, model):
        self.seen.append({n: p.detach().double().cpu() for n, p in model.named_parameters() if p.ndim > 1})


@pytest.mark.parametrize("fused", ["false", "true"])
@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed", "32-true"])
def test_update_ratios_are_those_of_the_weights(trained, monkeypatch, precision, fused):
    """Also at steps that the search for a scale leaves out, where nothing moves."""
    from gradflow.config import build

    kept, plain = Kept(), build.callbacks
    monkeypatch.setattr(build, "callbacks", lambda *made_of: [*plain(*made_of), kept])
    words = ("trainer.limit_train_batches=5", "callbacks.gradient_flow.every_n_steps=1")
    run = trained(*SMALL, *words, f"trainer.precision={precision}", f"optimizer.fused={fused}")
    names, rows = runs.read_table(run / runs.METRICS)
    steps = {int(row[0]): dict(zip(names, row, strict=True)) for row in rows}
    for step in range(5):
        before, after = kept.seen[step : step + 2]
        ratios = sorted(((after[name] - old).norm() / old.norm()).item() for name, old in before.items())
        told = [steps[step][f"update/ratio_{kind}"] for kind in ("min", "median", "max")]
        assert told == pytest.approx([ratios[0], ratios[len(ratios) // 2], ratios[-1]], rel=1e-4, abs=1e-12)


@pytest.mark.parametrize("fused", ["false", "true"])
def test_looks_under_mixed_precision_are_those_in_full(trained, fused):
    """A look is in float32, whatever the training is in, and it changes nothing."""
    words = ("trainer.limit_train_batches=1", f"optimizer.fused={fused}")
    full, mixed = (
        runs.read_lines(trained(*SMALL, *words, f"trainer.precision={precision}") / runs.FLOW)[0]
        for precision in ("32-true", "16-mixed")
    )
    assert mixed["gradient"] == pytest.approx(full["gradient"], rel=1e-4)
    assert mixed["verdict"]["decades"] == pytest.approx(full["verdict"]["decades"], abs=1e-3)


def test_an_infinite_gradient_in_the_search_for_a_scale_is_no_alarm(trained):
    run = trained(*SMALL, "trainer.limit_train_batches=4", "trainer.precision=16-mixed", "optimizer.lr=1e-3")
    assert "nonfinite" not in runs.read_json(run / runs.SUMMARY)["alarms"]


def test_a_look_before_the_first_step(trained):
    """The data are on the device by then."""
    run = trained(*SMALL, "trainer.limit_train_batches=1", "probe=true")
    facts = runs.read_json(run / runs.SUMMARY)
    assert facts["probe"]["decades"] == pytest.approx(facts["verdict"]["start"]["decades"], abs=1e-2)


@pytest.mark.parametrize("model", ["mlp", "resnet", "lstm"])
def test_a_look_leaves_no_trace_on_the_device(model):
    from conftest import NUMBERS, RGB, inputs

    from gradflow.diagnostics.probe import probe, trunk_of
    from gradflow.diagnostics.subject import own_loss
    from gradflow.models.mlp import MLP
    from gradflow.models.recurrent import LSTM
    from gradflow.models.resnet import ResNet

    torch.manual_seed(0)
    made = {
        "mlp": lambda: (MLP(RGB, depth=3, width=16, norm="batch", dropout=0.5), RGB),
        "resnet": lambda: (ResNet(RGB, depth=8, width=4), RGB),
        "lstm": lambda: (LSTM(NUMBERS, layers=2, hidden=8, dropout=0.3), NUMBERS),
    }
    net, spec = made[model]()
    x, y = (tensor.cuda() for tensor in inputs(spec, 8))
    net.cuda()
    net(x)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.cuda.get_rng_state()
    for dtype in (torch.float64, torch.float32):
        probe(net, (x, y), own_loss, trunk_of(net), dtype)
    assert torch.equal(torch.cuda.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


class FewWaits(Callback):
    """Counts what waits for the device in each step, from torch's warnings."""

    def __init__(self):
        self.counts = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.caught = warnings.catch_warnings(record=True)
        self.seen = self.caught.__enter__()
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        torch.cuda.set_sync_debug_mode("default")
        self.counts.append(sum("synchronizing CUDA operation" in str(one.message) for one in self.seen))
        self.caught.__exit__(None, None, None)


def test_a_logged_step_waits_once(trained, monkeypatch):
    """Between two steps that log and are not looked at, and the same run without a watcher: one wait more."""
    from gradflow.config import build

    plain, counts = build.callbacks, []
    words = ("trainer.log_every_n_steps=100", "trainer.limit_train_batches=20", "optimizer=sgd")
    for watched in (True, False):
        few = FewWaits()

        def callbacks(*made_of, few=few, watched=watched):
            kept = [one for one in plain(*made_of) if watched or type(one).__name__ != "GradientFlow"]
            return [*kept, few]  # the last one: its end of a step is after the watcher's

        monkeypatch.setattr(build, "callbacks", callbacks)
        trained(*SMALL, *words, "callbacks.gradient_flow.probes=0", "callbacks.gradient_flow.every_n_steps=6")
        counts.append(few.counts)
    logged = {0, 1, 2, 4, 8, 16} | {0, 6, 12, 18} | {19}
    more = [with_it - without for with_it, without in zip(*counts, strict=True)]
    assert [step for step, count in enumerate(more) if count > 0] == sorted(logged)
    assert max(more) == 1


@pytest.mark.parametrize("memory", ["device", "host", "mapped"])
def test_each_memory_gives_the_batches_of_the_cpu(tmp_path, memory):
    """Two epochs of training batches, cut, mirrored, with a hole, mixed; and the validation."""
    place = cifar10.places(tmp_path)
    for split, count in (("train", 300), ("test", 50)):
        images = np.random.default_rng(0).integers(0, 256, (count, 3, 32, 32), np.uint8)
        cached(place[split], partial(write, shape=images.shape, images=[images], labels=np.arange(count) % 10))

    def ready(device: str, memory: str) -> DataModule:
        options = {"val": 0.2, "crop": 4, "flip": True, "cutout": 8, "mixup": 0.3, "memory": memory}
        data = DataModule(cifar10.cifar10, 64, root=str(tmp_path), cache=str(tmp_path), **options)
        strategy = SimpleNamespace(root_device=torch.device(device))
        data.trainer = SimpleNamespace(strategy=strategy, world_size=1, global_rank=0, current_epoch=0)
        data.prepare_data()
        data.setup()
        return data

    here, there = ready("cpu", "host"), ready("cuda:0", memory)
    assert there.splits["train"].x.device.type == ("cuda" if memory == "device" else "cpu")
    for training, split in ((True, "train"), (False, "val"), (False, "test")):
        one, other = here.loader(split, training), there.loader(split, training)
        for epoch in range(2):
            for index in range(len(one)):
                for expected, found in zip(one.batch(epoch, index), other.batch(epoch, index), strict=True):
                    assert found.device.type == "cuda"
                    torch.testing.assert_close(found.cpu(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("row", ["mlp", "resnet", "lstm"])
def test_a_killed_run_ends_as_if_it_had_not_been(row):
    script = Path(__file__).parents[2] / "scripts" / "crash_test.py"
    words = ["--times", "3", "--only", row, "--", "trainer=gpu", "trainer.deterministic=true"]
    done = subprocess.run([sys.executable, str(script), *words], capture_output=True, text=True, check=False)
    assert f"| {row} | 3 of 3 |" in done.stdout, done.stdout + done.stderr
