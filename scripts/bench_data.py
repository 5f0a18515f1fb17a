"""How fast batches arrive, what holds them back, and what it takes to begin.

    python scripts/bench_data.py            # about two minutes
    python scripts/bench_data.py speed      # one part of it: speed, stages, growth, start

Images of CIFAR-10's number and size, with random content; crop, flip and normalisation into float32. What is compared
runs in turn, several rounds; tables give medians and the range over the rounds. Machines are noisy: trust ratios.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.models import resnet18

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from gradflow import runs
from gradflow.data.augment import Augmentation, Crops
from gradflow.data.cache import cached, read, write
from gradflow.data.datamodule import DataModule
from gradflow.data.loader import Loader, Stored
from gradflow.data.memory import settle
from gradflow.data.moments import Normalise
from gradflow.data.sources import cifar10
from gradflow.data.splits import Part

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
GPU = torch.cuda.is_available()
CPU = torch.device("cpu")


class Images(Dataset):
    """Pictures as torchvision's CIFAR10 gives them, transformed one by one."""

    def __init__(self, part: Part) -> None:
        self.pictures = part.x.permute(0, 2, 3, 1).numpy()
        self.y = part.y.tolist()
        steps = [transforms.RandomCrop(32, 4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        self.transform = transforms.Compose([*steps, transforms.Normalize(MEAN, STD)])

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pictures[index])), self.y[index]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"speed": speed, "stages": stages, "growth": growth, "start": start}
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(parts)}; all without a name")
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    if unknown := set(args.parts) - set(parts):
        parser.error(f"no such part: {', '.join(unknown)}; there are {', '.join(parts)}")
    device = torch.cuda.get_device_name() if GPU else f"{os.cpu_count()} CPU cores"
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    print(f"{device}, {versions}; batches of {args.batch_size} images")
    with tempfile.TemporaryDirectory() as folder:
        store(Path(folder), args.samples)
        for name in args.parts or parts:
            print(f"\n## {name}\n")
            parts[name](Path(folder), args)


def store(folder: Path, samples: int) -> None:
    """A cache as `data=cifar10` makes it."""
    random = np.random.default_rng(0)
    for split, place in cifar10.places(folder).items():
        count = samples if split == "train" else samples // 5
        images, labels = random.integers(0, 256, (count, 3, 32, 32), np.uint8), random.integers(0, 10, count)
        cached(place, partial(write, shape=images.shape, images=[images], labels=labels))


def loader_of(part: Part, size: int, device: torch.device = CPU) -> Loader:
    make = Stored(part, device, 0, Augmentation(crop=4, flip=True), Normalise(part, cifar10.SPEC, device))
    return Loader(len(part), size, True, make)


def speed(folder: Path, args: argparse.Namespace) -> None:
    """Ours beside the usual pipeline, and the memory copy that bounds both."""
    size = args.batch_size
    part = Part(*read(cifar10.places(folder)["train"]))
    few, bound = 1 + 4000 // size, "copy of uint8 to float32"

    def dataloader(workers: int) -> Callable[[], Iterator]:
        loader = DataLoader(
            Images(part), size, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=workers > 0
        )
        return lambda: iter(loader)

    def served(home: str, device: torch.device = CPU) -> Callable[[], Iterator]:
        loader = loader_of(settle(part, home, device), size, device)
        return lambda: iter(loader)

    def copies() -> Iterator:
        target, images = torch.empty(size, 3, 32, 32), part.x
        return (target.copy_(images[start : start + size]) for start in range(0, len(images) - size, size))

    contenders = {
        "DataLoader, no workers": (dataloader(0), few),
        "DataLoader, 2 workers": (dataloader(2), 2 * few),
        "gradflow, in host memory": (served("host"), 60),
        "gradflow, mapped from disk": (served("mapped"), 60),
        bound: (copies, 60),
    }
    if GPU:
        cuda = torch.device("cuda:0")
        contenders["DataLoader, 4 workers"] = (dataloader(4), 4 * few)
        contenders["gradflow, host memory to GPU"] = (served("host", cuda), 90)
        contenders["gradflow, in GPU memory"] = (served("device", cuda), 90)
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(args.rounds):
        for name, (make, batches) in contenders.items():
            time.sleep(1.5)  # workers of the DataLoader before fetch ahead for a while
            rates[name].append(size / seconds_a_batch(make(), batches))
    usual, best = median(rates["DataLoader, 2 workers"]), median(rates[bound])
    print(f"| pipeline, {torch.get_num_threads()} threads | images/s | times 2 workers | range | of the copy |")
    print("|---|---|---|---|---|")
    for name, found in rates.items():
        rate, spread = median(found), f"{min(found) / usual:.1f} – {max(found) / usual:.1f}"
        print(f"| {name} | {rate:,.0f} | {rate / usual:.1f} | {spread} | {rate / best:.1%} |")
    if GPU:
        step, batch = resnet_step(size), size / median(rates["gradflow, in GPU memory"])
        print(f"\nA training step of a ResNet-18 (bf16, channels last): {step * 1e3:.2f} ms; ", end="")
        print(f"a batch, on the GPU: {batch * 1e3:.3f} ms, {batch / step:.1%} of it")


