"""What only a CUDA device can show."""

from __future__ import annotations

import pytest
import torch
from lightning import Callback

from gradflow import runs

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]
SHORT = ("data=shapes", "trainer=gpu", "logger=none", "callbacks.progress=null", "trainer.max_epochs=1")


def norms(run):
    _, rows = runs.read_table(run / runs.GRADIENTS)
    return torch.tensor(rows)[:, 1:]


@pytest.mark.parametrize("fused", ["false", "true"])
@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_mixed_precision_logs_the_unscaled_gradient(trained, precision, fused):
    words = (*SHORT, "model=mlp", "trainer.limit_train_batches=1", "test=false")
    full = norms(trained(*words))
    mixed = norms(trained(*words, f"trainer.precision={precision}", f"+optimizer.fused={fused}"))
    torch.testing.assert_close(mixed, full, rtol=0.05, atol=0)


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
    extra = ("trainer.compile=true", "trainer.channels_last=true") if model != "lstm" else ()
    words = (*SHORT, f"model={model}", "trainer.limit_train_batches=10", "trainer.precision=bf16-mixed", *extra)
    run = trained(*words)
    tested = runs.read_json(run / runs.SUMMARY)["test"]["accuracy/test"]
    trained(f"run={run}", "accelerator=cpu", program="score")
    scored = runs.read_json(run / runs.SCORES)["best on test"]["accuracy/test"]
    assert scored == pytest.approx(tested, abs=0.02)  # bf16 against float32


class NoWaiting(Callback):
    """Raises when anything in a step that logs nothing waits for the device."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        logs = trainer.global_step in (0, 9, 18, 19)  # gradients at 0, 9, 18 and the last; the loss at 9 and 19
        torch.cuda.set_sync_debug_mode("default" if logs else "error")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        torch.cuda.set_sync_debug_mode("default")


def test_a_step_that_logs_nothing_never_waits_for_the_device(trained, monkeypatch):
    from gradflow import build

    plain = build.callbacks
    monkeypatch.setattr(build, "callbacks", lambda cfg: [*plain(cfg), NoWaiting()])
    words = (
        "trainer.log_every_n_steps=10",
        "callbacks.gradient_flow.every_n_steps=9",
        "trainer.limit_train_batches=20",
    )
    run = trained(*SHORT, "model=resnet", *words)
    assert runs.read_json(run / runs.SUMMARY)["steps"] == 20
