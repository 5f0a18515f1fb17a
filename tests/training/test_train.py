"""Whole runs, as a user makes them."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import OPTIONS, RGB
from hydra.utils import get_class
from lightning import Callback
from omegaconf import OmegaConf
from torch.utils._python_dispatch import TorchDispatchMode

from gradflow import runs
from gradflow.config.options import of_group
from gradflow.report import configurations, results
from gradflow.report.collect import collect
from gradflow.runs import metric_direction
from gradflow.runs.errors import UserError
from gradflow.runs.locks import LOCK
from gradflow.tasks.task import task_of
from gradflow.training.per_batch_seed import PerBatchSeed
from gradflow.training.summary import planned_steps

QUIET = ("logger=none", "callbacks.progress=null")
TINY = {
    "mlp": ("model.width=8",),
    "cnn": ("model.channels=[4,4]", "model.dense=8"),
    "bn_cnn": ("model.channels=[4,4]", "model.dense=8"),
    "resnet": ("model.depth=8", "model.width=4"),
    "densenet": ("model.depth=7", "model.growth=4"),
    "rnn": ("model.hidden=8",),
    "lstm": ("model.hidden=8",),
    "gru": ("model.hidden=8",),
    "fcn": ("model.width=4",),
}
SMALL = ("data=shapes", "data.size=16", "debug=fast")
SMALL_DATA = (  # of which each model gets the first that it takes
    SMALL,
    ("data=shape_masks", *SMALL[1:]),
    ("data=temporal_order", "data.length=10", "debug=fast"),
    ("data=markov", "data.length=10", "debug=fast"),
    ("data=regression", "data.points=100", "data.batch_size=10", "debug=fast"),
    ("data=adding", "data.length=10", "debug=fast"),
)
SPECS = {}  # of the data that overrides choose
FITS = {
    "shapes": set(TINY) - {"fcn"},
    "shape_masks": {"fcn"},
    "markov": {"rnn", "lstm", "gru"},
    "sequential_cifar10": {"mlp", "rnn", "lstm", "gru"},
    "adding": {"mlp", "rnn", "lstm", "gru"},
    "copy_memory": {"mlp", "rnn", "lstm", "gru"},
    "temporal_order": {"mlp", "rnn", "lstm", "gru"},
    "regression": {"mlp"},
}


def class_of(model: str):
    option = OmegaConf.load(of_group("model")[model])
    return get_class(option.get("_target_") or option.model._target_)


@pytest.fixture
def spec_of(composed):
    """Return the spec of the data that overrides choose, each built once."""
    from gradflow.config import build

    def made(*words):
        if words not in SPECS:
            SPECS[words] = build.data(composed(*words)).spec
        return SPECS[words]

    return made


def marked(models):
    """Of the models that one file defines the first is for every day, the others for `make test-all`."""
    first = {class_of(model).__module__: model for model in reversed(models)}
    return [pytest.param(one, marks=() if one in first.values() else pytest.mark.slow) for one in models]


@pytest.mark.parametrize("model", marked(OPTIONS["model"]))
def test_train_checkpoint_score_reload(trained, spec_of, model):
    """Checkpoints hold plain data: each model trains, is tested, is scored again, and reloads by itself."""
    words = next(words for words in SMALL_DATA if class_of(model).takes(spec_of(*words)))
    wanted = spec_of(*words)
    run = trained(f"model={model}", *TINY.get(model, ()), *words, *QUIET)
    summary = runs.read_json(run / runs.SUMMARY)
    assert summary["status"] == "finished"
    assert summary["steps"] == summary["planned_steps"] == 3
    assert summary["tested"] == "best.ckpt"
    trained(f"run={run}", "accelerator=cpu", program="eval")
    scored = runs.read_json(run / runs.SCORES)["best on test"]
    assert set(scored) == {
        "loss/test",
        f"{task_of(wanted).metric}/test",
    }  # over the whole split

    held = torch.load(run / runs.BEST, weights_only=True)
    assert held["hyper_parameters"]["spec"] == asdict(wanted)
    reloaded = class_of(model).load_from_checkpoint(run / runs.BEST, weights_only=True)
    for name, value in reloaded.state_dict().items():
        assert torch.equal(value, held["state_dict"][name])


@pytest.mark.slow
def test_every_model_meets_every_kind_of_data(composed):
    from gradflow.config import build

    specs = {data: build.data(composed(f"data={data}")).spec for data in FITS}
    for model in OPTIONS["model"]:
        cfg = composed(f"model={model}", *TINY.get(model, ()))
        for data, spec in specs.items():
            fits = model in FITS[data] if model in TINY else class_of(model).takes(spec)  # TINY: those we know
            if fits:
                assert build.model(cfg, spec).spec == spec
                continue
            with pytest.raises(UserError, match=r"^\w+ (takes|has|sees) .*; for these data choose model=") as caught:
                build.model(cfg, spec)
            offered = set(str(caught.value).rpartition("model=")[2].split(" or "))
            assert offered & set(TINY) == FITS[data], (model, data)


@pytest.mark.parametrize(
    ("limits", "planned"),
    [
        ({}, 30),
        ({"accumulate_grad_batches": 4}, 9),
        ({"limit_train_batches": 0.5}, 15),
        ({"limit_train_batches": 4}, 12),
        ({"limit_train_batches": 40}, 30),
        ({"max_steps": 7}, 7),
        ({"max_epochs": -1, "max_steps": 7}, 7),
        ({"max_epochs": -1}, None),
    ],
)
def test_how_many_steps_a_run_takes(limits, planned):
    known = {"max_epochs": 3, "max_steps": -1, "limit_train_batches": 1.0, "accumulate_grad_batches": 1}
    data = SimpleNamespace(loader=lambda split, training: range(10))
    assert planned_steps(SimpleNamespace(**known | limits), data) == planned


def test_what_a_run_leaves(trained):
    run = trained("model=mlp", *SMALL, *QUIET, "seed=0")
    left = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    expected = {runs.METRICS, runs.GRADIENTS, runs.FLOW, runs.SUMMARY, runs.BEST, runs.LAST, LOCK}
    expected |= {"gradients.png", runs.DEPTH, "updates.png"}
    expected |= {"updates.csv", "gradients.layout.json", "updates.layout.json"}
    expected |= {".hydra/config.yaml", ".hydra/hydra.yaml", ".hydra/overrides.yaml"}
    assert left - {runs.CHANGES} == expected  # which are there while somebody works on the code
    summary = json.loads((run / runs.SUMMARY).read_text())
    assert summary["choices"]["model"] == "mlp"
    assert summary["overrides"][0] == "model=mlp"
    samples = {"train": 9000, "test": 2000, "val": 1000}
    trivial = summary["data"].pop("trivial")
    assert summary["data"] == {"name": "shapes", "samples": samples, "memory": "in the host's memory"}
    assert (trivial["accuracy/val"], trivial["loss/val"]) == (0.1, pytest.approx(2.302585))
    names, rows = runs.read_table(run / runs.METRICS)
    assert [row[0] for row in rows] == [0, 1, 2, 3]  # three steps, and the test after them
    assert summary["steps_per_epoch"] == 3
    told = {name for name in names if not name.startswith(("grad/", "update/", "flow/", "act/", "alarm/"))}
    assert told == {"step", "lr", "accuracy/train"} | {
        f"{metric}/{split}" for metric in ("loss", "accuracy") for split in ("train", "val", "test")
    }


def last_weights(run):
    return torch.load(run / runs.LAST, weights_only=True)["state_dict"]


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_is_a_function_of_its_seed_and_zero_is_one(trained):
    words = ("model=mlp", "model.dropout=0.2", *SMALL, *QUIET, "test=false", "data.crop=2", "data.flip=true")
    first, again, other = (last_weights(trained(*words, f"seed={seed}")) for seed in (0, 0, 1))
    assert same(first, again)
    assert not same(first, other)


def test_resuming_at_the_end_of_an_epoch_equals_no_interruption(trained):
    words = ("model=mlp", *SMALL, *QUIET, "test=false", "optimizer=momentum", "scheduler=inverse_time")
    whole = trained(*words, "trainer.max_epochs=3")
    half = trained(*words, "trainer.max_epochs=2")
    before, file = last_weights(half), f"{half}/checkpoints/last.ckpt"
    assert not same(last_weights(whole), before)
    anew = trained(*words, "trainer.max_epochs=3", f"resume={file}")  # of a file: in a folder of its own
    assert same(last_weights(half), before)
    resumed = trained(*words, "trainer.max_epochs=3", f"resume={half}")
    assert len({whole, half, anew}) == 3
    assert resumed == half
    assert same(last_weights(whole), last_weights(resumed))
    assert same(last_weights(whole), last_weights(anew))
    assert torch.load(half / runs.PREVIOUS, weights_only=True)["global_step"] == 6


def test_a_resumed_run_remembers_its_best_weights(trained):
    words = ("model=mlp", *SMALL, *QUIET, "test=false")
    first = trained(*words, "trainer.max_epochs=1", "model.loss=mse")
    best = torch.load(first / runs.BEST, weights_only=True)["state_dict"]
    score = runs.read_json(first / runs.SUMMARY)["best"]["loss/val"]
    worse = "model.loss=cross_entropy"  # on a larger scale, so that the second epoch can't be better
    resumed = trained(*words, worse, "trainer.max_epochs=2", f"resume={first}/{runs.LAST}")
    assert runs.read_json(resumed / runs.SUMMARY)["final"]["loss/val"] > score
    assert runs.read_json(resumed / runs.SUMMARY)["best"] == {"loss/val": score}
    assert same(torch.load(resumed / runs.BEST, weights_only=True)["state_dict"], best)


@pytest.mark.slow
def test_the_best_checkpoint_is_the_one_with_the_best_of_what_it_monitors(trained):
    """Of an accuracy the highest: Lightning's default is the lowest of any metric."""
    words = ("model=mlp", "data=shapes", "data.size=16", *QUIET, "trainer.limit_train_batches=20", "data.crop=0")
    run = trained(*words, "optimizer.lr=3e-3", "trainer.max_epochs=3", "callbacks.best.monitor=accuracy/val")
    names, rows = runs.read_table(run / runs.METRICS)
    seen = [row[names.index("accuracy/val")] for row in rows if row[names.index("accuracy/val")] >= 0]
    assert seen[0] < max(seen)
    facts = runs.read_json(run / runs.SUMMARY)
    assert facts["best"] == {"accuracy/val": pytest.approx(max(seen), abs=1e-6)}
    best = torch.load(run / runs.BEST, weights_only=True)["state_dict"]
    assert same(best, last_weights(run)) == (seen[-1] == max(seen))


