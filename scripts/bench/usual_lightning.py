"""Train an MLP on shapes as most Lightning projects do: python scripts/bench/usual_lightning.py [epochs]

A Dataset gives PIL images through torchvision's transforms to a DataLoader with two workers; the module logs by
`self.log`; CSVLogger and ModelCheckpoint write.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, cast

import torch.nn.functional as F
from lightning import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.utils.data import DataLoader, Dataset
from torchmetrics import Accuracy, Metric
from torchvision import transforms
from usual_pytorch import BATCH, EVERY, VAL, images, network

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


class Images(Dataset):
    """Images as torchvision's CIFAR10 gives them, transformed one by one."""

    def __init__(self, x: Tensor, y: Tensor, augmentation: Sequence[Any] = ()) -> None:
        self.pictures, self.y = x.permute(0, 2, 3, 1).contiguous().numpy(), y.tolist()
        grey = self.pictures.shape[-1] == 1
        self.pictures = self.pictures[..., 0] if grey else self.pictures
        normalise = transforms.Normalize(MEAN[:1] if grey else MEAN, STD[:1] if grey else STD)
        self.transform = transforms.Compose([*augmentation, transforms.ToTensor(), normalise])

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pictures[index])), self.y[index]


def train_loader(data: Dataset, batch: int = BATCH, workers: int = 2) -> DataLoader:
    persistent = workers > 0
    return DataLoader(data, batch, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=persistent)


class Classifier(LightningModule):
    """Loss and accuracy by `self.log`, as in Lightning's own examples."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.accuracy = nn.ModuleDict({f"{s}_accuracy": Accuracy("multiclass", num_classes=10) for s in SPLITS})

    def _step(self, batch: tuple[Tensor, Tensor], split: str) -> Tensor:
        x, y = batch
        output = self.net(x)
        loss = F.cross_entropy(output, y)
        metric = cast(Metric, self.accuracy[f"{split}_accuracy"])
        metric(output, y)
        self.log(f"{split}_loss", loss, prog_bar=True)
        self.log(f"{split}_accuracy", metric, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        return self._step(batch, "train")

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        self._step(batch, "val")

    def test_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        self._step(batch, "test")

    def configure_optimizers(self) -> Optimizer:
        return Adam(self.net.parameters(), lr=1e-3)


SPLITS = ("train", "val", "test")


def main(epochs: int) -> None:
    seed_everything(0)
    x, y, test_x, test_y = images()
    held, test = (DataLoader(Images(*split), BATCH, num_workers=2) for split in ((x[:VAL], y[:VAL]), (test_x, test_y)))
    checkpoint = ModelCheckpoint(monitor="val_accuracy", mode="max", save_last=True)
    trainer = Trainer(max_epochs=epochs, logger=CSVLogger("logs"), callbacks=[checkpoint], log_every_n_steps=EVERY)
    model = Classifier(network())
    trainer.fit(model, train_loader(Images(x[VAL:], y[VAL:])), held)
    trainer.test(model, test, ckpt_path="best")
    print(f"{trainer.global_step} steps")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
