"""Where numbers went bad is named exactly, whenever somebody looks; nothing that is bad is kept."""

from __future__ import annotations

import csv
import math
import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import NUMBERS, POINTS, inputs
from lightning import Callback, Trainer
from torch import nn

from gradflow import runs
from gradflow.data.datamodule import DataModule
from gradflow.data.sources.source import Source
from gradflow.diagnostics import nonfinite
from gradflow.diagnostics.gradient_flow import GradientFlow
from gradflow.diagnostics.layers import layers
from gradflow.diagnostics.nonfinite import INPUT, History, Place, all_finite, bad_weights, first_output
from gradflow.diagnostics.norms import norms_of
from gradflow.models.mlp import MLP
from gradflow.models.recurrent import LSTM
from gradflow.report.collect import collect
from gradflow.runs.errors import UserError
from gradflow.training import nonfinite_guard
from gradflow.training.nonfinite_guard import NonFiniteGuard

ROOT = Path(__file__).parents[2]
NAMES = ["00.block1.linear", "01.block2.linear", "02.block3.linear", "03.head"]
BATCHES = 8  # an epoch


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)


def network(spec=POINTS, norm="none"):
    torch.manual_seed(0)
    if spec.kind == "sequence":
        return LSTM(spec, hidden=4, optimizer=sgd)
    return MLP(spec, depth=3, width=6, activation="tanh", norm=norm, optimizer=sgd)


class Poison(Callback):
    """Makes numbers bad at one micro-batch of the run: in a layer's gradient, its weights or the loss."""

    def __init__(self, kind, number, layer=0, value=math.nan):
        self.kind, self.number, self.layer, self.value = kind, number, layer, value

    def hit(self, trainer, kind):
        return kind == self.kind and trainer.fit_loop.epoch_loop.batch_progress.total.ready - 1 == self.number

    def first(self, model):
        return list(layers(model).values())[self.layer][0]

    @torch.no_grad()
    def on_train_batch_start(self, trainer, model, batch, batch_idx):
        if self.hit(trainer, "weights"):
            self.first(model).view(-1)[0] = self.value
        model.added = self.value if self.hit(trainer, "loss") else 0.0

    def on_after_backward(self, trainer, model):
        if self.hit(trainer, "gradient"):
            self.first(model).grad.view(-1)[0] = self.value

    @torch.no_grad()
    def on_train_batch_end(self, trainer, model, *arguments):
        if self.hit(trainer, "update"):
            self.first(model).view(-1)[0] = self.value


def spoilt(model):
    """With a loss to which a constant is added: its gradient stays finite."""
    objective, model.added = model.objective, 0.0
    model.objective = lambda *arguments: objective(*arguments) + model.added
    return model


def data_of(spec, batches=BATCHES, bad=None):
    torch.manual_seed(1)
    x, y = inputs(spec, 4 * batches)
    if bad is not None:
        x[bad] = math.nan
    return DataModule(lambda: Source("numbers", spec, load=lambda: {"train": (x, y)}), batch_size=4)


def fit(folder, *more, wish="stop", every=50, epochs=2, spec=POINTS, norm="none", data=None, watched=None, **trainer):
    """A training of sixteen batches in two epochs; the callback, the model and how it ended."""
    folder.mkdir(exist_ok=True)
    callback, model = NonFiniteGuard(str(folder), 0, wish, every), spoilt(network(spec, norm))
    callbacks = [*([GradientFlow(str(folder), every, 0, watched)] if watched else []), callback, *more]
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    where = {"accelerator": "cpu", "default_root_dir": folder, "logger": False, "callbacks": callbacks}
    end = None
    try:
        Trainer(max_epochs=epochs, **where, **quiet, **trainer).fit(model, data or data_of(spec))
    except (runs.Diverged, runs.Pruned) as ended:
        end = ended
    return SimpleNamespace(callback=callback, model=model, found=callback.first, end=end)


@pytest.fixture
def far(monkeypatch):
    """As on a device that has to be waited for: no step tells by itself."""
    saw = History.add_gradient
    monkeypatch.setattr(nonfinite, "all_finite", lambda gradients: False)
    monkeypatch.setattr(History, "add_gradient", lambda self, step: saw(self, step) and False)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("layer", [0, 2, 3])