WRONG = "+metrics.wrong={_target_: torchmetrics.classification.MulticlassHammingDistance, average: micro}"
STOPPER = "+callbacks.stop={_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: %s}"


@pytest.mark.parametrize(
    ("metric", "mode", "chosen"),
    [
        ("accuracy/val", "max", ()),
        ("loss/val", "min", ()),
        ("accuracy/train", "max", ()),
        ("f1/train", "max", ("metrics=[f1]",)),
        ("wrong/val", "min", (WRONG,)),
    ],
)
def test_every_monitor_takes_its_mode_from_the_metric(composed, metric, mode, chosen):
    from gradflow.config import build

    cfg = composed("data=shapes", *chosen, f"callbacks.best.monitor={metric}", STOPPER % metric)
    made = build.callbacks(cfg, build.model(cfg, RGB))
    modes = {type(one).__name__: one.mode for one in made if hasattr(one, "monitor")}
    assert modes == {"Best": mode, "EarlyStopping": mode}


def test_a_mode_that_contradicts_its_metric_is_refused(composed):
    from gradflow.config import build

    cfg = composed("data=shapes", "callbacks.best.monitor=accuracy/val", "+callbacks.best.mode=min")
    with pytest.raises(UserError, match=r"callbacks\.best\.mode=min: a higher accuracy/val is better; leave callbacks"):
        build.callbacks(cfg, build.model(cfg, RGB))


