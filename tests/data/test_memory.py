"""Where the samples lie: the same batches from everywhere, and what is chosen when."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_datamodule import dealt, points, ready, trainer_of, training

from gradflow.data import datamodule, memory
from gradflow.data.cache import cached, read, write
from gradflow.data.datamodule import DataModule
from gradflow.data.memory import Courier, choose, free, settle
from gradflow.data.sources.adding import adding
from gradflow.data.sources.source import Source
from gradflow.data.splits import Part
from gradflow.runs.errors import UserError
from gradflow.spec import Spec

CPU, CUDA = torch.device("cpu"), torch.device("cuda:1")
SAMPLES, SIZE = 60, 60 * (3 * 6 * 6 + 8)  # images, and their bytes with those of the labels
EVERYTHING = {"crop": 2, "flip": True, "cutout": 3, "mixup": 1.0}


def album(home: Path, kind: str = "image", extra: tuple[str, ...] = ()) -> Source:
    """Images from a cache on disk; as a sequence, a view of them with its axes swapped."""
    names = ("train", *extra)

    def prepare() -> None:
        for seed, name in enumerate(names):
            x, y = (tensor.numpy() for tensor in dealt(SAMPLES, 3, seed))
            cached(home / name, lambda draft, x=x, y=y: write(draft, x.shape, [x[:7], x[7:]], y))

    @lru_cache(1)
    def load():
        stored = {name: read(home / name) for name in names}
        if kind == "image":
            return stored
        return {name: (x.flatten(2).transpose(1, 2), y) for name, (x, y) in stored.items()}

    spec = Spec(kind, (3, 6, 6) if kind == "image" else (36, 3), "classification", outputs=4)
    return Source("album", spec, load=load, prepare=prepare, origin=lambda: {"cache": str(home)})


def served(source: Source, where: str, epochs: int = 3, world: int = 1, **options) -> dict[str, list[torch.Tensor]]:
    """Every batch: of several epochs, of val and of test."""
    data, batches = ready(lambda: source, 8, seed=3, memory=where, **options), {}
    for epoch in range(epochs):
        for rank in range(world):
            loader = training(data, trainer_of(rank, world, epoch))
            batches[f"epoch {epoch}, rank {rank}"] = [tensor for batch in loader for tensor in batch]
    for split in ("train", "val", "test"):
        batches[split] = [tensor for batch in data.loader(split) for tensor in batch]
    return batches | {"sample": list(data.sample(7))}


def held_in(data: DataModule) -> set[str]:
    """How its parts are kept: in memory of their own, or as rows of what the source gave."""
    given = {x.data_ptr() for x, _ in data.source.load().values()}
    return {("mapped" if part.x.data_ptr() in given else "copied") for part in data.splits.values()}


@pytest.mark.parametrize("extra", [(), ("test",), ("val", "test")])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("image", {}),
        ("image", {"crop": 2, "flip": True}),
        ("image", EVERYTHING),
        ("image", {"alternating_flip": True, "cutout": 2}),
        ("sequence", {}),
    ],
)
def test_batches_are_the_same_bytes_from_everywhere(tmp_path, kind, options, extra):
    options = {"val": 0.2, "test": 0.25, **options}
    source = album(tmp_path, kind, extra)
    plain = replace(source, prepare=lambda: None, load=lambda: {n: dense(s) for n, s in source.load().items()})
    host, mapped = (served(source, where, **options) for where in ("host", "mapped"))
    dense_host = served(plain, "host", **options)
    counts = {(): (36, 9, 15), ("test",): (48, 12, 60), ("val", "test"): (60, 60, 60)}[extra]
    assert [sum(map(len, host[split][::2])) for split in ("train", "val", "test")] == list(counts)
    for place, tensors in host.items():
        assert len(tensors) >= 2
        for one, *others in zip(tensors, mapped[place], dense_host[place], strict=True):
            assert all(torch.equal(one, other) and one.dtype == other.dtype for other in others)


def dense(split: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """In memory, each element after the one before it."""
    return tuple(torch.from_numpy(np.array(tensor.tolist(), dtype=tensor.numpy().dtype)) for tensor in split)


def test_ranks_share_mapped_batches(tmp_path):
    options = {"val": 0.2, "test": 0.25, **EVERYTHING}
    alone, shared = (served(album(tmp_path), "mapped", world=world, **options) for world in (1, 4))
    for epoch in range(3):
        ranks = [shared[f"epoch {epoch}, rank {rank}"] for rank in range(4)]
        together = [torch.cat(parts) for parts in zip(*ranks, strict=True)]
        assert all(torch.equal(a, b) for a, b in zip(together, alone[f"epoch {epoch}, rank 0"], strict=True))


def test_a_sequence_is_a_view_with_its_axes_swapped(tmp_path):
    source = album(tmp_path, "sequence")
    source.prepare()
    x, _ = source.load()["train"]
    assert not x.is_contiguous()
    mapped = ready(lambda: source, 8, val=0.2, memory="mapped")
    assert not mapped.splits["train"].x.is_contiguous()
    assert held_in(mapped) == {"mapped"}
    raw = mapped.splits["val"].take("x", slice(None))
    assert torch.equal(raw, x[mapped.splits["val"].rows])


@pytest.mark.parametrize("kind", ["image", "sequence"])
@pytest.mark.parametrize("extra", [(), ("test",)])
def test_mapped_parts_are_not_copied(tmp_path, kind, extra):
    source = album(tmp_path, kind, extra)
    data = ready(lambda: source, 8, val=0.2, test=0.25, memory="mapped")
    whole = source.load()
    for name, part in data.splits.items():
        file = "test" if name in extra else "train"
        assert part.x.data_ptr() == whole[file][0].data_ptr()
        assert (part.rows is None) == (name in extra)
    rows = [part.rows for part in data.splits.values() if part.rows is not None]
    assert sorted(torch.cat(rows).tolist()) == list(range(SAMPLES))


def test_what_is_mapped_is_the_file(tmp_path):
    """Its bytes are read when they are asked for, and there is no copy of them."""
    last = int(dealt(SAMPLES, 3, 0)[0][-1, -1, -1, -1])
    for where, expected in (("mapped", last ^ 1), ("host", last)):
        home = tmp_path / where
        data = ready(lambda home=home: album(home), 8, memory=where)
        with (home / "train" / "x.npy").open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(bytes([last ^ 1]))
        assert data.splits["train"].x[-1, -1, -1, -1] == expected


@pytest.mark.parametrize("extra", [(), ("test",), ("val", "test")])
def test_parts_in_the_hosts_memory_are_its_own(tmp_path, extra):
    source = album(tmp_path, extra=extra)
    data = ready(lambda: source, 8, val=0.2, test=0.25, memory="host")
    assert held_in(data) == {"copied"}
    given = {tensor.data_ptr() for split in source.load().values() for tensor in split}
    for part in data.splits.values():
        assert part.rows is None
        assert not {part.x.data_ptr(), part.y.data_ptr()} & given
        assert part.nbytes == part.x.untyped_storage().nbytes() + part.y.untyped_storage().nbytes()


@pytest.mark.parametrize("rows", [None, torch.tensor([5, 2, 2])])
def test_settled_parts_hold_the_same_samples(rows):
    x, y = dealt(9, 3, 0)
    part = Part(x, y, rows)
    assert settle(part, "mapped", CPU) is part
    for home in ("host", "device"):
        moved = settle(part, home, CPU)
        assert moved.rows is None
        assert torch.equal(moved.x, part.take("x", slice(None)))
        assert torch.equal(moved.y, part.take("y", slice(None)))
        assert home == "device" or moved.x.data_ptr() != x.data_ptr()  # here the device is the host


@pytest.fixture
def room(monkeypatch):
    """A machine with so many free bytes in the host's memory, and in that of its second CUDA device."""

    def make(host: int, device: int = 0) -> None:
        monkeypatch.setattr(memory, "free", lambda: host)
        found = {torch.device("cuda:0"): (0, 0), CUDA: (device, 10**15)}
        monkeypatch.setattr(torch.cuda, "mem_get_info", found.__getitem__)

    return make