def test_a_gradient_is_found_in_its_step(tmp_path, layer, value):
    run = fit(tmp_path, Poison("gradient", 11, layer, value))
    assert (run.found.step, run.found.epoch, run.found.batches) == (11, 1, [3])
    assert run.found.gradients == [NAMES[layer]]
    assert math.isfinite(run.found.loss)
    assert run.found.layer == NAMES[layer]
    assert isinstance(run.end, runs.Diverged)
    assert all(parameter.isfinite().all() for parameter in run.model.parameters())  # before it was used


@pytest.mark.parametrize("every", [1, 3, 7, 1000])
@pytest.mark.parametrize("step", [0, 5, 13, 15])
def test_flags_on_a_device_name_the_same_step_at_any_later_look(tmp_path, far, every, step):
    run = fit(tmp_path, Poison("gradient", step, 2), every=every)
    assert (run.found.step, run.found.epoch, run.found.batches) == (step, *divmod_(step))
    assert run.found.gradients == [NAMES[2]]


def divmod_(step):
    return step // BATCHES, [step % BATCHES]


def test_no_step_but_those_of_the_cadence_asks_the_device(tmp_path, far, monkeypatch):
    looks = []
    read = History.read
    monkeypatch.setattr(History, "read", lambda self, *rest: looks.extend(self.losses[-1:]) or read(self, *rest))
    monkeypatch.setattr(nonfinite_guard, "EARLY", (0, 1))
    fit(tmp_path, every=6, epochs=1, data=data_of(POINTS, 16))
    assert [place.step for place, _ in looks] == [0, 1, 6, 12, 15]


@pytest.mark.parametrize("layer", range(4))
def test_weights_that_are_bad_are_found_by_their_output(tmp_path, layer):
    run = fit(tmp_path, Poison("weights", 9, layer))
    assert (run.found.step, run.found.output, run.found.layer) == (9, NAMES[layer], NAMES[layer])
    assert run.found.gradients == NAMES
    assert math.isnan(run.found.loss)
    assert f"the output of {NAMES[layer]} is not finite" in str(run.end)


def test_a_look_that_comes_late_knows_no_output(tmp_path, far, monkeypatch):
    monkeypatch.setattr(nonfinite_guard, "EARLY", ())
    run = fit(tmp_path, Poison("weights", 9, 2), every=1000)
    assert (run.found.step, run.found.output, run.found.layer) == (9, None, NAMES[0])
    assert "the gradient of 00.block1.linear to 03.head (4 layers) is not finite, the loss is nan" in str(run.end)


def test_a_recurrent_layer(tmp_path):
    name = next(iter(layers(network(NUMBERS))))
    run = fit(tmp_path, Poison("weights", 9), spec=NUMBERS)
    assert (run.found.step, run.found.output) == (9, name)
    run = fit(tmp_path, Poison("gradient", 10), spec=NUMBERS)
    assert (run.found.step, run.found.gradients) == (10, [name])
    run = fit(tmp_path, Poison("weights", 1, value=math.inf), spec=NUMBERS, epochs=1)  # its gates are merely shut
    assert (run.found.step, run.found.weights) == (BATCHES - 1, [name])


def test_a_bad_sample_is_named_with_its_batch(tmp_path):
    data = data_of(POINTS, bad=17)
    run = fit(tmp_path, data=data)
    assert (run.found.output, run.found.epoch, len(run.found.batches)) == (INPUT, 0, 1)
    x, _ = data.train_dataloader().batch(0, run.found.batches[0])
    assert x.isnan().any()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_with_a_finite_gradient_is_found_at_the_next_look(tmp_path, value):
    run = fit(tmp_path, Poison("loss", 5, value=value), every=1000)
    assert (run.found.step, run.found.epoch, run.found.batches, run.found.gradients) == (5, 0, [5], [])
    assert str(run.end) == f"step 5: the loss is {value} (epoch 0, batch 5)"


def test_accumulated_batches(tmp_path):
    words = {"accumulate_grad_batches": 3, "epochs": 2}  # steps of 3, 3 and 2 batches
    one = fit(tmp_path, Poison("loss", 12), **words).found
    assert (one.step, one.epoch, one.batches) == (4, 1, [4])
    whole = fit(tmp_path, Poison("gradient", 12, 1), **words).found  # the sum does not tell whose it was
    assert (whole.step, whole.epoch, whole.batches, whole.gradients) == (4, 1, [3, 4, 5], [NAMES[1]])
    free = fit(tmp_path, **words)
    assert free.found is None
    assert free.end is None


