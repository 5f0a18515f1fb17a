"""Diagnostics: each quantity beside a slow reference, the gradient without penalties, and one that a stranger adds."""

from __future__ import annotations

import itertools
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import POINTS, inputs
from examples import blocks, copied, files
from lightning import Trainer
from torch import nn

from gradflow import runs
from gradflow.data.datamodule import DataModule
from gradflow.data.sources.source import Source
from gradflow.diagnostics.diagnostic import Diagnostic, Step, summary_keys
from gradflow.diagnostics.gradient_flow import GradientFlow
from gradflow.diagnostics.gradient_histogram import GradientHistogram
from gradflow.diagnostics.gradients import Gradients
from gradflow.diagnostics.layers import layers
from gradflow.diagnostics.recorder import Recorder
from gradflow.diagnostics.snr import SNR
from gradflow.models.mlp import MLP
from gradflow.plots.layout import Layout, read_layout
from gradflow.runs.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def give(net, *values):
    """Set every gradient of each layer."""
    for layer, value in zip(net, values, strict=True):
        for p in layer.parameters():
            p.grad = torch.full_like(p, value) if isinstance(value, float) else value(p)


# Quantities


def test_snr_equals_weighted_moments_of_all_steps(net):
    """Also of gradients whose squares float32 does not hold, around a mean that is large beside them."""
    snr, known = SNR(decay=0.8), layers(net)
    snr.start(net, known)
    generator, seen = torch.Generator().manual_seed(1), []
    for index in range(30):
        give(
            net, lambda p: 1 + 1e-3 * torch.randn(p.shape, generator=generator), lambda p: 1e-30 * torch.randn(p.shape)
        )
        seen.append([torch.cat([p.grad.flatten() for p in own]).double() for own in known.values()])
        snr.update(Step(index, known))
        assert snr.due(index, last=29, every_n_steps=1) == (index > 0)  # one gradient has no deviation
    weights = torch.tensor([0.8 ** (29 - index) for index in range(30)], dtype=torch.float64)
    weights /= weights.sum()
    for layer, found in enumerate(snr.measure(Step(29, known)).tolist()):
        g = torch.stack([step[layer] for step in seen])
        mean = (weights[:, None] * g).sum(0)
        variance = (weights[:, None] * (g - mean).square()).sum()
        assert found == pytest.approx((mean.norm() / variance.sqrt()).item(), rel=1e-4)


def test_snr_leaves_out_what_is_not_finite_and_goes_on_from_its_state(net):
    known = layers(net)
    generator = torch.Generator().manual_seed(1)
    gradients = [[torch.randn(p.shape, generator=generator) for p in net.parameters()] for _ in range(6)]

    def updated(snr, chosen):
        for index in chosen:
            for p, g in zip(net.parameters(), gradients[index], strict=True):
                p.grad = g.clone()
            snr.update(Step(index, known))
        return snr

    one, other, resumed = SNR(), SNR(), SNR()
    for snr in (one, other, resumed):
        snr.start(net, known)
    updated(one, range(6))
    updated(other, range(3))
    give(net, math.inf, math.nan)
    other.update(Step(3, known))
    resumed.load(other.state())
    updated(resumed, range(3, 6))
    assert torch.equal(one.measure(Step(6, known)), resumed.measure(Step(6, known)))


def test_a_histogram_counts_every_entry_in_its_power_of_ten(net):
    histogram, known = GradientHistogram(), layers(net)
    layout = histogram.start(net, known)
    bins = layout.axes["log₁₀ |g|"]
    assert (bins[:2], bins[-2:]) == (["<-19", "-19"], ["2", "≥3"])
    give(net, 2e-3, 0.0)
    net[1].bias.grad = torch.tensor([math.nan, 5e4])
    shares = histogram.measure(Step(0, known))
    assert len(layout.columns) == shares.numel() == 48
    assert shares[0].tolist() == [*[0] * 17, 1, *[0] * 6]
    assert shares[1].tolist() == pytest.approx([0.8, *[0] * 22, 0.2])


def test_the_keys_that_sum_up():
    assert summary_keys("x", {"a": 3.0, "b": math.nan, "c": 1.0}) == {"x_median": 2.0, "x_min": 1.0, "x_max": 3.0}
    assert summary_keys("x", {"b": math.inf}) == {}


# What a step shows


