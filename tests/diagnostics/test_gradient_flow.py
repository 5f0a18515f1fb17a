"""The callback logs the gradient that the optimizer is about to use, under the right keys and at the right steps."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from conftest import POINTS, RGB, inputs
from lightning import Callback, Trainer
from lightning.pytorch.loggers import Logger
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from wandb_records import read_wandb

from gradflow import runs
from gradflow.data.datamodule import DataModule
from gradflow.data.sources.source import Source
from gradflow.diagnostics import diagnostic
from gradflow.diagnostics.alarms import KINDS
from gradflow.diagnostics.diagnostic import EARLY
from gradflow.diagnostics.gradient_flow import GradientFlow, probe_steps
from gradflow.diagnostics.layers import layers
from gradflow.diagnostics.norms import clip_coefficient, gradient_norms, total, update_ratios
from gradflow.diagnostics.probe import PROBE_SAMPLES
from gradflow.models.mlp import MLP
from gradflow.models.penalty import remaining_scale
from gradflow.models.resnet import ResNet
from gradflow.runs.errors import UserError


class Memory(Logger):
    """Keeps what it is told."""

    def __init__(self):
        super().__init__()
        self.rows, self.looks = [], []

    name = version = ""

    def log_hyperparams(self, params): ...

    def log_metrics(self, metrics, step=None):
        if any(key.startswith("grad") for key in metrics):
            self.rows.append((step, metrics))
        if any(key.startswith(("flow", "act")) for key in metrics):
            self.looks.append((step, metrics))


def points(count):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 2, generator=generator).double(), torch.randn(count, 1, generator=generator).double()


def small(**words):
    torch.manual_seed(0)
    sgd = lambda parameters: torch.optim.SGD(parameters, lr=0.1)  # noqa: E731
    return MLP(POINTS, depth=2, width=6, activation="tanh", optimizer=sgd, **words).double()


def fit(folder, steps, every_n_steps=1, max_epochs=1, probes=20, model=None, more=(), **trainer):
    """A small float64 model trained by plain gradient descent; the model, its start, and what was logged."""
    model = model or small()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    memory = Memory()
    data = DataModule(lambda: Source("points", POINTS, load=lambda: {"train": points(8 * steps)}), batch_size=8)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    callback = GradientFlow(str(folder), every_n_steps, probes, on_alarm="log")
    where = {"accelerator": "cpu", "default_root_dir": folder, "logger": memory, "callbacks": [callback, *more]}
    with patch.object(FigureCanvasAgg, "print_png"):  # pictures take longer than these trainings
        Trainer(max_epochs=max_epochs, **where, **quiet, **trainer).fit(model, data)
    model.looks = memory.looks
    return model, start, memory.rows


@pytest.mark.parametrize(
    ("steps", "every", "logged"),
    [
        (10, 3, [0, 1, 2, 3, 4, 6, 8, 9]),
        (12, 3, [0, 1, 2, 3, 4, 6, 8, 9, 11]),
        (1, 50, [0]),
        (4, 1, [0, 1, 2, 3]),
        (130, 50, [0, 1, 2, 4, 8, 16, 32, 50, 64, 100, 129]),
    ],
)
def test_early_every_nth_and_last_step(tmp_path, steps, every, logged):
    *_, rows = fit(tmp_path, steps, every)
    assert [step for step, _ in rows] == logged
    _, table = runs.read_table(tmp_path / runs.GRADIENTS)
    assert [row[0] for row in table] == logged


def test_last_step_is_known_across_epochs_and_under_accumulation(tmp_path):
    *_, rows = fit(tmp_path, 5, every_n_steps=100, max_epochs=3, accumulate_grad_batches=2)
    assert [step for step, _ in rows] == [0, 1, 2, 4, 8]  # 3 steps an epoch: two micro-batches, two, one


def test_a_step_after_the_early_ones_is_the_last_under_accumulation(tmp_path):
    *_, rows = fit(tmp_path, 5, every_n_steps=100, max_epochs=4, accumulate_grad_batches=2)
    assert [step for step, _ in rows] == [0, 1, 2, 4, 8, 11]


def test_exact_keys(tmp_path):
    model, _, rows = fit(tmp_path, 1)
    layer_keys = {"grad_norm/00.block1.linear", "grad_norm/01.block2.linear", "grad_norm/02.head"}
    ratios = {f"update/ratio_{kind}" for kind in ("median", "min", "max")}
    alarms = {f"alarm/{kind}" for kind in KINDS}
    assert set(rows[0][1]) == layer_keys | ratios | alarms | {"grad/norm", "grad/clip_coef", "grad/nonfinite"}
    flow = {"flow/decades_depth", "flow/rate_depth"}
    act = {"act/dead_max", "act/saturated_max", "act/rms_decades"}
    assert [step for step, _ in model.looks] == [0, 1]
    assert set(model.looks[0][1]) == flow | act | alarms


def test_norms_are_computed_on_logged_steps_only(tmp_path, monkeypatch):
    calls = []
    count = lambda *args: calls.append(1) or gradient_norms(*args)  # noqa: E731
    monkeypatch.setattr(diagnostic, "gradient_norms", count)
    fit(tmp_path, 20, every_n_steps=10)
    assert len(calls) == len({0, 1, 2, 4, 8, 16} | {0, 10, 19})


@pytest.mark.parametrize("accumulate", [1, 4])
def test_equals_an_independent_gradient(tmp_path, accumulate):
    model, start, rows = fit(tmp_path, accumulate, accumulate_grad_batches=accumulate)
    model.load_state_dict(start)
    x, y = points(8 * accumulate)
    loss = ((model(x) - y) ** 2).mean()
    for name, parameters in layers(model).items():
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True)
        expected = math.sqrt(sum(g.square().sum().item() for g in gradients))
        assert rows[0][1][f"grad_norm/{name}"] == pytest.approx(expected, rel=1e-10, abs=0)
    everything = torch.autograd.grad(loss, list(model.parameters()))
    assert rows[0][1]["grad/norm"] == pytest.approx(
        torch.cat([g.flatten() for g in everything]).norm().item(), rel=1e-10
    )


def test_norm_is_that_before_clipping_and_the_coefficient_is_what_clipping_applies(tmp_path):
    *_, free = fit(tmp_path, 1)
    limit = free[0][1]["grad/norm"] / 5
    model, start, clipped = fit(tmp_path, 1, gradient_clip_val=limit)
    assert free[0][1]["grad/clip_coef"] == 1
    assert clipped[0][1]["grad/norm"] == pytest.approx(free[0][1]["grad/norm"], rel=1e-12)
    assert clipped[0][1]["grad/clip_coef"] == pytest.approx(0.2, rel=1e-5)
    moved = (
        torch.cat([(model.state_dict()[k] - start[k]).flatten() for k in start if k.startswith("net")]).norm().item()
    )
    assert moved == pytest.approx(0.1 * limit, rel=1e-5)  # learning rate × clipped norm


def test_clip_coefficient_is_torchs():
    parameter = nn.Parameter(torch.zeros(3))
    for size, limit in ((5.0, 2.0), (1.0, 2.0), (2.0, 2.0)):
        parameter.grad = torch.tensor([size, 0, 0])
        nn.utils.clip_grad_norm_(parameter, limit)
        assert clip_coefficient(size, limit) * size == pytest.approx(parameter.grad.norm().item(), rel=1e-6)
    assert clip_coefficient(5.0, None) == 1


def test_what_is_not_a_number_stays_so():
    assert math.isnan(total([math.inf, math.nan]))
    assert math.isnan(clip_coefficient(math.nan, 1.0))
    assert clip_coefficient(math.inf, 1.0) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_norms_equal_a_float64_loop_over_the_same_tensors(dtype):
    model = ResNet(RGB, depth=8).to(dtype)
    x, y = inputs(RGB)
    nn.functional.cross_entropy(model(x.to(dtype)), y).backward()
    found = gradient_norms(layers(model)).tolist()
    for value, parameters in zip(found, layers(model).values(), strict=True):
        slow = math.sqrt(sum(p.grad.double().square().sum().item() for p in parameters))
        assert value == pytest.approx(slow, rel=1e-6)
    assert total(found) == pytest.approx(math.sqrt(sum(v * v for v in found)), rel=1e-12)


def test_gradients_that_float32_squares_would_lose():
    model = nn.Linear(3, 2)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-30)
    assert gradient_norms(layers(model)).item() == pytest.approx(1e-30 * math.sqrt(8), rel=1e-6, abs=0)


def test_a_layer_that_the_loss_did_not_reach_has_zero_and_the_scale_divides():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight.grad = torch.ones(2, 2)
    assert gradient_norms(layers(model), scale=torch.tensor(8.0)).tolist() == [0, 0.25]


@pytest.mark.parametrize(("fused", "expected"), [(True, 1024.0), (False, 1.0)])
def test_only_fused_optimizers_still_hold_scaled_gradients(fused, expected):
    scaler = SimpleNamespace(_get_scale_async=lambda: 1024.0)
    trainer = SimpleNamespace(precision_plugin=SimpleNamespace(scaler=scaler))
    optimizer = SimpleNamespace(_step_supports_amp_scaling=True) if fused else SimpleNamespace()
    assert remaining_scale(trainer, optimizer) == expected
    assert remaining_scale(SimpleNamespace(precision_plugin=SimpleNamespace()), optimizer) == 1


def test_impossible_cadence():
    with pytest.raises(UserError, match=r"callbacks\.gradient_flow\.every_n_steps=0"):
        GradientFlow("", 0)


def test_what_wandb_holds(trained):
    """A real offline run, read back from its file."""
    run = trained("data=regression", "debug=fast", "logger.mode=offline", "callbacks.gradient_flow.every_n_steps=2")
    history, images = read_wandb(next((run / "wandb").glob("offline-run-*/run-*.wandb")))
    logged = [row for row in history if "grad/norm" in row]
    assert [row["trainer/global_step"] for row in logged] == [0, 1, 2]
    names, table = runs.read_table(run / runs.GRADIENTS)
    for row, values in zip(logged, table, strict=True):
        assert {key: row[f"grad_norm/{key}"] for key in names[1:]} == dict(zip(names[1:], values[1:], strict=True))
    assert len(images) == 1
    (look, *_) = [row for row in history if "flow/decades_depth" in row]
    assert look["flow/decades_depth"] == runs.read_lines(run / runs.FLOW)[0]["verdict"]["decades"]
    assert (run / "gradients.png").read_bytes()[:4] == b"\x89PNG"


class Weights(Callback):
    """The weights before each batch."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append({name: value.detach().clone() for name, value in pl_module.named_parameters()})

    on_train_end = lambda self, trainer, pl_module: self.on_train_batch_start(trainer, pl_module, None, 0)  # noqa: E731


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("clip", [None, 0.01])
def test_update_ratios_equal_the_weights_before_and_after(tmp_path, accumulate, clip):
    """And the learning rate times the clipped gradient, as plain descent moves."""
    weights, known = Weights(), {"accumulate_grad_batches": accumulate, "gradient_clip_val": clip}
    _, _, rows = fit(tmp_path, 6 * accumulate, more=[weights], **known)
    looks = {look["step"]: look for look in runs.read_lines(tmp_path / runs.FLOW)}
    assert len(rows) == 6
    for step, row in rows:
        before, after = weights.seen[step * accumulate], weights.seen[(step + 1) * accumulate]
        ratios = {
            name: ((after[name] - old).norm() / old.norm()).item() for name, old in before.items() if old.ndim > 1
        }
        values = sorted(ratios.values())
        told = [row[f"update/ratio_{kind}"] for kind in ("min", "median", "max")]
        assert told == pytest.approx(values, rel=1e-6, abs=0)
        assert list(looks[step + 1]["updates"].values()) == pytest.approx(list(ratios.values()), rel=1e-6)
        if step == 0:
            head = math.sqrt(sum((after[n] - before[n]).square().sum().item() for n in before if "head" in n))
            assert head == pytest.approx(0.1 * row["grad_norm/02.head"] * row["grad/clip_coef"], rel=1e-5)


