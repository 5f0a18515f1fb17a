"""When torch.compile is chosen, and that trying it leaves no trace."""

from __future__ import annotations

import signal
import time
from types import SimpleNamespace

import pytest
import torch
from conftest import RGB, inputs
from torch import nn

from gradflow.models import compile_trial
from gradflow.models.cnn import BNCNN


@pytest.fixture
def model(monkeypatch) -> BNCNN:
    """A model that trains for 100,000 steps; compiling is replaced by a backend that compiles nothing."""
    torch.manual_seed(0)
    model = BNCNN(RGB, channels=(4,), dense=8, dropout=0.5)
    plugin = SimpleNamespace(forward_context=torch.enable_grad, convert_input=lambda x: x)
    batch = inputs(RGB)
    model._trainer = SimpleNamespace(
        world_size=1,
        is_global_zero=True,
        estimated_stepping_batches=100_000,
        accumulate_grad_batches=1,
        callbacks=[],
        precision_plugin=plugin,
        train_dataloader=SimpleNamespace(batch=lambda epoch, index: batch),
    )
    monkeypatch.setattr(BNCNN, "compile", lambda self: nn.Module.compile(self, backend="eager"))
    monkeypatch.setattr(BNCNN, "device", torch.device("cpu"))
    monkeypatch.setattr(compile_trial, "missing_compiler", lambda cpu: None)
    model.compiles = "auto"
    return model


def settled(model: BNCNN, monkeypatch, capsys, eager: float, compiled: float | Exception, trial: float = 0.0) -> str:
    """Return what is said where steps take so long."""

    def measured(model, trainer, compiled: bool) -> float:
        if compiled and isinstance(seconds[True], Exception):
            raise seconds[True]
        clock.append(trial if compiled else 0.0)
        return seconds[compiled]

    clock, seconds = [0.0], {False: eager, True: compiled}
    monkeypatch.setattr(compile_trial, "_seconds_a_step", measured)
    monkeypatch.setattr(compile_trial.time, "monotonic", lambda: clock[-1])
    compile_trial.settle(model)
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("eager", "compiled", "trial", "told"),
    [
        (0.1, 0.05, 60.0, "compile: yes, a step takes 0.05 s with and 0.1 s without; the trial took 60 s"),
        (0.1, 0.096, 60.0, "compile: no, a step takes 0.096 s with"),  # noise
        (0.1, 1.4, 60.0, "compile: no, a step takes 1.4 s with"),
        (0.007, 0.0065, 34.0, "compile: no, a step takes 0.0065 s with"),  # 50 s are saved, and 68 spent
        (0.005, 0.001, 0.0, "compile: no, the training takes about 8 min without, too short to try"),
        (0.1, ValueError("no\nkernel"), 0.0, "compile: no, the trial failed with ValueError: no kernel"),
    ],
)
def test_it_is_chosen_where_it_saves_more_than_it_costs(model, monkeypatch, capsys, eager, compiled, trial, told):
    assert settled(model, monkeypatch, capsys, eager, compiled, trial).startswith(told)
    assert model.compiles is ("yes" in told)
    assert (model._compiled_call_impl is not None) is ("yes" in told)


def test_a_run_that_goes_on_does_as_before(model, monkeypatch, capsys):
    saved: dict = {}
    for known in (False, True):
        model.compiles = known
        model.on_save_checkpoint(saved)
        model.compiles = "auto"
        model.on_load_checkpoint(saved)
        told = settled(model, monkeypatch, capsys, 1.0, 9.0)
        assert told == f"compile: {'yes' if known else 'no'}, as in the run that goes on\n"
        assert (model._compiled_call_impl is not None) is known


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"world_size": 2}, "it is not tried on several devices; trainer.compile=true compiles there"),
        ({"compiler": "g++"}, "it needs a compiler, g++, and none is on the PATH"),
        ({"alarm": None}, "it is not tried on this system or outside of the main thread"),
    ],
)
def test_where_it_is_not_tried(model, monkeypatch, capsys, change, told):
    model._trainer.world_size = change.get("world_size", 1)
    if "compiler" in change:
        monkeypatch.setattr(
            compile_trial, "missing_compiler", lambda cpu: "needs a compiler, g++, and none is on the PATH"
        )
    if "alarm" in change:
        monkeypatch.delattr(signal, "SIGALRM")
    assert settled(model, monkeypatch, capsys, 1.0, 0.1).startswith(f"compile: no, {told}")


def test_a_trial_that_takes_too_long_is_ended(model, monkeypatch, capsys):
    before = signal.getsignal(signal.SIGALRM)
    monkeypatch.setattr(compile_trial, "_SHORTEST", 0.0)
    monkeypatch.setattr(compile_trial, "_LONGEST", 0.1)
    monkeypatch.setattr(compile_trial, "_seconds_a_step", lambda *_, compiled: time.sleep(20) if compiled else 1.0)
    compile_trial.settle(model)
    assert capsys.readouterr().out == "compile: no, the trial was not over after 0 s\n"
    assert signal.getsignal(signal.SIGALRM) == before
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_a_trial_leaves_no_trace(model, monkeypatch, capsys):
    """Neither in weights and running statistics nor in the random numbers that dropout takes."""
    monkeypatch.setattr(compile_trial, "_SHORTEST", 0.0)
    monkeypatch.setattr(compile_trial, "_GAIN", 1.0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    compile_trial.settle(model)
    assert capsys.readouterr().out.startswith("compile: no, a step takes")
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert model._compiled_call_impl is None
