"""The callback under other people's modules, optimizers and trainers."""

from __future__ import annotations

import math
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from conftest import POINTS
from lightning import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from test_gradient_flow import Memory, fit, small
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from gradflow import runs
from gradflow.diagnostics import GradientFlow
from gradflow.diagnostics.layers import layers
from gradflow.diagnostics.trainer_facts import reject_shards
from gradflow.runs.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
X, Y = torch.randn(24, 6, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 3


def body(depth=3):
    parts = [part for _ in range(depth) for part in (nn.Linear(6, 6), nn.Tanh())]
    return nn.Sequential(*parts, nn.Linear(6, 3))


class Plain(LightningModule):
    """Names that our own modules have stand for other things here, and the batch is a dictionary."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.trunk = body()
        self.l1, self.loss, self.task, self.steps = nn.L1Loss(), nn.CrossEntropyLoss(), "multiclass", 0

    def training_step(self, batch, index):
        self.steps += 1
        output = self.trunk(batch["x"])
        losses = {"main": self.loss(output, batch["y"]), "small": output.square().mean()}
        self.log_dict(losses)
        return {"loss": losses["main"] + 0.1 * losses["small"], **losses}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Adversaries(Plain):
    """Two optimizers; the second's loss leaves a gradient in the first's parameters."""

    def __init__(self, often=1):
        super().__init__()
        self.generator, self.critic, self.often, self.used = nn.Linear(6, 6), nn.Linear(6, 1), often, []
        del self.trunk
        self.automatic_optimization = False

    def training_step(self, batch, index):
        for which, optimizer in enumerate(self.optimizers()):
            for _ in range(self.often if which else 1):
                optimizer.zero_grad()
                sign = 1 - 2 * which
                self.manual_backward(sign * self.critic(self.generator(batch["x"])).square().mean())
                own = (self.generator, self.critic)[which]
                norm = math.hypot(*(p.grad.norm().item() for p in own.parameters()))
                self.used.append((which, norm, own.weight.detach().clone()))
                optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.SGD(own.parameters(), lr=0.01) for own in (self.generator, self.critic)]


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return len(X)

    def __getitem__(self, index):
        return {"x": X[index], "y": Y[index]}


def train(folder, model, callback=None, data=None, **trainer):
    """Return what was logged by step, and the lines of flow.jsonl; three batches of eight."""
    memory = Memory()
    callback = callback or GradientFlow(str(folder), 1, on_alarm="warn")
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    where = {"accelerator": "cpu", "logger": memory, "default_root_dir": folder, "callbacks": [callback]}
    with patch.object(GradientFlow, "draw"):  # pictures take longer than these trainings
        Trainer(**{"max_epochs": 1, **where, **quiet, **trainer}).fit(model, data or DataLoader(Rows(), batch_size=8))
    return dict(memory.rows), runs.read_lines(callback.folder / runs.FLOW) if callback.verdicts else []


def expected(model, rows, scale=1.0):
    batch = {"x": X[rows], "y": Y[rows]}
    with patch.object(model, "log_dict"):
        loss = model.training_step(batch, 0)["loss"] * scale
    by_layer = {name: torch.autograd.grad(loss, own, retain_graph=True) for name, own in layers(model).items()}
    return {f"grad_norm/{name}": math.hypot(*(g.norm().item() for g in own)) for name, own in by_layer.items()}


def norms(row):
    return {key: value for key, value in row.items() if key.startswith("grad_norm/")}


@pytest.mark.parametrize(
    ("trainer", "rows", "tolerance"),
    [
        ({}, slice(0, 8), 1e-5),
        ({"accumulate_grad_batches": 3}, slice(0, 24), 1e-5),
        ({"gradient_clip_val": 1e-3}, slice(0, 8), 1e-5),
        ({"precision": "bf16-mixed"}, slice(0, 8), 0.03),
    ],
)
def test_several_losses_of_a_foreign_module(tmp_path, capsys, trainer, rows, tolerance):
    model = Plain()
    want = expected(Plain(), rows)
    logged, looks = train(tmp_path, model, **trainer)
    assert norms(logged[0]) == pytest.approx(want, rel=tolerance)
    assert ("grad/norm_with_penalty" in logged[0]) is False
    assert (logged[0]["grad/clip_coef"] < 1) == ("gradient_clip_val" in trainer)
    assert len(looks) == len(logged) + 1
    assert model.steps == 3  # a probe is none
    assert looks[0]["trunk"] == ["trunk.0", "trunk.2", "trunk.4"]
    batch = {"x": X[:8], "y": Y[:8]}
    with patch.object(Plain, "log_dict"):
        assert looks[0]["loss"] == pytest.approx(Plain().training_step(batch, 0)["loss"].item(), rel=1e-5)
    assert len(looks[0]["theory"]["gradient"]) == 3
    assert "no probes" not in capsys.readouterr().out


def test_frozen_and_tied_parts(tmp_path):
    def make():
        model = Plain()
        model.trunk[0].requires_grad_(False)
        model.trunk[4].weight = model.trunk[2].weight
        return model

    logged, _ = train(tmp_path, make())
    assert norms(logged[0]) == pytest.approx(expected(make(), slice(0, 8)), rel=1e-5)
    assert list(norms(logged[0])) == [f"grad_norm/0{place}.trunk.{layer}" for place, layer in enumerate((2, 4, 6))]


@pytest.mark.parametrize("often", [1, 3])
def test_several_optimizers_are_measured_each_by_its_own_gradient(tmp_path, capsys, often):
    torch.manual_seed(0)
    model = Adversaries(often)
    logged, looks = train(tmp_path, model)
    assert list(logged) == [0, 1 + often, 2 + 2 * often]
    turns = [model.used[start : start + 1 + often] for start in range(0, len(model.used), 1 + often)]
    for row, turn in zip(logged.values(), turns, strict=True):
        assert row["grad_norm/00.generator"] == pytest.approx(turn[0][1], rel=1e-5)
        assert row["grad_norm/01.critic"] == pytest.approx(turn[-1][1], rel=1e-5)
    (_, _, start), (_, _, end) = turns[0][0], turns[1][0]
    _, table = runs.read_table(tmp_path / "updates.png".replace(".png", ".csv"))
    assert table[0][1] == pytest.approx(((end - start).norm() / start.norm()).item(), rel=1e-4)
    assert looks == []
    told = capsys.readouterr().out
    assert told.count("no probes: Adversaries.training_step optimizes by itself: give loss=") == 1


def test_steps_that_are_due_within_a_round_are_not_missed(tmp_path):
    logged, _ = train(tmp_path, Adversaries(often=2), GradientFlow(str(tmp_path), 5, 0), max_epochs=6)
    assert list(logged) == [0, 3, 6, 9, 12, 15, 18, 21, 27, 30, 33, 36, 42, 45, 51]


def test_a_loss_for_manual_optimization(tmp_path):
    loss = lambda model, batch: model.critic(model.generator(batch["x"])).square().mean()  # noqa: E731
    callback = GradientFlow(str(tmp_path), 1, loss=loss, trunk=["generator", "critic"])
    _, looks = train(tmp_path, Adversaries(), callback)
    assert [look["step"] for look in looks] == [0, 2, 4, 6]
    assert looks[0]["trunk"] == ["generator", "critic"]
    assert all(look["gradient"][0] > 0 for look in looks)


class Asks(Plain):
    def training_step(self, batch, index):
        return super().training_step(batch, index)["loss"] / self.trainer.world_size


def test_a_step_that_can_not_stand_alone_ends_no_training(tmp_path, capsys):
    logged, looks = train(tmp_path, Asks())
    assert (len(logged), looks) == (3, [])
    told = capsys.readouterr().out
    assert told.count("gradient_flow: gradients and updates alone, no probes: Asks can't be run apart") == 1
    assert told.count("\n") == 1


def test_a_folder_of_its_own_beside_the_loggers_files(tmp_path):
    logger = CSVLogger(tmp_path, "logs", version=3)
    for number in ("", "-1"):
        callback = GradientFlow(every_n_steps=1, on_alarm="log")
        train(tmp_path, Plain(), callback, logger=logger)
        assert callback.folder == tmp_path / "logs" / "version_3" / f"gradients{number}"
        assert {"gradients.csv", "updates.csv", "flow.jsonl"} <= {path.name for path in callback.folder.iterdir()}
        assert len(runs.read_table(callback.folder / runs.GRADIENTS)[1]) == 3


@pytest.mark.parametrize("kind", [FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy])
def test_sharded_strategies_are_rejected_in_one_line(kind):
    with pytest.raises(UserError, match=rf"parameters are sharded \({kind.__name__}\)") as error:
        reject_shards(Plain(), strategy=object.__new__(kind))
    assert "\n" not in str(error.value)
    reject_shards(Plain(), strategy=SimpleNamespace())


def test_an_alarm_names_no_keys_that_a_foreign_module_does_not_have(tmp_path, capsys):
    model = Plain()
    for layer in model.trunk[:-1:2]:
        nn.init.normal_(layer.weight, std=1e-3)
    train(tmp_path, model)
    told = capsys.readouterr().out
    assert "ALARM vanish: step 2: the gradient shrinks" in told
    assert "try" not in told


def test_the_verdict_of_a_run_is_that_of_the_first_step_at_which_it_can_be_judged(tmp_path):
    callback = GradientFlow(str(tmp_path), 1, on_alarm="log")
    model = Plain()
    nn.init.zeros_(model.trunk[-1].weight)
    _, looks = train(tmp_path, model, callback)
    assert [look["verdict"]["word"] for look in looks] == ["CAUTION", "OK", "OK", "OK"]
    assert [look.get("asleep", False) for look in looks] == [True, False, False, False]
    assert callback.verdicts == [looks[1]["verdict"], looks[-1]["verdict"]]
    again = GradientFlow(str(tmp_path))
    again.snapshots.read(tmp_path)  # as a run does that goes on
    assert again.verdicts == callback.verdicts
    assert callback.alarms.start.loss == looks[1]["loss"]


def test_a_run_of_ours_with_a_head_of_zeros(tmp_path):
    model = small()
    nn.init.zeros_(model.net.head.weight)
    assert model.spec == POINTS
    with patch.object(GradientFlow, "take_snapshot", autospec=True, side_effect=GradientFlow.take_snapshot) as taken:
        fit(tmp_path, 3, model=model)
    verdicts = taken.call_args[0][0].verdicts
    looks = runs.read_lines(tmp_path / runs.FLOW)
    assert verdicts[0] == looks[1]["verdict"] != looks[0]["verdict"]


def test_a_dead_network_is_dead_from_the_start(tmp_path):
    callback = GradientFlow(str(tmp_path), 1, on_alarm="log")
    model = Plain()
    model.trunk[3] = nn.ReLU()
    nn.init.constant_(model.trunk[2].bias, -100.0)
    nn.init.zeros_(model.trunk[-1].weight)
    train(tmp_path, model, callback)
    assert callback.verdicts[0]["word"] == "FAIL"


class Tokens(Plain):
    """Takes tuples of more than inputs and targets."""

    def training_step(self, batch):
        x, y, weight = batch
        return (F.cross_entropy(self.trunk(x), y, reduction="none") * weight).mean()


def test_a_batch_of_three(tmp_path):
    data = DataLoader(TensorDataset(X, Y, torch.rand(24)), batch_size=8)
    logged, looks = train(tmp_path, Tokens(), data=data)
    assert (len(logged), len(looks)) == (3, 4)


def test_another_network_needs_a_folder_of_its_own(tmp_path):
    for _ in range(2):  # the same one goes on
        train(tmp_path, Plain())
    other = Plain()
    other.trunk = body(5)
    with pytest.raises(UserError, match=r"gradients\.csv: has other columns, those of another network; expected a"):
        train(tmp_path, other)