def test_update_ratios_of_weights_that_are_zero_are_not_numbers():
    old = {"a": [torch.zeros(3, 3)], "b": [torch.full((2, 2), 2.0), torch.zeros(2, 2)]}
    new = {"a": [torch.ones(3, 3)], "b": [torch.full((2, 2), 2.5), torch.full((2, 2), 1.0)]}
    found = update_ratios(old, new).tolist()
    assert math.isnan(found[0])
    assert found[1] == pytest.approx(math.sqrt(5) / 4)
    assert math.isnan(update_ratios({"a": [torch.zeros(2, 2)]}, {"a": [torch.zeros(2, 2)]}).item())


def test_frozen_layers_are_left_out_and_tied_ones_count_once(tmp_path):
    model = small()
    model.net.block1.requires_grad_(False)
    _, _, rows = fit(tmp_path, 2, model=model)
    assert {key for key in rows[0][1] if key.startswith("grad_norm")} == {
        "grad_norm/00.block2.linear",
        "grad_norm/01.head",
    }
    assert rows[0][1]["update/ratio_min"] > 0
    looks = runs.read_lines(tmp_path / runs.FLOW)
    assert [len(look["gradient"]) for look in looks] == [2, 2, 2]  # the trunk stays whole
    assert not model.net.block1.linear.weight.requires_grad