def test_a_direction_that_no_one_knows_must_be_given():
    with pytest.raises(
        UserError, match=r"hydra\.sweeper\.direction=… must be given, minimize or maximize: which way foo/"
    ):
        metric_direction.mode("hydra.sweeper.direction", None, "foo/val", None, ("minimize", "maximize"))
    assert metric_direction.mode("k", "max", "foo/val", None) == "max"


def test_a_metric_of_a_strangers_is_everywhere_by_being_chosen(trained):
    """In the tables, in the summary, as a monitor, and in the report: lower is better, as its class says."""
    words = ("model=mlp", *SMALL, *QUIET, "trainer.limit_train_batches=4", "trainer.max_epochs=2", "metrics=[accuracy]")
    made = [trained(*words, WRONG, "callbacks.best.monitor=wrong/val", f"optimizer.lr={lr}") for lr in ("1e-3", "1e-5")]
    for run in made:
        names, rows = runs.read_table(run / runs.METRICS)
        for split in ("train", "val"):
            wrong, right = ([row[names.index(f"{name}/{split}")] for row in rows] for name in ("wrong", "accuracy"))
            seen = [(one, other) for one, other in zip(wrong, right, strict=True) if one >= 0]
            assert len(seen) == 2
            assert all(one == pytest.approx(1 - other, abs=1e-6) for one, other in seen)
            if split == "val":
                best = min(one for one, _ in seen)
        facts = runs.read_json(run / runs.SUMMARY)
        assert facts["directions"] == {"loss": "min", "accuracy": "max", "wrong": "min"}
        assert facts["best"] == {"wrong/val": pytest.approx(best, abs=1e-6)}
        assert facts["test"]["wrong/test"] == pytest.approx(1 - facts["test"]["accuracy/test"], abs=1e-6)
    found = collect([made[0].parent]).runs
    assert configurations.ranking_metric(found) == "wrong/val best"
    groups = configurations.ranked(configurations.configurations(found), "wrong/val best")
    means = [group.score("wrong/val best").mean for group in groups]
    assert means == sorted(means)
    assert means[0] < means[1]
    table = results.results(groups)
    assert table.hints["wrong/test"] == "less is better"
    assert {"accuracy/test", "wrong/test", "loss/test"} <= set(table.rows[0])


