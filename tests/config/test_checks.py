"""What a configuration can't do here: it does not fit, or a value of it leaves nothing to do."""

from __future__ import annotations

import re
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import COPY, NUMBERS, POINTS, RGB
from omegaconf import OmegaConf
from torch import nn

from gradflow import runs
from gradflow.config import checks, model_size
from gradflow.data import memory
from gradflow.models import compile_trial
from gradflow.models.cnn import BNCNN, CNN
from gradflow.models.densenet import DenseNet
from gradflow.models.mlp import MLP
from gradflow.models.recurrent import LSTM
from gradflow.models.resnet import ResNet
from gradflow.runs.errors import UserError


@pytest.mark.parametrize(
    ("make", "sizes"),
    [
        pytest.param(partial(MLP, POINTS), {"depth": 299, "width": 300}, marks=pytest.mark.slow),
        (partial(MLP, POINTS, norm="batch", residual=True), {"depth": 2, "width": 3001}),
        (partial(LSTM, NUMBERS, bidirectional=True), {"layers": 3, "hidden": 1000}),
        (partial(CNN, RGB, convs=2), {"channels": [300, 8, 257], "dense": 1024}),
        pytest.param(partial(ResNet, RGB, width=2), {"depth": 302}, marks=pytest.mark.slow),
        pytest.param(partial(DenseNet, RGB, growth=2), {"depth": 301}, marks=pytest.mark.slow),
    ],
)
def test_the_size_of_a_model_is_known_before_it_is_built(make, sizes):
    """From three smaller ones for each large number, without an error."""
    with torch.device("meta"), model_size._Uninitialised():
        parameters = list(make(**sizes).parameters())
        told = model_size.size(
            sizes, model_size.large_numbers(sizes), lambda node: make(**OmegaConf.to_container(node))
        )
    assert list(told) == [sum(2 * p.nbytes for p in parameters), len(parameters)]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({"depth": 10**8}, "model.depth=100000000: its weights and gradients would take 49,018.9 GiB; 1.0 GiB of"),
        ({"depth": 10**30, "width": 10**30}, "model.depth=1000000000000000000000000000000, model.width=1000"),
        (
            {"depth": 10**5, "width": 1},
            "model.depth=100000: a network of 200,002 weight and bias tensors; expected 100,",
        ),
        ({"depth": 30, "width": 240}, None),
    ],
)
def test_a_model_that_does_not_fit_is_refused_at_once(monkeypatch, sizes, expected):
    monkeypatch.setattr(memory, "free", lambda: 2**30)
    before = torch.get_rng_state()
    node = OmegaConf.create({"depth": 3, "width": 256} | sizes)
    if expected is None:
        model_size.check_size(node, lambda node: MLP(POINTS, **node))
    else:
        with pytest.raises(UserError, match=f"^{expected}"):
            model_size.check_size(node, lambda node: MLP(POINTS, **node))
    assert torch.equal(before, torch.get_rng_state())  # the weights of a seed stay what they were


def test_a_model_that_reads_its_own_numbers_is_built_as_it_was():
    """As a fork's may: there is nothing to read where nothing is computed."""

    def reads(node: Any) -> nn.Module:
        return nn.Linear(int(torch.ones(3).sum()), node.width)

    model_size.check_size(OmegaConf.create({"width": 10**12}), reads)
    assert reads(OmegaConf.create({"width": 5})).weight.shape == (5, 3)