@pytest.mark.parametrize(
    ("size", "device", "ranks", "cached", "home"),
    [
        (50, CPU, 1, True, "host"),  # of 100 bytes, half
        (51, CPU, 1, True, "mapped"),
        (51, CPU, 1, False, "host"),  # there is no other place
        (999, CPU, 1, False, "host"),
        (25, CPU, 2, True, "host"),
        (26, CPU, 2, True, "mapped"),
        (13, CPU, 4, True, "mapped"),
        (12, CPU, 4, True, "host"),
        (99, CUDA, 1, True, "device"),  # of 400, less than a quarter
        (99, CUDA, 8, True, "device"),  # each rank has a device of its own
        (101, CUDA, 1, True, "mapped"),
        (101, CUDA, 1, False, "host"),
        (99, torch.device("cuda:0"), 1, False, "host"),
        (20, torch.device("mps"), 1, True, "host"),
    ],
)
def test_auto_takes_the_nearest_memory_that_has_room(room, size, device, ranks, cached, home):
    room(host=100, device=400)
    assert choose("auto", size, device, ranks, cached) == home


def test_a_set_that_fits_the_host_but_not_the_device_stays_on_the_host(room):
    room(host=1000, device=400)
    assert choose("auto", 101, CUDA, 1, True) == "host"


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize(("wish", "device"), [("host", CPU), ("host", CUDA), ("device", CUDA)])
def test_a_wish_is_granted_however_little_room_there_is(room, wish, device, cached):
    room(host=1, device=1)
    assert choose(wish, 1000, device, 1, cached) == wish
    assert choose("mapped", 1, device, 1, True) == "mapped"