def test_the_loss_of_a_step_is_that_of_its_whole_batch():
    history = History({"00": []})
    for batch, loss in enumerate((1.0, 2.0, 4.0)):
        history.add_loss(Place(7, 0, batch), torch.tensor(loss / 3))
    history.gradients = [(7, ["00"], torch.tensor([math.inf]))]
    assert history.read().loss == pytest.approx(7 / 3)
    assert history.read() is None


def test_the_first_of_several_is_the_one():
    history = History({"00": [], "01": []})
    for step in range(4):
        history.add_loss(Place(step, 0, step), torch.tensor(math.nan if step == 2 else 1.0))
    history.gradients = [
        (1, ["00", "01", "01"], torch.tensor([1.0, 2.0, math.nan])),
        (2, ["00"], torch.tensor([math.nan])),
    ]
    found = history.read()
    assert (found.step, found.gradients, found.loss) == (1, ["01"], 1.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_quick_question_and_the_norms_agree_with_a_slow_look(dtype):
    largest = torch.finfo(dtype).max if dtype is not torch.float64 else 1e150
    for value in (largest, -largest, torch.finfo(dtype).tiny, 0.0, math.nan, math.inf, -math.inf):
        gradients = [torch.ones(3, 2, dtype=dtype), torch.full((5,), value, dtype=dtype)]
        before = [gradient.clone() for gradient in gradients]
        slow = [bool(gradient.isfinite().all()) for gradient in gradients]
        assert all_finite(gradients) == all(slow)
        assert norms_of(gradients, torch.float64).isfinite().tolist() == slow
        assert all(torch.equal(a, b) for a, b in zip(gradients, before, strict=True) if math.isfinite(value))


def test_looking_for_an_output_leaves_no_trace():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    found = layers(net)
    x = torch.randn(8, 3)
    before, drawn = {name: value.clone() for name, value in net.state_dict().items()}, torch.get_rng_state()
    assert first_output(net, found, x) is None
    with torch.no_grad():
        net[3].bias[0] = math.inf
    assert first_output(net, found, x) == "02.3"
    assert bad_weights(found) == ["02.3"]
    assert torch.equal(drawn, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items() if name != "3.bias")
    assert not any(module._forward_hooks for module in net.modules())


def test_infinite_gradients_are_how_a_scale_is_found(tmp_path):
    class Searching(Callback):
        def on_fit_start(self, trainer, model):
            trainer.callbacks[0].searching = True

        def on_before_optimizer_step(self, trainer, model, optimizer):  # as the scaler would
            for parameter in model.parameters():
                parameter.grad.nan_to_num_(0, 0, 0)

    assert fit(tmp_path, Searching(), Poison("gradient", 4, 1, math.inf), epochs=1).found is None
    assert fit(tmp_path, Searching(), Poison("loss", 4), epochs=1).found.step == 4


def weights(run):
    return torch.cat([parameter.detach().flatten() for parameter in run.model.parameters()])


def test_a_skipped_step_changes_nothing_and_is_counted(tmp_path):
    class Forgotten(Callback):
        """The slow reference: the step is taken, and all that it did put back."""

        def on_train_batch_start(self, trainer, model, batch, batch_idx):
            self.model = {name: value.clone() for name, value in model.state_dict().items()}
            self.momenta = [state["momentum_buffer"].clone() for state in trainer.optimizers[0].state.values()]

        @torch.no_grad()
        def on_train_batch_end(self, trainer, model, *arguments):
            if trainer.global_step - 1 in (6, 9):
                for name, parameter in model.named_parameters():
                    parameter.copy_(self.model[name])
                for state, kept in zip(trainer.optimizers[0].state.values(), self.momenta, strict=True):
                    state["momentum_buffer"].copy_(kept)

    poisons = Poison("gradient", 6, 1), Poison("gradient", 9, 2, math.inf)
    run = fit(tmp_path, *poisons, wish="skip")
    assert (run.end, run.callback.skipped, run.found.step) == (None, 2, 6)
    assert torch.equal(weights(run), weights(fit(tmp_path, Forgotten())))
    assert not torch.equal(weights(run), weights(fit(tmp_path)))
    assert run.callback.state_dict()["skipped"] == 2
    assert runs.read_json(tmp_path / runs.NONFINITE) == {}  # the last run found nothing in this folder


def test_running_statistics_keep_nothing_of_a_skipped_step(tmp_path):
    run = fit(tmp_path, wish="skip", norm="batch", data=data_of(POINTS, bad=5))
    assert run.callback.skipped == 2  # one of eight batches, in two epochs
    kept = dict(run.model.named_buffers())
    assert all(buffer.isfinite().all() for buffer in kept.values())
    assert kept["net.block1.norm.num_batches_tracked"] == 14


def test_skipping_clips_nothing_and_is_no_alarm(tmp_path, capsys):
    run = fit(tmp_path, Poison("gradient", 8, 1), wish="skip", every=4, watched="stop", gradient_clip_val=0.1)
    assert run.callback.skipped == 1
    assert weights(run).isfinite().all()
    assert run.model.trainer.global_step == 16
    said = capsys.readouterr().out
    assert said.count("not finite") == 1
    assert "step 8: the gradient of 01.block2.linear is not finite" in said


@pytest.mark.parametrize(("watched", "steps", "ended"), [("warn", 16, None), ("prune", 9, None), (None, 16, None)])
def test_logged_only_it_is_an_alarm_like_others_and_told_once(tmp_path, capsys, watched, steps, ended):
    run = fit(tmp_path, Poison("weights", 8, 1), wish="log", every=4, watched=watched)
    assert run.end is ended
    assert run.model.trainer.global_step == steps
    assert capsys.readouterr().out.count("not finite") == 1
    assert runs.read_json(tmp_path / runs.NONFINITE)["step"] == 8


def test_an_alarm_that_prunes_prunes(tmp_path):
    run = fit(tmp_path, Poison("gradient", 5, 1), watched="prune")
    assert isinstance(run.end, runs.Pruned)
    assert str(run.end).startswith("step 5: the gradient of 01.block2.linear")


@pytest.mark.parametrize("kind", ["update", "gradient", "loss"])
def test_a_checkpoint_is_never_written_over_with_what_is_bad(tmp_path, far, monkeypatch, kind):
    monkeypatch.setattr(nonfinite_guard, "EARLY", ())

    class Saving(Callback):
        def on_train_batch_end(self, trainer, model, *arguments):
            if trainer.global_step % 2 == 0:
                trainer.save_checkpoint(tmp_path / "kept.ckpt")

    run = fit(tmp_path, Poison(kind, 5, 1), Saving(), every=1000)
    kept = torch.load(tmp_path / "kept.ckpt", weights_only=True)
    assert kept["global_step"] == 4
    assert all(value.isfinite().all() for value in kept["state_dict"].values())
    assert run.found.step == 5
    assert run.found.weights == ([NAMES[1]] if kind == "update" else [])


def test_before_weights_alone_are_saved_they_are_looked_at(tmp_path):
    """Lightning tells callbacks nothing of such a checkpoint."""
    run = fit(tmp_path, Poison("update", BATCHES - 1, 3), epochs=1)
    assert run.found.weights == [NAMES[3]]
    assert "the weights of 03.head are not finite (epoch 0, batch 7)" in str(run.end)


@pytest.mark.parametrize("words", [{"on_nonfinite": "panic"}, {"every_n_steps": 0}])
def test_impossible_wishes(tmp_path, words):
    with pytest.raises(UserError, match=f"{next(iter(words))}={next(iter(words.values()))}: expected"):
        NonFiniteGuard(str(tmp_path), 0, **words)


WORDS = (
    *("data=shapes", "data.size=16", "model=mlp", "model.depth=4", "optimizer=sgd", "optimizer.lr=1e5", "test=false"),
    *("logger=none", "callbacks.progress=null", "trainer.max_epochs=1", "callbacks.gradient_flow.probes=0"),
)


def test_a_command_that_diverges_says_where_and_its_commands_lead_there(trained, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        trained(*WORDS)
    assert ended.value.code == 1
    (run,) = tmp_path.glob("runs/*/*")
    error, again, replay = capsys.readouterr().err.splitlines()
    assert error.startswith("error: step 2: the output of ")
    found, facts = runs.read_json(run / runs.NONFINITE), runs.read_json(run / runs.SUMMARY)
    assert (facts["status"], facts["error"]) == ("failed", f"Diverged: {found['sentence']}")
    assert error == f"error: {found['sentence']}"
    assert (run / "gradients.png").is_file()  # the pictures show what led to it

    program, *words = shlex.split(again.partition(": ")[2])[1:]
    trained(*words, program=Path(program).stem)
    held = torch.load(run / runs.BATCH, weights_only=True)
    assert (held["epoch"], held["batches"], held["x"].shape) == (0, [2], (128, 3, 16, 16))
    assert "batch 2" in capsys.readouterr().out
    assert (run / runs.BATCH_IMAGE).is_file()

    with pytest.raises(SystemExit):
        trained(*shlex.split(replay.rpartition(": ")[2])[2:])
    (other,) = set(tmp_path.glob("runs/*/*")) - {run}
    assert {**runs.read_json(other / runs.NONFINITE), "commands": 0} == {**found, "commands": 0}


def launch(folder, script, *words):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), *words]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


