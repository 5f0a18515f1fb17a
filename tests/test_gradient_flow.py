"""The callback logs the gradient that the optimizer is about to use, under the right keys and at the right steps."""

from __future__ import annotations

import json
import math
import struct
from types import SimpleNamespace

import pytest
import torch
from conftest import POINTS, RGB, inputs
from lightning import Trainer
from lightning.pytorch.loggers import Logger
from torch import nn
from wandb.proto.wandb_internal_pb2 import Record

from gradflow import runs
from gradflow.callbacks import gradient_flow
from gradflow.callbacks.gradient_flow import GradientFlow, still_scaled_by
from gradflow.data.datamodule import DataModule
from gradflow.data.source import Source
from gradflow.flow.layers import layers
from gradflow.flow.norms import clip_coefficient, gradient_norms, total
from gradflow.mistakes import Mistake
from gradflow.models.mlp import MLP
from gradflow.models.resnet import ResNet


class Memory(Logger):
    """Keeps what it is told."""

    def __init__(self):
        super().__init__()
        self.rows = []

    name = version = ""

    def log_hyperparams(self, params): ...

    def log_metrics(self, metrics, step=None):
        if any(key.startswith("grad") for key in metrics):
            self.rows.append((step, metrics))


def points(count):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 2, generator=generator).double(), torch.randn(count, 1, generator=generator).double()


def fit(folder, steps, every_n_steps=1, max_epochs=1, **trainer):
    """A small float64 model trained by plain gradient descent; the model, its start, and what was logged."""
    torch.manual_seed(0)
    model = MLP(POINTS, depth=2, width=6, activation="tanh", optimizer=lambda p: torch.optim.SGD(p, lr=0.1)).double()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    memory = Memory()
    data = DataModule(lambda: Source("points", POINTS, load=lambda: {"train": points(8 * steps)}), batch_size=8)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    callback = GradientFlow(str(folder), every_n_steps)
    where = {"accelerator": "cpu", "default_root_dir": folder, "logger": memory, "callbacks": [callback]}
    Trainer(max_epochs=max_epochs, **where, **quiet, **trainer).fit(model, data)
    return model, start, memory.rows


@pytest.mark.parametrize(
    ("steps", "every", "logged"),
    [(10, 3, [0, 3, 6, 9]), (11, 3, [0, 3, 6, 9, 10]), (1, 50, [0]), (4, 1, [0, 1, 2, 3])],
)
def test_first_every_nth_and_last_step(tmp_path, steps, every, logged):
    *_, rows = fit(tmp_path, steps, every)
    assert [step for step, _ in rows] == logged
    _, table = runs.read_table(tmp_path / runs.GRADIENTS)
    assert [row[0] for row in table] == logged


def test_last_step_is_known_across_epochs_and_under_accumulation(tmp_path):
    *_, rows = fit(tmp_path, 5, every_n_steps=100, max_epochs=3, accumulate_grad_batches=2)
    assert [step for step, _ in rows] == [0, 8]  # 3 steps an epoch: two micro-batches, two, one


def test_exact_keys(tmp_path):
    *_, rows = fit(tmp_path, 1)
    layer_keys = {"grad_norm/00.block1.linear", "grad_norm/01.block2.linear", "grad_norm/02.head"}
    assert set(rows[0][1]) == layer_keys | {"grad/norm", "grad/clip_coef"}


def test_norms_are_computed_on_logged_steps_only(tmp_path, monkeypatch):
    calls = []
    count = lambda *args: calls.append(1) or gradient_norms(*args)  # noqa: E731
    monkeypatch.setattr(gradient_flow, "gradient_norms", count)
    fit(tmp_path, 20, every_n_steps=10)
    assert len(calls) == 3


@pytest.mark.parametrize("accumulate", [1, 4])
def test_equals_an_independent_gradient(tmp_path, accumulate):
    model, start, rows = fit(tmp_path, accumulate, accumulate_grad_batches=accumulate)
    model.load_state_dict(start)
    x, y = points(8 * accumulate)
    loss = ((model(x) - y) ** 2).mean()
    for name, parameters in layers(model).items():
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True)
        expected = math.sqrt(sum(g.square().sum().item() for g in gradients))
        assert rows[0][1][f"grad_norm/{name}"] == pytest.approx(expected, rel=1e-10)
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
    assert gradient_norms(layers(model)).item() == pytest.approx(1e-30 * math.sqrt(8), rel=1e-6)


def test_a_layer_that_the_loss_did_not_reach_has_zero_and_the_scale_divides():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight.grad = torch.ones(2, 2)
    assert gradient_norms(layers(model), scale=torch.tensor(8.0)).tolist() == [0, 0.25]


@pytest.mark.parametrize(("fused", "expected"), [(True, 1024.0), (False, 1.0)])
def test_only_fused_optimizers_still_hold_scaled_gradients(fused, expected):
    scaler = SimpleNamespace(_get_scale_async=lambda: 1024.0)
    trainer = SimpleNamespace(precision_plugin=SimpleNamespace(scaler=scaler))
    optimizer = SimpleNamespace(_step_supports_amp_scaling=True) if fused else SimpleNamespace()
    assert still_scaled_by(trainer, optimizer) == expected
    assert still_scaled_by(SimpleNamespace(precision_plugin=SimpleNamespace()), optimizer) == 1


def test_impossible_cadence():
    with pytest.raises(Mistake, match=r"callbacks\.gradient_flow\.every_n_steps=0"):
        GradientFlow("", 0)


def test_what_wandb_holds(trained):
    """A real offline run, read back from its file."""
    run = trained("data=regression", "debug=fast", "logger.mode=offline", "callbacks.gradient_flow.every_n_steps=2")
    history, images = read_wandb(next((run / "wandb").glob("offline-run-*/run-*.wandb")))
    logged = [row for row in history if "grad/norm" in row]
    assert [row["trainer/global_step"] for row in logged] == [0, 2]
    names, table = runs.read_table(run / runs.GRADIENTS)
    for row, values in zip(logged, table, strict=True):
        assert {key: row[f"grad_norm/{key}"] for key in names[1:]} == dict(zip(names[1:], values[1:], strict=True))
    assert len(images) == 1
    assert (run / runs.HEATMAP).read_bytes()[:4] == b"\x89PNG"


def read_wandb(path):
    """History rows, and the pictures among them, from an offline file of W&B."""
    history = []
    for data in leveldb_records(path.read_bytes()[7:]):
        record = Record()
        record.ParseFromString(data)
        if record.HasField("history"):
            history.append({i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item})
    return history, [row for row in history if "gradients/filenames" in row]


def leveldb_records(log):
    """LevelDB's log format: blocks of 32 KiB (the first has W&B's header of 7 bytes); a record may span several."""
    position, whole = 0, b""
    while position + 7 <= len(log):
        left = 32768 - (position + 7) % 32768
        if left < 7:
            position += left
            continue
        length, kind = struct.unpack("<HB", log[position + 4 : position + 7])
        whole += log[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a full record, or its last part
            yield whole
            whole = b""
