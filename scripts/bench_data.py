"""How fast batches arrive: ours beside torchvision's usual pipeline and the memory copy that bounds both.

    python scripts/bench_data.py

Crop, flip and normalisation of 32×32 colour images into float32. Each round runs all of them in turn; the table gives
the median over rounds, in images a second and as a ratio to the DataLoader with two workers.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from gradflow.data.loader import Loader, Stored

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class Images(Dataset):
    """Pictures as torchvision's CIFAR10 gives them, transformed one by one."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.pictures = x.permute(0, 2, 3, 1).numpy()
        self.y = y.tolist()
        steps = [transforms.RandomCrop(32, 4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        self.transform = transforms.Compose([*steps, transforms.Normalize(MEAN, STD)])

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pictures[index])), self.y[index]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    x = torch.randint(0, 256, (args.samples, 3, 32, 32), dtype=torch.uint8)
    y = torch.randint(0, 10, (args.samples,))
    makers = contenders(x, y, args.batch_size)
    speeds: dict[str, list[float]] = {name: [] for name in makers}
    for _ in range(args.rounds):
        for name, (make, batches) in makers.items():
            time.sleep(1.5)  # workers of the DataLoader before fetch ahead for a while
            speeds[name].append(args.batch_size / seconds_a_batch(make(), batches))
    medians = {name: statistics.median(found) for name, found in speeds.items()}
    usual = medians["DataLoader, 2 workers"]
    settings = f"batch {args.batch_size}, {torch.get_num_threads()} threads"
    print(f"| pipeline ({settings}) | images/s | ratio | spread |\n|---|---|---|---|")
    for name, speed in medians.items():
        spread = f"{min(speeds[name]) / usual:.1f} – {max(speeds[name]) / usual:.1f}"
        print(f"| {name} | {speed:,.0f} | {speed / usual:.1f} | {spread} |")


def contenders(x: Tensor, y: Tensor, size: int) -> dict[str, tuple[Callable[[], Iterator], int]]:
    """What to time, and over how many batches."""

    def dataloader(workers: int) -> Callable[[], Iterator]:
        loader = DataLoader(
            Images(x, y), size, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=workers > 0
        )
        return lambda: iter(loader)

    def ours(device: str) -> Callable[[], Iterator]:
        data = (x.to(device), y.to(device))
        moments = (torch.tensor(MEAN), torch.tensor(STD))
        loader = Loader(len(x), size, True, Stored(data, torch.device(device), 0, True, 4, True, *moments))
        return lambda: iter(loader)

    def copies() -> Iterator:
        target = torch.empty(size, 3, 32, 32)
        return (target.copy_(x[start : start + size]) for start in range(0, len(x) - size, size))

    few = 1 + 4000 // size
    found: dict[str, tuple[Callable[[], Iterator], int]] = {
        "DataLoader, 0 workers": (dataloader(0), few),
        "DataLoader, 2 workers": (dataloader(2), 2 * few),
        "ours, CPU": (ours("cpu"), 60),
        "copy uint8 to float32 (the bound)": (copies, 60),
    }
    if torch.cuda.is_available():
        found["DataLoader, 4 workers"] = (dataloader(4), 4 * few)
        found["ours, GPU"] = (ours("cuda"), 90)
    return found


def seconds_a_batch(batches: Iterator, count: int) -> float:
    """The first two batches start workers and fill queues, and are not counted."""
    taken = 0
    for _ in islice(batches, 2):
        synchronise()
    start = time.perf_counter()
    for _ in islice(batches, count):
        taken += 1
    synchronise()
    return (time.perf_counter() - start) / taken


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
