"""How fast batches arrive: ours beside the DataLoader of most projects, and the memory copy that bounds both.

Images of CIFAR-10's number and size, with random content; crop, flip and normalisation into float32.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from itertools import chain, cycle, islice, repeat
from statistics import mean
from typing import Any

import torch
from lightning import Trainer
from timing import OURS, Clock, Comparisons, Contender, Size, Tables, mean_ms, measure
from torchvision import transforms
from usual_lightning import Images, train_loader

from gradflow.data.datamodule import DataModule
from gradflow.data.sources.source import Source
from gradflow.spec import Spec

BATCH = 512


def source(samples: int) -> Source:
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (samples, 3, 32, 32), dtype=torch.uint8, generator=random)
    labels = torch.randint(0, 10, (samples,), generator=random)
    spec = Spec("image", (3, 32, 32), "classification", 10)
    return Source("random", spec, load=lambda: {"train": (images, labels)})


def ours(samples: int, device: str, memory: str, clock: Clock) -> None:
    data = DataModule(partial(source, samples), BATCH, crop=4, flip=True, memory=memory)
    data.attach(Trainer(accelerator=device, devices=1, logger=False, enable_checkpointing=False))
    data.prepare_data()
    data.setup()
    serve(data.train_dataloader(), clock)


def usual(samples: int, workers: int, clock: Clock) -> None:
    load = source(samples).load
    assert load
    augmentation = [transforms.RandomCrop(32, 4), transforms.RandomHorizontalFlip()]
    serve(train_loader(Images(*load()["train"], augmentation), BATCH, workers), clock)


def copies(samples: int, clock: Clock) -> None:
    """Convert, and do nothing else."""
    images, target = torch.zeros(samples, 3, 32, 32, dtype=torch.uint8), torch.empty(BATCH, 3, 32, 32)
    whole = samples // BATCH * BATCH
    serve(map(target.copy_, cycle(images[:whole].split(BATCH))), clock)


def serve(loader: Iterable[Any], clock: Clock) -> None:
    """Take batches, epoch after epoch; the first two start workers and fill queues, and are not counted."""
    batches = chain.from_iterable(repeat(loader))
    for _ in islice(batches, 2):
        pass
    clock.start()
    for _ in batches:
        clock.tick()


def batches(size: Size) -> Comparisons:
    """Images a second, and whether a sample costs more in a larger data set."""
    block, samples = size(60, 2), size(50_000, 16 * BATCH)
    slow, quick = 2 * block, 10 * block
    speed: dict[str, tuple[Contender, int]] = {
        "DataLoader, 2 workers": (partial(usual, samples, 2), slow),
        "DataLoader, no workers": (partial(usual, samples, 0), slow),
        OURS: (partial(ours, samples, "cpu", "host"), quick),
        "copy of uint8 to float32, the bound": (partial(copies, samples), quick),
    }
    if size.device == "gpu":
        speed["DataLoader, 4 workers"] = (partial(usual, samples, 4), slow)
        for memory in ("host", "device"):
            speed[f"{OURS} to the GPU, images in {memory} memory"] = (partial(ours, samples, "gpu", memory), quick)
    growth = {f"{OURS}, {n:,} images": (partial(ours, n, "cpu", "host"), quick) for n in (samples // 8, samples)}
    title, threads = f"Batches of {BATCH} images: crop, flip, normalise", torch.get_num_threads()
    rate: Tables = {"batches": (title, "images/s", lambda one: BATCH / mean(one.seconds))}
    title = "The same by the number of images"
    cost: Tables = {"batches_growth": (title, "µs an image", lambda one: mean_ms(one) / BATCH * 1e3)}
    return measure(speed, block, threads, size(2), rate) | measure(growth, block, threads, size(2), cost)