def test_tied_weights_count_for_the_first_layer(tmp_path):
    torch.manual_seed(0)
    sgd = lambda parameters: torch.optim.SGD(parameters, lr=0.1)  # noqa: E731
    model = MLP(POINTS, depth=3, width=6, activation="tanh", optimizer=sgd).double()
    model.net.block3.linear.weight = model.net.block2.linear.weight
    _, start, rows = fit(tmp_path, 1, model=model)
    model.load_state_dict(start)
    x, y = points(8)
    loss = ((model(x) - y) ** 2).mean()
    tied = torch.autograd.grad(loss, [model.net.block2.linear.weight, model.net.block2.linear.bias])
    assert rows[0][1]["grad_norm/01.block2.linear"] == pytest.approx(math.hypot(*(g.norm().item() for g in tied)))


class Sync(TorchDispatchMode):
    """Counts what would wait for a device; `tolist` of a CPU tensor passes no dispatcher."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.steps = [0]
        plain = torch.Tensor.tolist
        monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: self.add() or plain(tensor))

    def add(self):
        self.steps[-1] += 1

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default:
            self.add()
        return function(*args, **(kwargs or {}))


class Turn(Callback):
    """Starts a new count before each batch; stands before the callback that is looked at."""

    def __init__(self, sync):
        self.sync = sync

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.sync.steps.append(0)

    def on_train_end(self, trainer, pl_module):
        self.sync.steps.append(0)


def waits(folder, monkeypatch, **known):
    sync = Sync(monkeypatch)
    callbacks = [Turn(sync)]
    if known:
        callbacks.append(GradientFlow(str(folder), on_alarm="stop", **known))
    data = DataModule(lambda: Source("points", POINTS, load=lambda: {"train": points(8 * 40)}), batch_size=8)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    where = {"accelerator": "cpu", "default_root_dir": folder, "logger": Memory(), "log_every_n_steps": 1000}
    with sync, patch.object(FigureCanvasAgg, "print_png"):
        Trainer(max_epochs=1, callbacks=callbacks, gradient_clip_val=1.0, **where, **quiet).fit(small(), data)
    return sync.steps[1:-1]


def test_a_logged_step_waits_once_a_look_once_and_the_others_never(tmp_path, monkeypatch):
    without = waits(tmp_path, monkeypatch)
    logged = waits(tmp_path, monkeypatch, every_n_steps=7, probes=0)
    looked = waits(tmp_path, monkeypatch, every_n_steps=1000, probes=9)
    assert len(without) == len(logged) == len(looked) == 40
    steps = {0, 1, 2, 4, 8, 16, 32} | {7, 14, 21, 28, 35} | {39}
    assert [b - a for a, b in zip(without, logged, strict=True)] == [step in steps for step in range(40)]
    early = {0, 1, 2, 4, 8, 16, 32}
    # those that are logged, too, and the looks; the first compares with theory, which is computed on the host
    extra = [b - a for a, b in zip(without, looked, strict=True)]
    assert extra[1:] == [2 * (step in early) + (step == 39) for step in range(1, 40)]


@pytest.mark.parametrize("steps", [1, 7, 64, 100, 400, 100_000])
@pytest.mark.parametrize("probes", [1, 5, 20])
def test_moments(steps, probes):
    found = probe_steps(steps, probes)
    within = {step for step in found if step < steps}
    assert 0 in within
    assert len(found) <= probes + 1
    assert set(EARLY[:probes]) <= found
    assert probe_steps(steps, 0) == set()


def test_moments_of_a_run_without_an_end():
    found = sorted(probe_steps(math.inf, 20))
    assert found[: len(EARLY)] == list(EARLY)
    assert all(b == 2 * a for a, b in pairwise(found[1:]))


def test_looks_of_a_long_run(tmp_path):
    model, *_ = fit(tmp_path, 400, every_n_steps=50)
    looks = runs.read_lines(tmp_path / runs.FLOW)
    steps = [look["step"] for look in looks]
    assert len(steps) in range(18, 23)
    assert steps == sorted(set(steps))
    assert set(EARLY) <= set(steps)
    assert steps[-1] == 400
    assert max(b - a for a, b in pairwise(steps)) <= 400 / 10
    profile = {"loss", "trunk", "gradient", "rms", "weights", "time", "dead", "saturated", "alike", "waking"}
    assert set(looks[1]) == profile | {"step", "updates", "verdict"}
    assert [("theory" in look) for look in looks] == [True] + [False] * (len(looks) - 1)
    assert set(looks[0]["theory"]) == {"gradient", "time", "no_prediction"}
    assert looks[0]["updates"] == {}
    assert set(looks[1]["updates"]) == {"00.block1.linear", "01.block2.linear", "02.head"}
    assert [step for step, _ in model.looks] == steps
    for look, (_, told) in zip(looks, model.looks, strict=True):
        first, last = look["gradient"][0], look["gradient"][-1]
        assert told["flow/decades_depth"] == pytest.approx(math.log10(first / last), rel=1e-9)


def test_a_look_is_at_the_weights_of_its_step_on_the_same_samples(tmp_path):
    weights = Weights()
    model, *_ = fit(tmp_path, 5, more=[weights])
    x = points(40)[0].float()
    held = (torch.arange(40) * 40 // 40)[:PROBE_SAMPLES]
    for look in runs.read_lines(tmp_path / runs.FLOW):
        model.load_state_dict(weights.seen[look["step"]], strict=False)
        h = model.net.block1(x[held].double())
        assert look["rms"][0] == pytest.approx(h.square().mean().sqrt().item(), rel=1e-5)


def test_no_looks(tmp_path):
    model, *_ = fit(tmp_path, 3, probes=0)
    assert model.looks == []
    assert not (tmp_path / runs.FLOW).exists()
    assert not (tmp_path / runs.DEPTH).exists()


def test_watching_changes_nothing(tmp_path):
    """Dropout draws the same masks, whatever is looked at."""
    ends = []
    for probes in (0, 20):
        model, *_ = fit(tmp_path, 12, probes=probes, model=small(dropout=0.5))
        ends.append(model.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


@pytest.mark.parametrize(
    ("words", "there", "not_there"),
    [
        (("data=regression", "model.width=8"), [runs.DEPTH], [runs.TIME]),
        pytest.param(
            ("model=rnn", "model.hidden=8", "data=adding", "data.length=12"), [runs.TIME], [runs.DEPTH],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ("model=gru", "model.hidden=8", "model.layers=2", "data=adding", "data.length=12"),
            [runs.DEPTH, runs.TIME], [], marks=pytest.mark.pictures,
        ),
    ],
)  # fmt: skip
def test_pictures(trained, words, there, not_there):
    run = trained(*words, "debug=fast", "logger=none", "callbacks.progress=null", "test=false")
    assert all((run / name).read_bytes()[:4] == b"\x89PNG" for name in (*there, "gradients.png", "updates.png"))
    assert not any((run / name).exists() for name in not_there)
    keys = set(runs.read_table(run / runs.METRICS)[0])
    times = {"flow/decades_time", "flow/rate_time", "flow/horizon_time"}
    assert keys & times == (times if runs.TIME in there else set())
    assert ("flow/decades_depth" in keys) == (runs.DEPTH in there)


@pytest.mark.parametrize("shard", ["device_mesh", "_is_flat_param"])
def test_sharded_parameters_are_refused(tmp_path, shard):
    model = small()
    setattr(model.net.head.weight, shard, object())
    with pytest.raises(UserError, match="parameters are sharded") as refused:
        fit(tmp_path, 1, model=model)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("known", "words"),
    [
        ({"probes": -1}, r"probes=-1: expected 0 to 100,000"),
        ({"on_alarm": "shout"}, "on_alarm=shout: expected one of log"),
    ],
)
def test_impossible_wishes(known, words):
    with pytest.raises(UserError, match=words):
        GradientFlow("", **known)


ROOT = Path(__file__).parents[2]
RANKS = (
    *("data=shapes", "data.size=16", "model.width=16", "logger=none", "callbacks.progress=null", "test=false"),
    *("trainer.max_epochs=1", "trainer.limit_train_batches=6", "callbacks.gradient_flow.every_n_steps=1"),
)


def launched(folder, *words):
    """A run in processes of its own."""
    before = set(folder.glob("runs/*/*"))
    program = [sys.executable, str(ROOT / "src" / "train.py"), *RANKS, *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        program, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    (run,) = set(folder.glob("runs/*/*")) - before
    return run, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "64-true"])
def test_two_processes_see_what_one_sees(tmp_path, precision):
    (one, _), (two, _) = (
        launched(tmp_path, "model.depth=4", f"trainer={name}", f"trainer.precision={precision}")
        for name in ("cpu", "ddp_cpu")
    )
    for name in (runs.GRADIENTS, runs.METRICS):
        (names, single), (also, double) = (runs.read_table(run / name) for run in (one, two))
        assert names == also
        for row, other in zip(single, double, strict=True):
            assert other == pytest.approx(row, rel=2e-5, nan_ok=True)
    for look, other in zip(*(runs.read_lines(run / runs.FLOW) for run in (one, two)), strict=True):
        assert look["step"] == other["step"]
        assert other["gradient"] == pytest.approx(look["gradient"], rel=2e-5, abs=0)
        assert other["verdict"]["decades"] == pytest.approx(look["verdict"]["decades"], abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("wish", ["stop", "prune"])
def test_an_alarm_ends_both_processes(tmp_path, wish):
    bad = ("model.depth=20", "activation=sigmoid", "init=torch", "model.dropout=0.3", f"on_alarm={wish}")
    run, screen = launched(tmp_path, "trainer=ddp_cpu", *bad)
    facts = runs.read_json(run / runs.SUMMARY)
    assert facts["devices"] == 2
    assert facts["steps"] == 3
    assert facts["status"] == ("pruned" if wish == "prune" else "finished")
    assert screen.count("ALARM vanish") == 1


def test_a_compiled_model_is_watched_without_a_graph_break(tmp_path):
    """`fullgraph` makes torch raise at the first one."""
    for name in ("plain", "compiled"):
        (tmp_path / name).mkdir()
    plain, _, expected = fit(tmp_path / "plain", 4)
    model = small()
    model.compile(backend="eager", fullgraph=True)
    compiled, _, rows = fit(tmp_path / "compiled", 4, model=model)
    assert [step for step, _ in rows] == [0, 1, 2, 3]
    for (_, one), (_, other) in zip(rows, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-9)
    assert len(compiled.looks) == len(plain.looks) > 0