def resnet_step(size: int) -> float:
    model = resnet18(num_classes=10)
    model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    model = model.to("cuda", memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    x = torch.randn(size, 3, 32, 32, device="cuda").to(memory_format=torch.channels_last)
    y = torch.randint(10, (size,), device="cuda")

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return seconds_a_batch((step() for _ in range(40)), 30)


def stages(folder: Path, args: argparse.Namespace) -> None:
    """Where the time of a batch goes, on the CPU."""
    x, y = read(cifar10.places(folder)["train"])
    part, size = Part(x.clone(), y), args.batch_size
    normalise, crops = Normalise(part, cifar10.SPEC, CPU), Crops(4)
    numbers = Augmentation(crop=4, flip=True).random_numbers(len(part), (32, 32), 0, 0)
    assert numbers.offsets is not None
    index = numbers.order.split(size)[:-1]
    taken, moves, cut = part.take("x", index[0]), numbers.offsets[index[0]], part.take("x", index[0])
    done: dict[str, Callable[[int], object]] = {
        "gather the images, scattered over memory": lambda i: part.take("x", index[i]),
        "pad, mirror, and copy each crop": lambda i: crops(taken, moves),
        "convert to float32 and normalise": lambda i: normalise(cut),
    }
    times: dict[str, list[float]] = {name: [] for name in done}
    for _ in range(args.rounds):
        for name, step in done.items():
            times[name].append(seconds_a_batch((step(i % len(index)) for i in range(82)), 80))
    total = sum(median(found) for found in times.values())
    print("| stage | ms a batch | share |\n|---|---|---|")
    for name, found in times.items():
        print(f"| {name} | {median(found) * 1e3:.3f} | {median(found) / total:.0%} |")


def growth(folder: Path, args: argparse.Namespace) -> None:
    """The time of an epoch by the number of samples, and of a batch by the number of epochs before it."""
    x, y = read(cifar10.places(folder)["train"])

    def epoch(count: int, number: int) -> float:
        loader = loader_of(Part(x[:count].clone(), y[:count]), args.batch_size)
        begin = time.perf_counter()
        for index in range(len(loader)):
            loader.batch(number, index)
        return (time.perf_counter() - begin) / len(loader) / args.batch_size

    counts = [args.samples // 8, args.samples // 4, args.samples // 2, args.samples]
    places = [*((count, 0) for count in counts), (args.samples, 10), (args.samples, 1000)]
    times: Mapping[tuple[int, int], list[float]] = {place: [] for place in places}
    for _ in range(args.rounds):
        for place in places:
            times[place].append(epoch(*place))
    print("| samples | epoch number | µs a sample |\n|---|---|---|")
    for (count, number), found in times.items():
        print(f"| {count:,} | {number} | {median(found) * 1e6:.2f} |")


def start(folder: Path, args: argparse.Namespace) -> None:
    """The first batch from a warm cache, and the memory of a whole run (model=resnet, one epoch of 50 batches)."""
    times = []
    for _ in range(args.rounds):
        begin = time.perf_counter()
        data = DataModule(cifar10.cifar10, 128, val=0.1, crop=4, flip=True, root=str(folder), cache=str(folder))
        data.prepare_data()
        data.setup()
        next(iter(data.train_dataloader()))
        times.append(time.perf_counter() - begin)
    print(f"first batch from a warm cache: {median(times):.2f} s (longest {max(times):.2f} s)")
    words = ["model=resnet", "data=cifar10", f"data.cache={folder}", "logger=none", f"hydra.run.dir={folder}/run"]
    words += ["trainer=cpu", "trainer.max_epochs=1", "trainer.limit_train_batches=50"]
    program = Path(__file__).parents[1] / "src/train.py"
    subprocess.run([sys.executable, program, *words], check=True, capture_output=True)
    peak = runs.read_json(folder / "run" / runs.SUMMARY)["peak_memory_gib"]["host"]
    print(f"largest memory of  python src/train.py {' '.join(words[:2])}  on the CPU: {peak:.2f} GiB")


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
    if GPU:
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