@pytest.mark.parametrize(
    ("make", "samples", "trainer", "fits"),
    [
        (partial(MLP, POINTS, norm="batch"), 1, {}, False),
        (partial(MLP, POINTS, norm="batch"), 2, {}, True),
        (partial(MLP, POINTS, norm="batch"), 4, {"devices": 2, "num_nodes": 2}, False),
        (partial(MLP, POINTS, norm="batch"), 4, {"devices": 2}, True),
        (partial(MLP, POINTS, norm="batch"), 2, {"devices": 2, "sync_batchnorm": True}, True),
        (partial(MLP, POINTS, norm="layer"), 1, {}, True),
        (partial(BNCNN, RGB), 1, {}, False),
        (partial(ResNet, RGB, depth=8, width=2), 1, {}, True),  # of many pixels
        (partial(LSTM, COPY), 1, {}, True),
    ],
)
def test_batch_norm_of_one_sample(make, samples, trainer, fits):
    cfg = OmegaConf.create({"data": {"batch_size": samples}, "trainer": {"devices": 1, "num_nodes": 1} | trainer})
    model = make()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if fits:
        checks.check_batch_norm(cfg, model)
    else:
        with pytest.raises(UserError, match=f"^data.batch_size={samples}: batch norm has no variance of one sample"):
            checks.check_batch_norm(cfg, model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("cpu", "environment", "told"),
    [
        (True, {}, r"a compiler, (clang|g)\+\+, and none"),
        (True, {"CXX": "icpc -O3"}, "a compiler, icpc -O3, and none"),
        (False, {}, "a compiler, gcc or clang, and none"),
        (False, {"CC": "icc"}, "a compiler, icc, and none"),
    ],
)
def test_compiling_needs_a_compiler(monkeypatch, tmp_path, cpu, environment, told):
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert re.search(told, str(compile_trial.missing_compiler(cpu)))
    (tmp_path / next(iter(environment.values()), "g++" if cpu else "clang").split()[0]).touch(0o755)
    (tmp_path / "clang++").touch(0o755)
    assert compile_trial.missing_compiler(cpu) is None


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        ({"train": 0.05}, "limit_train_batches=0.05: none is left of 18 batches of train; expected 1/18 or more"),
        ({"val": 0.4}, "limit_val_batches=0.4: none is left of 2 batches of val"),
        ({"test": 0.04}, "limit_test_batches=0.04: none is left of 20 batches of test"),
        ({"train": 1 / 18, "val": 0.5, "test": 0.05}, None),
        ({"train": 1, "val": 0.0, "test": 2}, None),  # whole numbers, and no validation
    ],
)
@pytest.mark.parametrize("overfit", [0, 0.05])
def test_a_fraction_of_a_split_that_is_no_batch(limits, told, overfit):
    batches = {"train": 18, "val": 2, "test": 20}
    data: Any = SimpleNamespace(has=batches.get, loader=lambda split, training: range(batches[split]))
    all_of_it = {f"limit_{split}_batches": limits.get(split, 1.0) for split in batches}
    trainer: Any = SimpleNamespace(overfit_batches=overfit, **all_of_it)
    if told is None:
        checks.check_batch_limits(OmegaConf.create({"test": True}), trainer, data)
        return
    told = told.replace("limit_train" if "train" in limits else "limit_val", "overfit") if overfit else told
    with pytest.raises(UserError, match=f"^trainer.{told}"):
        checks.check_batch_limits(OmegaConf.create({"test": True}), trainer, data)
    batches |= dict.fromkeys(limits, 0)  # there is no such split
    checks.check_batch_limits(OmegaConf.create({"test": "test" not in limits}), trainer, data)


# Files of a run that goes on


TABLE = ["step,loss", "0,1.5", "1,", "2,nan"]
LOOKS = ['{"step": 0, "verdict": {}}', '{"step": 1, "verdict": {"word": "OK"}}']


def written(folder: Any, table: list[str], looks: list[str], end: str = "\n") -> dict[str, int]:
    (folder / runs.METRICS).write_text("\n".join(table) + end)
    (folder / runs.FLOW).write_text("\n".join(looks) + end)
    return {runs.METRICS: len(TABLE), runs.FLOW: len(LOOKS)}


def test_what_follows_the_lines_that_count_is_not_looked_at(tmp_path):
    runs.check_intact(tmp_path, written(tmp_path, TABLE, LOOKS))
    runs.check_intact(tmp_path, written(tmp_path, [*TABLE, "3,0.", "4"], [*LOOKS, '{"step"'], end=""))


@pytest.mark.parametrize(
    ("place", "line", "name", "told"),
    [
        (1, "0", runs.METRICS, "line 2 .it has fewer cells than the header"),
        (2, "1,abc", runs.METRICS, "line 3 .could not convert"),
        (3, "2,\x001", runs.METRICS, "line 4 "),
        (0, "1,2", runs.METRICS, "line 1 .a header begins with step"),
        (3, None, runs.METRICS, "line 3 .the file ends here, and had 4 lines"),
        (1, '{"step": 1', runs.FLOW, "line 2 .Expecting"),
        (1, "[]", runs.FLOW, "line 2 .it has no step, or no verdict"),
        (0, '{"step": 1}', runs.FLOW, "line 1 .it has no step, or no verdict"),
        (1, None, runs.FLOW, "line 1 .the file ends here, and had 2 lines"),
    ],
)
def test_a_damaged_line_is_named(tmp_path, place, line, name, told):
    table, looks = list(TABLE), list(LOOKS)
    lines = table if name == runs.METRICS else looks
    lines[place:] = [line, *lines[place + 1 :]] if line is not None else []
    kept = written(tmp_path, table, looks)
    with pytest.raises(
        UserError, match=f"^{tmp_path / name}: damaged at {told}.*; put back a copy, or begin a new run"
    ):
        runs.check_intact(tmp_path, kept)


def test_a_file_that_is_gone_is_named(tmp_path):
    kept = written(tmp_path, TABLE, LOOKS)
    (tmp_path / runs.METRICS).unlink()
    with pytest.raises(UserError, match=r"metrics.csv: damaged at line 0 .the file ends here, and had 4 lines"):
        runs.check_intact(tmp_path, kept)


def test_bytes_that_are_no_text(tmp_path):
    kept = written(tmp_path, TABLE, LOOKS)
    content = np.frombuffer((tmp_path / runs.METRICS).read_bytes(), np.uint8) ^ 0x80
    (tmp_path / runs.METRICS).write_bytes(content.tobytes())
    with pytest.raises(UserError, match=r"metrics.csv: damaged at line 1 .'utf-8' codec"):
        runs.check_intact(tmp_path, kept)