@pytest.mark.parametrize(
    ("world", "spare", "home"), [(1, 0, "copied"), (1, -1, "mapped"), (4, 0, "copied"), (4, -1, "mapped")]
)
@pytest.mark.parametrize("extra", [(), ("test",)])
def test_the_size_is_that_of_all_parts_on_all_ranks(tmp_path, room, world, spare, home, extra):
    room(host=2 * world * SIZE * (1 + len(extra)) + spare)
    data = DataModule(lambda: album(tmp_path, extra=extra), 8, val=0.2, test=0.25)
    data.attach(trainer_of(world=world))
    data.prepare_data()
    data.setup()
    told = {"copied": "in the host's memory", "mapped": f"mapped from disk, {tmp_path}"}
    assert data.describe()["memory"] == told[home]
    assert held_in(data) == {home}


@pytest.mark.parametrize("where", ["auto", "host", "mapped"])
def test_the_description_says_where_they_lie(tmp_path, where):
    told = ready(partial(album, tmp_path), 8, val=0.2, memory=where).describe()
    expected = f"mapped from disk, {tmp_path}" if where == "mapped" else "in the host's memory"
    counts = {"train": 48, "val": 12, "test": 0}
    assert told == {"name": "album", "samples": counts, "memory": expected, "cache": str(tmp_path)}


@pytest.mark.parametrize("where", ["auto", "device"])
def test_the_description_names_the_device(room, monkeypatch, where):
    """Without the device: nothing is moved."""
    room(host=1000, device=10**6)  # of which a batch takes 64
    moved = []
    monkeypatch.setattr(datamodule, "settle", lambda part, home, device: moved.append((home, device)) or part)
    data = DataModule(points, 8, val=5, memory=where)
    data.attach(SimpleNamespace(**{**vars(trainer_of()), "strategy": SimpleNamespace(root_device=CUDA)}))
    data.setup()
    assert data.describe()["memory"] == "in the memory of cuda:1"
    assert moved == [("device", CUDA)] * 2


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("device", "data.memory=device: this run is on cpu; expected auto, host or mapped"),
        ("mapped", "data.memory=mapped: these data have no cache on disk; expected auto or host"),
    ],
)
@pytest.mark.parametrize(("source", "options"), [(points, {}), (adding, {"length": 5, "samples": 8, "fresh": False})])
def test_impossible_memory_is_refused_in_one_line(where, words, source, options):
    with pytest.raises(UserError) as refused:
        ready(source, 8, memory=where, **options)
    assert str(refused.value) == words


def test_free_memory_is_some_of_what_there_is():
    assert 0 < free() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    ("meminfo", "limit", "expected"),
    [
        ("MemTotal: 9 kB\nMemAvailable:    5 kB\nMemFree: 1 kB\n", "max\n", 5 * 1024),
        ("MemTotal: 9 kB\nMemAvailable:    5 kB\n", "3000\n", 3000),
        ("MemTotal: 9 kB\nMemAvailable:    5 kB\n", f"{10**18}\n", 5 * 1024),
        ("MemTotal: 9 kB\n", "3000", 3000),
        ("MemTotal: 9 kB\n", None, None),
        ("MemAvailable: many kB\n", "", None),
        (None, "3000", 3000),
        (None, None, None),
    ],
)
def test_the_system_and_the_container_say_what_is_free(tmp_path, monkeypatch, meminfo, limit, expected):
    for name, content in (("meminfo", meminfo), ("memory.max", limit)):
        if content is not None:
            (tmp_path / name).write_text(content)
    monkeypatch.setattr(memory, "Path", lambda path: tmp_path / Path(path).name)
    assert free() == (expected or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def test_on_the_host_nothing_is_carried():
    x = torch.arange(3)
    assert Courier(CPU)(x) is x