def resumed_in_the_middle(trained, *more):
    """Last weights of a run, and of one that was interrupted and resumed."""
    words = ("model=mlp", *SMALL, *QUIET, "test=false", "trainer.limit_train_batches=6", "trainer.max_epochs=-1")
    words += ("data.crop=2", "data.flip=true", *more)
    whole = trained(*words, "trainer.max_steps=11")
    part = trained(*words, "trainer.max_steps=4")
    resumed = trained(*words, "trainer.max_steps=11", f"resume={part}")
    return last_weights(whole), last_weights(resumed)


@pytest.mark.parametrize("accumulate", [pytest.param(1, marks=pytest.mark.slow), 2])
@pytest.mark.parametrize("dropout", [pytest.param(0.0, marks=pytest.mark.slow), 0.3])
def test_resuming_in_the_middle_of_an_epoch_equals_no_interruption(trained, accumulate, dropout):
    more = (f"trainer.accumulate_grad_batches={accumulate}", f"model.dropout={dropout}")
    assert same(*resumed_in_the_middle(trained, *more))


def test_without_its_callback_dropout_is_another_in_a_resumed_run(trained):
    assert not same(*resumed_in_the_middle(trained, "model.dropout=0.3", "callbacks.per_batch_seed=null"))


def test_a_run_shorter_than_an_epoch_has_a_best_checkpoint(trained):
    run = trained("model=mlp", "data=shapes", "data.size=16", *QUIET, "trainer.max_steps=2")
    assert same(torch.load(run / runs.BEST, weights_only=True)["state_dict"], last_weights(run))
    assert runs.read_json(run / runs.SUMMARY)["tested"] == "best.ckpt"