SPOILT = """
import sys, torch
sys.path.insert(0, {source!r})
from gradflow.data.loader import Loader
from gradflow.models.mlp import MLP
import train
objective, batch = MLP.objective, Loader.batch
def spoilt(self, *arguments):
    bad = self.trainer.global_rank == 1 and self.trainer.global_step == 3
    return objective(self, *arguments) + (torch.nan if bad else 0.0)
def spoilt_batch(self, epoch, index):
    x, y = batch(self, epoch, index)
    return (x * torch.nan if self.rank == 1 and index == 3 else x), y
if {kind!r} == "loss":
    MLP.objective = spoilt
else:
    Loader.batch = spoilt_batch
train.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "told"), [("loss", "the loss is nan"), ("batch", "the input is not finite")])
def test_ranks_end_together_for_what_one_has_met(tmp_path, kind, told):
    """Of a loss with a gradient that is finite no other rank would know, nor of a slice of the batch."""
    script = tmp_path / "spoilt.py"
    script.write_text(SPOILT.format(source=str(ROOT / "src"), kind=kind))
    done = launch(tmp_path, script, *WORDS[:5], *WORDS[6:], "trainer=ddp_cpu", "hydra.run.dir=run")
    assert done.returncode == 1, done.stderr
    assert done.stderr.count(f"error: step 3: {told}") == 1
    assert done.stderr.count("not finite") + done.stderr.count("is nan") == (2 if kind == "batch" else 1)
    assert "Traceback" not in done.stderr
    assert runs.read_json(tmp_path / "run" / runs.SUMMARY)["status"] == "failed"


@pytest.mark.slow
@pytest.mark.parametrize("wish", ["stop", "skip"])
def test_two_ranks_find_what_one_finds(tmp_path, wish):
    for trainer in ("cpu", "ddp_cpu"):
        words = (*WORDS, f"trainer={trainer}", f"hydra.run.dir={trainer}", f"on_nonfinite={wish}")
        done = launch(tmp_path, ROOT / "src" / "train.py", *words)
        assert done.returncode == (1 if wish == "stop" else 0), done.stderr
        assert (done.stdout + done.stderr).count("step 2: ") == 1
    one, two = (runs.read_json(tmp_path / name / runs.NONFINITE) for name in ("cpu", "ddp_cpu"))
    assert {**one, "commands": 0} == {**two, "commands": 0}
    skipped = [runs.read_json(tmp_path / name / runs.SUMMARY).get("skipped") for name in ("cpu", "ddp_cpu")]
    assert skipped == ([None, None] if wish == "stop" else [68, 68])


@pytest.mark.slow
def test_in_a_sweep_a_run_that_diverges_is_a_result(tmp_path):
    words = ("-m", *WORDS, "optimizer.lr=0.01,1e5", "hydra.sweep.dir=sweep", "hydra.launcher.jobs=1")
    done = launch(tmp_path, ROOT / "src" / "train.py", *(word for word in words if word != "optimizer.lr=1e5"))
    assert done.returncode == 0, done.stderr
    facts = [runs.read_json(tmp_path / "sweep" / number / runs.SUMMARY) for number in "01"]
    assert [fact["status"] for fact in facts] == ["finished", "pruned"]
    assert facts[1]["reason"].startswith("step 2: ")
    assert [run.status for run in collect([tmp_path / "sweep"]).runs] == ["finished", "diverged"]
    with (tmp_path / "sweep" / runs.JOBS).open(newline="") as file:
        assert [job["error"] for job in csv.DictReader(file)] == ["", facts[1]["reason"]]
