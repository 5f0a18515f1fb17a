"""Train an MLP on shapes as a plain PyTorch script does: python scripts/bench/usual_pytorch.py [epochs]

The images, normalised once, lie in memory; a DataLoader over a TensorDataset makes batches of them.
"""

from __future__ import annotations

import csv
import sys

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from gradflow.data.sources.shapes import TEST, TRAIN, render

BATCH, VAL, EVERY = 128, 1_000, 50  # samples, images held out, steps from a logged loss to the next


def network() -> nn.Module:
    hidden = [layer for _ in range(2) for layer in (nn.Linear(256, 256), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 256), nn.ReLU(), *hidden, nn.Linear(256, 10))


def images() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return images, uint8 [n, 3, 32, 32], and labels: shuffled ones to train with, of which the first VAL are held
    out, and those of the test."""
    x, y, _ = render(TRAIN, 1, 32, 3)
    order = torch.randperm(len(x))
    return x[order], y[order], *render(TEST, 2, 32, 3)[:2]


DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@torch.no_grad()
def evaluate(model: nn.Module, loader: DataLoader) -> tuple[float, float]:
    model.eval()
    loss, right, count = 0.0, 0, 0
    for inputs, targets in loader:
        x, y = inputs.to(DEVICE), targets.to(DEVICE)
        output = model(x)
        loss += F.cross_entropy(output, y, reduction="sum").item()
        right += (output.argmax(1) == y).sum().item()
        count += len(y)
    return loss / count, right / count


def main(epochs: int) -> None:
    torch.manual_seed(0)
    x, y, test_x, test_y = images()
    train = x[VAL:].float() / 255
    mean, std = train.mean((0, 2, 3), keepdim=True), train.std((0, 2, 3), keepdim=True)
    held, test = (x[:VAL].float() / 255 - mean) / std, (test_x.float() / 255 - mean) / std
    loader = DataLoader(TensorDataset((train - mean) / std, y[VAL:]), BATCH, shuffle=True, drop_last=True)
    val_loader = DataLoader(TensorDataset(held, y[:VAL]), BATCH)
    model = network().to(DEVICE)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    best, step, rows = 0.0, 0, []
    for epoch in range(epochs):
        model.train()
        right = 0
        for batch in loader:
            inputs, targets = (tensor.to(DEVICE) for tensor in batch)
            optimizer.zero_grad()
            output = model(inputs)
            loss = F.cross_entropy(output, targets)
            loss.backward()
            optimizer.step()
            step += 1
            right += (output.argmax(1) == targets).sum().item()
            if step % EVERY == 0:
                rows.append((step, epoch, "loss/train", loss.item()))
        loss_val, accuracy = evaluate(model, val_loader)
        rows += [(step, epoch, "loss/val", loss_val), (step, epoch, "accuracy/val", accuracy)]
        rows.append((step, epoch, "accuracy/train", right / len(loader) / BATCH))
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}, "last.pt")
        if accuracy > best:
            best = accuracy
            torch.save(model.state_dict(), "best.pt")
        print(f"epoch {epoch}: loss {loss_val:.3f}, accuracy {accuracy:.3f}", flush=True)
        with open("metrics.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
    model.load_state_dict(torch.load("best.pt"))
    loss_test, accuracy = evaluate(model, DataLoader(TensorDataset(test, test_y), BATCH))
    print(f"test: loss {loss_test:.3f}, accuracy {accuracy:.3f}, {step} steps")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