def test_a_diverged_run_says_so_and_leaves_valid_json(trained, capsys):
    words = ("data=regression", "data.points=200", "optimizer=sgd", "optimizer.lr=1e30", "on_nonfinite=log", *QUIET)
    run = trained(*words, "trainer.max_epochs=2")
    screen = capsys.readouterr().out
    assert "the run diverged" in screen
    assert "nan" in next(line for line in screen.splitlines() if line.strip().startswith("loss"))
    summary = json.loads(
        (run / runs.SUMMARY).read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON")
    )
    assert summary["final"]["loss/val"] is None


class Waits(TorchDispatchMode):
    """Counts what would wait for a device, step by step."""

    def __init__(self):
        super().__init__()
        self.steps = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default and self.steps:
            self.steps[-1] += 1
        return function(*args, **(kwargs or {}))


class Steps(Callback):
    def __init__(self, waits):
        self.waits = waits

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.waits.steps.append(0)


def test_a_step_that_logs_nothing_waits_for_nothing(trained, monkeypatch):
    from gradflow.config import build

    waits, plain = Waits(), build.callbacks
    monkeypatch.setattr(build, "callbacks", lambda *made_of: [*plain(*made_of), Steps(waits)])
    cadence = (
        "trainer.log_every_n_steps=6",
        "callbacks.gradient_flow.every_n_steps=6",
        "trainer.limit_train_batches=10",
        "trainer.max_epochs=2",  # what the first epoch logs at its end must not be asked for in the second
    )
    with waits:
        trained("model=mlp", *SMALL, *cadence, "logger=none", "optimizer=sgd", "test=false")
    logged = {0, 5, 6, 11, 12, 17, 18, 19} | {9}  # validation and the checkpoints follow step 9
    assert len(waits.steps) == 20
    assert [step for step, count in enumerate(waits.steps) if count and step not in logged] == []
    assert waits.steps[5] > 0


def test_without_validation_best_is_last(trained):
    run = trained("model=mlp", *SMALL, *QUIET, "data.val=0")
    assert same(torch.load(run / runs.BEST, weights_only=True)["state_dict"], last_weights(run))
    assert runs.read_json(run / runs.SUMMARY)["best"] == {}


def test_two_runs_never_share_a_folder(trained):
    words = ("data=regression", "debug=fast", "logger=none", "callbacks=none")
    assert len({trained(*words, "test=false") for _ in range(2)}) == 2


def test_loss_is_logged_without_the_penalty(trained):
    first = []
    for l2 in (0.0, 10.0):
        run = trained("data=regression", "debug=fast", *QUIET, f"model.l2={l2}", "test=false")
        names, rows = runs.read_table(run / runs.METRICS)
        first.append(dict(zip(names, rows[0], strict=True)))
    assert first[0]["loss/train"] == first[1]["loss/train"]
    assert first[1]["grad/norm"] == first[0]["grad/norm"]
    assert first[1]["grad/norm_with_penalty"] > 2 * first[0]["grad/norm"]


def test_every_augmentation_trains(trained):
    words = (
        "data.crop=2",
        "data.alternating_flip=true",
        "data.cutout=4",
        "data.mixup=0.3",
        "model.label_smoothing=0.1",
    )
    run = trained("model=resnet", "model.depth=8", "model.width=4", *SMALL, *QUIET, *words)
    assert runs.read_json(run / runs.SUMMARY)["status"] == "finished"


@pytest.mark.parametrize("option", ["adding", "copy_memory", "temporal_order"])
def test_a_fixed_set_is_learnt_by_heart(trained, option):
    """A few samples, the same in each epoch: the loss of an over-sized network goes down, that on new ones does not."""
    words = ("data.length=10", "data.samples=32", "data.batch_size=32", "data.fresh=false", "data.val=64")
    words += ("trainer.max_epochs=60", "trainer.check_val_every_n_epoch=60", "test=false")
    run = trained("model=mlp", f"data={option}", *words, "logger=none", "callbacks=none")
    final = runs.read_json(run / runs.SUMMARY)["final"]
    assert final["loss/train"] < 0.1 * final["loss/val"]


