"""Targets of padding: an optimizer's step is that of the mean over all entries that count, however they are divided."""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from lightning import Trainer
from test_datamodule import trainer_of

from gradflow.data.datamodule import DataModule
from gradflow.data.sources.source import Source
from gradflow.models.fcn import FCN
from gradflow.models.recurrent import GRU
from gradflow.spec import Spec

TEXT = Spec("sequence", (6,), "next_token", outputs=5, tokens=5, per_step=True, ignored=-1)
MASKS = Spec("image", (1, 8, 8), "segmentation", outputs=3, ignored=255)


def text(n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequences of 1 … 6 symbols, padded."""
    x, y = torch.randint(5, (2, n, 6), generator=generator)
    lengths = torch.randint(1, 7, (n, 1), generator=generator)
    return x, y.masked_fill(torch.arange(6) >= lengths, -1)


def masks() -> dict:
    source = torch.Generator().manual_seed(0)
    images = torch.randint(256, (24, 1, 8, 8), generator=source, dtype=torch.uint8)
    return {"train": (images, torch.randint(3, (24, 8, 8), generator=source))}


STORED = {"source": lambda: Source("text", TEXT, load=lambda: {"train": text(24, torch.Generator().manual_seed(0))})}
CASES = {
    "stored": (GRU, STORED),
    "generated": (GRU, {"source": lambda: Source("text", TEXT, generate=text), "samples": 24}),
    "cropped": (FCN, {"source": lambda: Source("masks", MASKS, load=masks), "crop": 3, "flip": True}),
}


def gradients(model, loaders, indices) -> list[torch.Tensor]:
    """The mean over ranks and batches of what each would hand to the optimizer, as DDP and Lightning divide it."""
    model = deepcopy(model)
    for loader in loaders:
        model._trainer = SimpleNamespace(train_dataloader=loader)
        for index in indices:
            batch = loader.batch(loader.epoch(), index)
            loss, output = model._step(batch, "train")
            share = len(loaders) * len(indices)
            (model.objective(loss, output, batch[1], model._weight(batch[1], index)) / share).backward()
    return [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("world", "accumulate"), [(2, 1), (1, 3), (2, 2)])
def test_ranks_and_accumulated_batches_weigh_alike(name, world, accumulate):
    """Against the whole in one: the mean over its entries, by their number."""
    torch.manual_seed(0)
    make, options = CASES[name]
    data = DataModule(batch_size=4, **options)
    data.setup()
    model = make(data.spec)
    loaders = []
    for rank in range(world):
        data.trainer = trainer_of(rank, world, epoch=1)
        data.trainer.accumulate_grad_batches = accumulate
        loaders.append(data.loader("train", training=True))
    indices = range(accumulate, 2 * accumulate)
    found = gradients(model, loaders, indices)
    batches = [loader.batch(1, index) for loader in loaders for index in indices]
    x, y = (torch.cat(tensors) for tensors in zip(*batches, strict=True))
    counts = {int(model.task.count(target)) for _, target in batches}
    assert len(counts) > 1  # they differ, so that a mean of means would not do
    expected = torch.autograd.grad(model.loss(model(x), y), list(model.parameters()))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_a_trainer_that_accumulates_takes_the_step_of_the_whole_batch():
    weights = []
    for batch_size, accumulate in ((12, 1), (3, 4)):
        torch.manual_seed(0)
        model = GRU(TEXT, optimizer=partial(torch.optim.SGD, lr=0.5), l2=0.01)
        data = DataModule(**STORED, batch_size=batch_size)
        options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
        trainer = Trainer(max_steps=2, accumulate_grad_batches=accumulate, enable_model_summary=False, **options)
        trainer.fit(model, data)
        weights.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    torch.testing.assert_close(*weights)


def test_each_batch_is_generated_once():
    calls = []

    def counted(n, generator):
        calls.append(n)
        return text(n, generator)

    data = DataModule(lambda: Source("text", TEXT, generate=counted), 4, samples=24)
    data.trainer = trainer_of()
    data.trainer.accumulate_grad_batches = 3
    loader = data.loader("train", training=True)
    for index, (_, y) in enumerate(loader):
        loader.weight(data.task, y, index)
    assert calls == [4] * 6


def test_the_loss_of_a_split_is_the_mean_over_its_entries():
    torch.manual_seed(0)
    data, model = DataModule(**STORED, batch_size=5, val=12), GRU(TEXT)
    data.setup()
    for batch in data.val_dataloader():
        model._step(batch, "val")
    x, y = (data.splits["val"].take(name, slice(None)) for name in "xy")
    assert model.metrics["loss/val"].compute().item() == pytest.approx(model.loss(model(x), y).item(), rel=1e-5)
    assert model.metrics["loss/val"].compute().item() != pytest.approx(
        sum(model.loss(model(a[None]), b[None]).item() for a, b in zip(x, y, strict=True)) / 12, rel=1e-3
    )