def test_a_fused_optimizer_s_scale_is_divided_out_and_penalties_are_told_apart(net):
    known, weight = layers(net), net[0].weight
    give(net, 8.0, 16.0)
    step = Step(0, known, torch.tensor(8.0), lambda: {weight: torch.full_like(weight, 3.0)})
    assert step.data_gradient["00.0"][0].unique().tolist() == [1]
    assert step.gradient["00.0"][0].unique().tolist() == [4]
    assert step.gradient["01.1"][0].unique().tolist() == [2]
    assert step.norms.tolist() == pytest.approx([4, 2 * math.sqrt(10)])
    assert step.norm.item() == pytest.approx(math.sqrt(12 * 16 + 4 + 40))


def test_the_gradient_can_t_be_asked_for_when_it_is_gone(net):
    step = Step(0, layers(net))
    assert step.data_gradient["00.0"][0].abs().sum() == 0  # the loss did not reach it
    before = step.before["00.0"][0]
    net[0].weight.data += 1
    step.end()
    assert torch.equal(step.after["00.0"][0], before + 1)
    for name in ("gradient", "data_gradient", "norms", "norm"):
        with pytest.raises(RuntimeError, match="keep what you need"):
            getattr(step, name)


class Wrong(Diagnostic):
    name = "wrong"

    def start(self, model, layers):
        return Layout({"quantity": ["a", "b"]}, "x", "x")

    def measure(self, step):
        return torch.zeros(3)


def test_as_many_numbers_as_columns(net, tmp_path):
    recorder = Recorder([Wrong()])
    recorder.start(net, layers(net), tmp_path)
    recorder.before_step(Step(0, layers(net)), recorder.due(0, 9, 50))
    with pytest.raises(UserError, match=r"diagnostics.wrong: measured 3 numbers, and its layout has 2"):
        recorder.after_step()


def test_what_sees_every_step_says_what_a_checkpoint_holds_of_it():
    class Forgetful(Wrong):
        def update(self, step):
            self.count = step.index

    with pytest.raises(UserError, match=r"diagnostics.wrong: Forgetful has `update` and no `state`, so that a resumed"):
        Recorder([Forgetful()])
    Forgetful.state = lambda self: {}
    assert len(Recorder([Forgetful()]).updated) == 1


def test_names_are_those_of_tables():
    with pytest.raises(UserError, match="two are called gradients"):
        Recorder([Gradients(), Gradients()])
    Wrong.name = "metrics"
    with pytest.raises(UserError, match="'metrics' can't be the name of a table"):
        Recorder([Wrong()])
    with pytest.raises(UserError, match=r"gradients.every_n_steps=0: expected 1 or more"):
        Recorder([Gradients(every_n_steps=0)])


# The gradient of the data


def sigmoid_net(**words):
    torch.manual_seed(0)
    sgd = lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9)  # noqa: E731
    return MLP(POINTS, depth=12, width=6, activation="sigmoid", optimizer=sgd, **words)


def fitted(folder, model, **trainer):
    x, y = (torch.cat(many) for many in zip(*(inputs(POINTS, 8) for _ in range(4)), strict=True))
    data = DataModule(lambda: Source("points", POINTS, load=lambda: {"train": (x, y)}), batch_size=8)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    folder.mkdir()
    callback = GradientFlow(str(folder), 1, 0, on_alarm="log")
    callback.recorder.draw = lambda: ()
    Trainer(max_epochs=1, callbacks=[callback], accelerator="cpu", logger=False, **quiet, **trainer).fit(model, data)
    names, rows = runs.read_table(folder / runs.GRADIENTS)
    return model, names, rows


@pytest.mark.parametrize("trainer", [{}, {"accumulate_grad_batches": 2}, {"gradient_clip_val": 0.01}])
def test_the_norms_of_layers_are_those_without_a_penalty(tmp_path, trainer):
    """Bit by bit at the same weights, though the penalty's gradient is larger by six powers of ten; and the optimizer
    moves along the whole gradient, clipped as a whole."""
    torch.manual_seed(1)
    _, names, rows = fitted(tmp_path / "plain", sigmoid_net(), **trainer)
    torch.manual_seed(1)
    start = sigmoid_net(l1=0.01, l2=0.5)
    before = [p.detach().clone() for p in start.parameters()]
    torch.manual_seed(1)
    model, also, penalised = fitted(tmp_path / "penalised", sigmoid_net(l1=0.01, l2=0.5), max_steps=1, **trainer)
    assert names == also
    assert penalised[0] == rows[0]
    assert rows[0][1] < 1e-6 < 0.1 < min(p.norm() for p in start.parameters() if p.ndim > 1)
    moved = [(b - p.detach()) / 0.1 for b, p in zip(before, model.parameters(), strict=True)]
    penalty = [0.01 * b.sign() + b if b.ndim > 1 else torch.zeros_like(b) for b in before]
    if "gradient_clip_val" in trainer:
        assert math.hypot(*(m.norm().item() for m in moved)) == pytest.approx(0.01, rel=1e-3)
    else:
        torch.testing.assert_close(moved[0], penalty[0], rtol=1e-4, atol=1e-6)  # what reaches it otherwise is 1e-9