def apart(callbacks: str, option: str):
    """The pairs of which each option is in one are enough by default: a logger asks no callback, but for pictures."""
    quick = callbacks == "default" or option == "csv"
    return pytest.param(callbacks, option, marks=[] if quick else [pytest.mark.slow])


@pytest.mark.parametrize(
    ("callbacks", "option"), [apart(*pair) for pair in product(OPTIONS["callbacks"], OPTIONS["logger"])]
)
def test_each_logger_with_each_set_of_callbacks(trained, option, callbacks, monkeypatch, tmp_path):
    """The record on disk is there in any case; the rest as chosen."""
    if option == "trackio":
        monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # which it reads when it is imported
        pytest.importorskip("trackio")
    mode = ["logger.mode=offline"] if option == "wandb" else []
    run = trained("data=regression", "debug=fast", f"logger={option}", f"callbacks={callbacks}", *mode)
    assert (run / runs.METRICS).is_file()
    assert (run / runs.GRADIENTS).is_file() == (callbacks not in ("minimal", "none"))
    assert (run / runs.BEST).is_file() == (callbacks != "none")
    assert any(run.glob("wandb/offline-run-*")) == (option == "wandb")
    assert any(run.glob("tensorboard/events*")) == (option == "tensorboard")


def test_the_screen_at_the_end(trained, capsys):
    run = trained(
        "model=lstm", "model.hidden=8", "activation=tanh", "data=adding", "data.length=10", "debug=fast", *QUIET
    )
    screen = capsys.readouterr().out
    told = "note: activation=tanh has no effect: nothing in the configuration of model=lstm refers to it"
    assert screen.splitlines().count(told) == 1
    assert screen.index("00.layer1") < screen.index("01.head")
    for words in ("mse", "run folder", run.name, "try next", "seed=0,1,2"):
        assert words in screen


@pytest.mark.parametrize("callbacks", OPTIONS["callbacks"])
def test_diagnostics_that_no_callback_takes_have_no_effect(trained, capsys, callbacks):
    run = trained("data=regression", "debug=fast", "+diagnostics=snr", f"callbacks={callbacks}", "logger=none")
    told = "note: +diagnostics=snr has no effect: none of the callbacks measures; add callbacks=default"
    assert capsys.readouterr().out.splitlines().count(told) == (not (run / "snr.csv").is_file())


def test_overfit_learns_one_batch_by_heart(trained):
    words = ("model=mlp", "data=shapes", "data.size=16", "debug=overfit", "logger=none", "callbacks=none")
    run = trained(*words, "test=false")
    assert runs.read_json(run / runs.SUMMARY)["final"]["accuracy/train"] == 1


def test_each_batch_has_a_seed_of_its_own_numbers():
    """The seeds are those of every version: dropout in a run that is resumed has the masks that it would have had."""
    for number in (0, 1, 63, 64, 1000):
        expected = int(np.random.SeedSequence([3, 1, number]).generate_state(1)[0])
        progress = SimpleNamespace(total=SimpleNamespace(ready=number))
        loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
        model = SimpleNamespace(device=torch.device("cpu"))
        PerBatchSeed(3).on_train_batch_start(SimpleNamespace(fit_loop=loop, global_rank=1), model, None, 0)
        assert torch.initial_seed() == expected


@pytest.mark.slow
def test_a_profiler_writes_into_the_run_folder(trained, capsys):
    run = trained("model=mlp", "data=regression", "debug=fast", *QUIET, "+trainer.profiler=simple")
    assert "FIT Profiler Report" in (run / "fit-profile.txt").read_text(encoding="utf-8")
    assert "*-profile.txt in the run folder" in capsys.readouterr().out