# A stranger's diagnostic, as the documentation tells to add one

PAGE = "docs/extending-diagnostics.md"
KILL = """
import os, signal
from gradflow.diagnostics.gradients import Gradients
class Kill(Gradients):
    name = "kill"
    def update(self, step):
        if str(step.index) == os.environ.get("KILL_AT"):
            os.kill(os.getpid(), signal.SIGKILL)
    def state(self):
        return {}
"""
WORDS = (
    *("data=regression", "data.batch_size=8", "model.width=8", "trainer.max_steps=12", "trainer.max_epochs=1"),
    *("test=false", "callbacks.progress=null", "logger=tensorboard", "+diagnostics=[snr,sign_agreement,kill]"),
    *("callbacks.gradient_flow.every_n_steps=3", "callbacks.resume_checkpoint.every_n_steps=5"),
)


@pytest.fixture(scope="module")
def fork(tmp_path_factory) -> Path:
    """A copy of the project with the documentation's files added, and one that kills its process."""
    folder = copied(tmp_path_factory.mktemp("fork"), files(PAGE))
    (folder / "src/gradflow/diagnostics/kill.py").write_text(KILL)
    (folder / "conf/diagnostics/kill.yaml").write_text("kill:\n  _target_: gradflow.diagnostics.kill.Kill\n")
    return folder


def train(fork, *words, **environment):
    program = [sys.executable, "src/train.py", *words]
    return subprocess.run(
        program, cwd=fork, env=os.environ | environment, capture_output=True, text=True, timeout=600, check=False
    )


@pytest.mark.slow
def test_a_stranger_s_diagnostic_survives_a_kill(fork):
    done = train(fork, *WORDS, "hydra.run.dir=whole")
    assert done.returncode == 0, done.stderr
    killed = train(fork, *WORDS, "hydra.run.dir=killed", KILL_AT="7")
    assert killed.returncode == -signal.SIGKILL
    before = (fork / "killed/sign_agreement.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in before] == ["step", *"012346"]  # 6 came after the last checkpoint
    resumed = train(fork, "resume=killed")
    assert resumed.returncode == 0, resumed.stderr
    for name in ("sign_agreement", "snr", "gradients", "updates"):
        whole, again = ((fork / run / f"{name}.csv").read_text() for run in ("whole", "killed"))
        assert whole == again
        assert (fork / f"whole/{name}.png").read_bytes()[:4] == b"\x89PNG"
    names, rows = runs.read_table(fork / "whole/sign_agreement.csv")
    assert [row[0] for row in rows] == [0, 1, 2, 3, 4, 6, 8, 9, 11]
    assert all(0 <= share <= 1 for row in rows for share in row[1:])
    layout = read_layout(fork / "whole/sign_agreement.csv")
    assert layout == Layout({"layer": names[1:]}, "signs that last", "share of gradient entries", shown=[])
    columns, values = runs.read_table(fork / "whole/metrics.csv")
    logged = {row[0]: row[columns.index("sign_agreement/mean")] for row in values}
    assert logged[9] == pytest.approx(sum(rows[7][1:]) / (len(names) - 1))
    assert b"sign_agreement/mean" in next((fork / "whole").rglob("events.out.tfevents*")).read_bytes()
    program = [sys.executable, "src/report.py", "whole"]
    done = subprocess.run(program, cwd=fork, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = next(fork.rglob("report.html")).read_text()
    assert '"title":"signs that last"' in page.replace(": ", ":")


def test_the_documentation_s_example_fits_a_page():
    assert len(list(itertools.chain(*(block.splitlines() for block in blocks(PAGE))))) < 60
