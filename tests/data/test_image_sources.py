"""CIFAR-10, the choice of `auto`, shapes and image folders, from files that the tests write. Nothing is downloaded."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import pickle
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.datasets import CIFAR10

from gradflow import runs
from gradflow.config import build
from gradflow.data.datamodule import DataModule
from gradflow.data.sources import auto, cifar10, image_folder, sequential_cifar10, shape_masks, shapes
from gradflow.runs.errors import UserError
from gradflow.spec import Spec

ARCHIVE = "cifar-10-python.tar.gz"
UNPACKED = "cifar-10-batches-py"
FILES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
CHILD = """
import os, time

def sleeps(folder, result):
    time.sleep(60)

def dies(folder, result):
    os._exit(3)

def answers(folder, result):
    result.send(f"no route from {folder.name}")
"""


def content(file: int) -> tuple[np.ndarray, list[int]]:
    """Four images and labels of one of the six files."""
    source = np.random.default_rng(file)
    return source.integers(0, 256, (4, 3072), dtype=np.uint8), source.integers(0, 10, 4).tolist()


def pickled(entry: dict) -> bytes:
    """As Python 2 wrote them: with 0 and 1 where numpy's dtypes have False and True today."""
    return pickle.dumps(entry, protocol=2).replace(b"\x89\x88\x87", b"K\x00K\x01\x87")


def expected(files) -> tuple[torch.Tensor, torch.Tensor]:
    parts = [content(file) for file in files]
    images = np.concatenate([rows for rows, _ in parts]).reshape(-1, 3, 32, 32)
    return torch.from_numpy(images), torch.tensor([label for _, labels in parts for label in labels])


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def written(tmp_path, monkeypatch) -> Path:
    """A folder with an archive in torchvision's format, and its checksums in the place of the real ones."""
    home, batches = tmp_path / "written", tmp_path / "written" / UNPACKED
    batches.mkdir(parents=True)
    for file, name in enumerate(FILES):
        rows, labels = content(file)
        (batches / name).write_bytes(pickled({"data": rows, "labels": labels}))
    (batches / "batches.meta").write_bytes(pickled({"label_names": list("abcdefghij")}))
    with tarfile.open(home / ARCHIVE, "w:gz") as archive:
        archive.add(batches, UNPACKED)
    shutil.rmtree(batches)
    with tarfile.open(home / ARCHIVE) as archive:
        sums = {
            entry.name: hashlib.md5(archive.extractfile(entry).read()).hexdigest()
            for entry in archive
            if entry.isfile()
        }
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(home / ARCHIVE))
    monkeypatch.setattr(CIFAR10, "train_list", [[name, sums[f"{UNPACKED}/{name}"]] for name in FILES[:5]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums[f"{UNPACKED}/test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": sums[f"{UNPACKED}/batches.meta"]})
    return home


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """No test downloads: an attempt is answered as a machine without a network would."""
    monkeypatch.setattr(cifar10, "fetch", lambda folder, deadline=None: "no network here")


@pytest.fixture
def real_fetch(monkeypatch, tmp_path):
    """`fetch` as it is, with the named function of a tiny module as what its process does."""
    (tmp_path / "download_stand_in.py").write_text(CHILD)
    monkeypatch.syspath_prepend(str(tmp_path))
    import download_stand_in

    def call(name: str, deadline: float | None):
        monkeypatch.setattr(cifar10, "download", getattr(download_stand_in, name))
        return FETCH(tmp_path / "data", deadline)

    return call


FETCH = cifar10.fetch


def left_in(home: Path) -> list[str]:
    """What a cache's folder holds beside locks and listings: finished parts and drafts."""
    return sorted(path.name for path in home.glob("*") if path.suffix not in (".lock", ".json"))


def cached_names() -> list[str]:
    return [f"cifar10-{CIFAR10.tgz_md5[:8]}-{split}" for split in ("test", "train")]


def same(split, other) -> bool:
    return all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(split, other, strict=True))


def whole(source):
    source.prepare()
    return source.load()


def test_cifar10_from_its_archive(written):
    source = cifar10.cifar10(str(written))
    assert source.spec == Spec("image", (3, 32, 32), "classification", outputs=10)
    splits = whole(source)
    assert sorted(splits) == ["test", "train"]
    assert same(splits["train"], expected(range(5)))
    assert same(splits["test"], expected([5]))
    cache = os.path.relpath(written / ".gradflow")
    assert source.origin() == {"archive": ARCHIVE, "md5": CIFAR10.tgz_md5, "cache": cache}
    assert left_in(written / ".gradflow") == cached_names()


def test_cifar10_from_the_unpacked_files_alone(written, tmp_path):
    whole(cifar10.cifar10(str(written)))
    (written / ARCHIVE).unlink()
    again = whole(cifar10.cifar10(str(written), str(tmp_path / "again")))  # where nothing is cached
    assert same(again["train"], expected(range(5)))


def test_cifar10_unpacks_again_what_was_damaged(written, tmp_path):
    whole(cifar10.cifar10(str(written)))
    (written / UNPACKED / "data_batch_3").write_bytes(b"half")
    again = whole(cifar10.cifar10(str(written), str(tmp_path / "again")))
    assert same(again["train"], expected(range(5)))


def altered(raw: bytes) -> bytes:
    middle = len(raw) // 2
    return raw[:middle] + bytes([raw[middle] ^ 1]) + raw[middle + 1 :]


@pytest.mark.parametrize("damage", [lambda raw: raw[:-100], lambda raw: b"", altered])
def test_a_truncated_or_altered_archive_is_named(written, damage):
    archive = written / ARCHIVE
    archive.write_bytes(damage(archive.read_bytes()))
    with pytest.raises(UserError, match=f"^{archive.resolve()} is truncated or altered .*: remove it$"):
        DataModule(cifar10.cifar10, 2, root=str(written)).prepare_data()
    assert not (written / UNPACKED).exists()
    assert left_in(written / ".gradflow") == []


def test_absent_and_not_to_be_had(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path}.*no network here.*{ARCHIVE}.*data=shapes"):
        cifar10.cifar10(str(tmp_path)).prepare()
    assert left_in(tmp_path / ".gradflow") == []


def never(*arguments, **options) -> None:
    raise AssertionError("not again")


def test_cifar10_is_unpickled_and_checked_once(written, monkeypatch):
    cifar10.cifar10(str(written)).prepare()
    for place, name in ((pickle, "load"), (CIFAR10, "__init__"), (hashlib, "md5")):
        monkeypatch.setattr(place, name, never)
    splits = whole(cifar10.cifar10(str(written)))
    assert same(splits["train"], expected(range(5)))
    assert same(splits["test"], expected([5]))


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"half")])
def test_the_cache_serves_without_the_archive(written, damage):
    cifar10.cifar10(str(written)).prepare()
    damage(written / ARCHIVE)
    shutil.rmtree(written / UNPACKED)
    assert same(whole(cifar10.cifar10(str(written)))["train"], expected(range(5)))


def test_the_cache_of_another_archive_is_not_used(written, monkeypatch):
    cifar10.cifar10(str(written)).prepare()
    monkeypatch.setattr(CIFAR10, "tgz_md5", "0" * 32)
    shutil.rmtree(written / UNPACKED)
    with pytest.raises(UserError, match=r"its MD5 is not 0000"):
        cifar10.cifar10(str(written)).prepare()


def test_half_of_the_cache_is_completed(written):
    """As after a run that was stopped between the two splits."""
    cifar10.cifar10(str(written)).prepare()
    shutil.rmtree(written / ".gradflow" / cached_names()[0])
    assert same(whole(cifar10.cifar10(str(written)))["test"], expected([5]))
    assert left_in(written / ".gradflow") == cached_names()


def test_one_archive_is_unpacked_for_two_caches_in_turn(written, tmp_path, monkeypatch):
    on_disk, busy, most = cifar10.on_disk, [], []

    def slow(folder: Path) -> bool:
        busy.append(folder)
        most.append(len(busy))
        time.sleep(0.1)
        done = on_disk(folder)
        busy.pop()
        return done

    monkeypatch.setattr(cifar10, "on_disk", slow)
    sources = [cifar10.cifar10(str(written), str(tmp_path / name)) for name in ("one", "two")]
    threads = [threading.Thread(target=source.prepare) for source in sources]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1}
    assert all(same(source.load()["train"], expected(range(5))) for source in sources)


def contents_of(root: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in (root, *root.rglob("*"))}


def kinds(written: Path, folder: Path) -> dict:
    """The sources that cache: the function, its options, the first part to be written."""
    return {
        "cifar10": (cifar10.cifar10, {"root": str(written)}, "cifar10-"),
        "sequential_cifar10": (sequential_cifar10.sequential_cifar10, {"root": str(written)}, "cifar10-"),
        "image_folder": (image_folder.image_folder, {"root": str(folder), "size": 128, "channels": 3}, "train-128x3-"),
    }


@pytest.mark.parametrize("kind", ["cifar10", "sequential_cifar10", "image_folder"])
def test_nothing_is_written_to_root_with_another_cache(written, folder, tmp_path, kind):
    """As when root can only be read."""
    source, options, _ = kinds(written, folder)[kind]
    reference = whole(source(**options, cache=str(tmp_path / "first")))  # unpacks the archive
    before = contents_of(Path(options["root"]))
    again = source(**options, cache=str(tmp_path / "deep" / "second"))
    for name, split in whole(again).items():
        assert same(split, reference[name])
    assert contents_of(Path(options["root"])) == before
    assert again.origin()["cache"] == os.path.relpath(tmp_path / "deep" / "second")
    assert left_in(tmp_path / "deep" / "second") == left_in(tmp_path / "first") != []


@pytest.mark.parametrize("kind", ["cifar10", "image_folder"])
def test_where_no_cache_can_be_made_the_line_names_both_keys(written, folder, tmp_path, kind):
    source, options, _ = kinds(written, folder)[kind]
    (Path(options["root"]) / ".gradflow").write_text("a file")
    with pytest.raises(
        UserError, match=r"^.*/\.gradflow: .*; give data\.root=… or data\.cache=… a folder to write to.*$"
    ):
        DataModule(source, 2, **options).prepare_data()
    DataModule(source, 2, **options, cache=str(tmp_path / "elsewhere")).prepare_data()
    assert len(left_in(tmp_path / "elsewhere")) == 2


@contextmanager
def files_of_at_most(size: int):
    """What the system refuses then is refused as on a full disk: in the middle of a write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("kind", ["cifar10", "image_folder"])
def test_a_full_disk_leaves_nothing_and_is_told_in_a_line(written, folder, kind):
    source, options, first = kinds(written, folder)[kind]
    home = Path(options["root"]) / ".gradflow"
    data = DataModule(source, 2, **options)
    with files_of_at_most(40_000), pytest.raises(UserError) as caught:
        data.prepare_data()
    assert re.fullmatch(rf"{home}/{first}\S+: File too large; give .* or data\.cache=… .*", str(caught.value))
    assert left_in(home) == []
    data.prepare_data()
    assert len(left_in(home)) == 2
    assert len(data.source.load()["train"][1]) == {"cifar10": 20, "image_folder": 6}[kind]


def downloaded(folder: Path):
    """What `download` reports, and the timeout of sockets that it set."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    before = socket.getdefaulttimeout()
    try:
        cifar10.download(folder, sender)
        return receiver.recv(), socket.getdefaulttimeout()
    finally:
        socket.setdefaulttimeout(before)


def test_a_download_arrives_whole_and_is_unpacked(written, tmp_path, monkeypatch):
    folder = tmp_path / "data"
    folder.mkdir()

    def copy(url, root, filename, checksum):
        assert url == CIFAR10.url
        assert checksum == md5(written / ARCHIVE)
        assert not list(folder.iterdir())  # what an earlier attempt left is gone
        shutil.copy(written / ARCHIVE, Path(root) / filename)
        assert not (folder / ARCHIVE).exists()  # the name appears when the file is complete

    (folder / f".{ARCHIVE}.part").write_text("from before")
    monkeypatch.setattr(cifar10, "download_url", copy)
    assert downloaded(folder) == (None, 20.0)
    assert md5(folder / ARCHIVE) == CIFAR10.tgz_md5
    assert same(whole(cifar10.cifar10(str(folder)))["test"], expected([5]))


@pytest.mark.parametrize("error", [OSError("unreachable"), RuntimeError("File not found or corrupted.")])
def test_a_broken_download_leaves_no_archive(tmp_path, monkeypatch, error):
    def fail(url, root, filename, checksum):
        (Path(root) / filename).write_text("half")
        raise error

    monkeypatch.setattr(cifar10, "download_url", fail)
    assert downloaded(tmp_path)[0] == str(error)
    assert not (tmp_path / ARCHIVE).exists()
    assert cifar10.on_disk(tmp_path) is False


def test_a_download_is_stopped_at_its_deadline(real_fetch):
    assert real_fetch("sleeps", 1.0) == "it did not arrive within 1 s"
    assert not multiprocessing.active_children()


def test_a_download_that_dies_or_fails_says_how(real_fetch):
    assert real_fetch("dies", None) == "the download ended with status 3"
    assert real_fetch("answers", 30.0) == "no route from data"


@pytest.fixture
def small_shapes(monkeypatch):
    """`auto` with a set of shapes that costs little."""
    small = shapes.shapes
    monkeypatch.setattr(shapes, "shapes", lambda size, channels: small(size=16, channels=channels))


def run_folder(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def test_weights_from_elsewhere_say_nothing_about_the_data(tmp_path, written):
    run, weights = run_folder(tmp_path / "run"), tmp_path / "weights.ckpt"
    weights.touch()
    auto.auto(str(written), str(run), str(weights)).prepare()
    assert runs.read_json(run / runs.DATASET)["name"] == "cifar10"


def test_a_resumed_run_goes_on_with_what_it_began_with(tmp_path, written):
    """Although CIFAR-10 is there by now."""
    first, second = (run_folder(tmp_path / name) for name in ("first", "second"))
    (first / ".hydra").mkdir(exist_ok=True)
    (first / ".hydra" / "overrides.yaml").write_text("[]\n")
    runs.write_json(first / runs.DATASET, {"name": "shapes", "reason": "it was so"})
    auto.auto(str(written), str(second), str(first)).prepare()
    assert runs.read_json(second / runs.DATASET) == {"name": "shapes", "reason": "it was so"}


def test_auto_takes_cifar10_where_it_is(written, tmp_path, capsys):
    run = run_folder(tmp_path / "run")
    source = auto.auto(str(written), str(run))
    assert source.spec == cifar10.SPEC
    assert same(whole(source)["train"], expected(range(5)))
    record = json.loads((run / "dataset.json").read_text())
    assert record["name"] == "cifar10"
    assert str(written.resolve()) in record["reason"]
    cache = os.path.relpath(written / ".gradflow")
    facts = {"archive": ARCHIVE, "md5": CIFAR10.tgz_md5, "cache": cache}
    assert source.origin() == {**facts, "chosen_by": "data=auto", **record}
    assert "!!!" not in capsys.readouterr().err


def test_auto_caches_where_it_is_told(written, tmp_path):
    source = auto.auto(str(written), str(run_folder(tmp_path / "run")), cache=str(tmp_path / "decoded"))
    assert same(whole(source)["train"], expected(range(5)))
    assert left_in(tmp_path / "decoded") == cached_names()
    assert source.origin()["cache"] == os.path.relpath(tmp_path / "decoded")
    assert not (written / ".gradflow").exists()


QUIET = ("trainer=cpu", "logger=none", "callbacks.progress=null", "debug=fast", "data.batch_size=4")


@pytest.mark.parametrize(
    ("words", "memory"),
    [((), "in the host's memory"), (("data.memory=mapped",), "mapped from disk, decoded")],
)
def test_a_run_of_auto_says_where_its_data_lie(written, trained, words, memory):
    run = trained("model=mlp", "model.width=8", f"data.root={written}", "data.cache=decoded", *words, *QUIET)
    facts = runs.read_json(run / runs.SUMMARY)
    assert facts["status"] == "finished"
    assert facts["data"]["name"] == "cifar10"
    assert facts["data"]["chosen_by"] == "data=auto"
    assert facts["data"]["memory"] == memory
    assert facts["data"]["cache"] == "decoded"
    assert facts["data"]["samples"] == {"train": 18, "val": 2, "test": 4}
    assert left_in(run.parents[2] / "decoded") == cached_names()
    shutil.rmtree(written)  # the run is scored from the cache
    trained(f"run={run}", "accelerator=cpu", program="eval")
    assert set(runs.read_json(run / runs.SCORES)["best on test"]) == {"loss/test", "accuracy/test"}


def test_sequential_cifar10_reads_the_image_like_a_page(written):
    source = sequential_cifar10.sequential_cifar10(str(written))
    assert source.spec == Spec("sequence", (1024, 3), "classification", outputs=10)
    assert source.name == "sequential_cifar10"
    splits, images = whole(source), whole(cifar10.cifar10(str(written)))
    assert sorted(splits) == ["test", "train"]
    for split, (x, y) in splits.items():
        assert x.dtype == torch.uint8
        assert x.shape == (len(y), 1024, 3)
        assert torch.equal(y, images[split][1])
        for step in (0, 1, 31, 32, 500, 1023):
            assert torch.equal(x[:, step], images[split][0][:, :, step // 32, step % 32])
    assert source.origin() == cifar10.cifar10(str(written)).origin()
    assert left_in(written / ".gradflow") == cached_names()  # the two share a cache


@pytest.mark.parametrize("memory", ["host", "mapped"])
def test_batches_of_sequences_have_normal_colours(written, memory):
    data = DataModule(sequential_cifar10.sequential_cifar10, 20, root=str(written), memory=memory)
    data.prepare_data()
    data.setup()
    ((x, _),) = data.train_dataloader()
    assert x.shape == (20, 1024, 3)
    assert x.dtype == torch.float32
    assert x.mean((0, 1)).abs().max() < 1e-5
    assert (x.std((0, 1), correction=0) - 1).abs().max() < 1e-5


def test_a_recurrent_network_takes_pixels_or_rows(written, trained):
    parameters = {}
    for data in ("cifar10", "sequential_cifar10"):
        run = trained("model=lstm", "model.hidden=4", f"data={data}", f"data.root={written}", *QUIET)
        facts = runs.read_json(run / runs.SUMMARY)
        assert (facts["status"], facts["steps"]) == ("finished", 3)
        assert facts["data"]["name"] == data
        parameters[data] = facts["parameters"]
    assert parameters["cifar10"] - parameters["sequential_cifar10"] == 4 * 4 * (3 * 32 - 3)  # four gates of 4 units


def test_auto_takes_what_can_be_fetched(written, tmp_path, monkeypatch):
    root = tmp_path / "data"
    asked = []

    def fetch(folder: Path, deadline: float) -> None:
        asked.append(deadline)
        shutil.copy(written / ARCHIVE, folder)

    monkeypatch.setattr(cifar10, "fetch", fetch)
    run = run_folder(tmp_path / "run")
    auto.auto(str(root), str(run)).prepare()
    assert asked == [60.0]
    assert json.loads((run / "dataset.json").read_text()) == {"name": "cifar10", "reason": f"it was fetched to {root}"}


def test_auto_falls_back_loudly_and_stays_with_it(small_shapes, written, tmp_path, capsys):
    root, run = tmp_path / "data", run_folder(tmp_path / "run")
    source = auto.auto(str(root), str(run))
    train = whole(source)["train"]
    error = capsys.readouterr().err
    (line,) = [line for line in error.splitlines() if line.startswith("data=auto")]
    assert "'shapes', NOT CIFAR-10" in line
    assert str(root) in line
    assert "no network here" in line
    assert source.origin()["name"] == "shapes"
    assert source.origin()["chosen_by"] == "data=auto"
    shutil.copy(written / ARCHIVE, root)  # CIFAR-10 appears meanwhile
    again = auto.auto(str(root), str(run))
    assert same(whole(again)["train"], train)
    assert again.origin() == source.origin()
    assert "!!!" not in capsys.readouterr().err  # said once
    assert json.loads((run / "dataset.json").read_text())["name"] == "shapes"


def test_auto_says_that_an_archive_is_truncated(small_shapes, written, tmp_path, capsys):
    (written / ARCHIVE).write_bytes(b"half")
    auto.auto(str(written), str(run_folder(tmp_path / "run"))).prepare()
    assert f"{written / ARCHIVE} is truncated" in capsys.readouterr().err


def test_jobs_of_a_sweep_share_the_choice(small_shapes, written, tmp_path):
    sweep, root = tmp_path / "sweep", tmp_path / "data"
    first, second = run_folder(sweep / "0"), run_folder(sweep / "1")
    (sweep / "multirun.yaml").touch()
    auto.auto(str(root), str(first)).prepare()
    shutil.copy(written / ARCHIVE, root)
    source = auto.auto(str(root), str(second))
    source.prepare()
    assert source.origin()["name"] == "shapes"
    assert sorted(path.name for path in sweep.glob("**/dataset.json")) == ["dataset.json"]
    assert (sweep / "dataset.json").is_file()
    alone = auto.auto(str(root), str(run_folder(tmp_path / "another")))
    alone.prepare()
    assert alone.origin()["name"] == "cifar10"


def test_a_recorded_choice_whose_data_are_gone_is_a_mistake(written, tmp_path):
    """As on a second machine of a sweep, which has the record but not the first machine's disk."""
    run = run_folder(tmp_path / "run")
    runs.write_json(run / "dataset.json", {"name": "cifar10", "reason": "it was there"})
    with pytest.raises(UserError, match=ARCHIVE):
        whole(auto.auto(str(tmp_path / "empty"), str(run)))


@pytest.fixture(scope="module")
def all_shapes():
    return shapes.shapes(size=32, channels=3).load()


def test_shapes_are_balanced_images(all_shapes):
    assert shapes.shapes(size=32, channels=3).spec == Spec("image", (3, 32, 32), "classification", outputs=10)
    assert sorted(all_shapes) == ["test", "train"]
    for x, y in all_shapes.values():
        assert x.shape == (len(y), 3, 32, 32)
        assert x.dtype == torch.uint8
        assert y.dtype == torch.int64
        assert y.bincount().tolist() == [len(y) // 10] * 10
        assert y[:100].unique().tolist() == list(range(10))  # not sorted by class
    assert [len(all_shapes[split][1]) for split in ("train", "test")] == [10_000, 2_000]


def test_no_two_shapes_are_alike(all_shapes):
    everything = torch.cat([x.flatten(1) for x, _ in all_shapes.values()]).numpy()
    assert len({row.tobytes() for row in everything}) == len(everything)


@pytest.mark.parametrize(("size", "channels"), [(15, 3), (65, 3), (32, 2), (32, 0)])
def test_shapes_refuse_impossible_sizes(size, channels):
    with pytest.raises(UserError, match=rf"data\.size={size}, data\.channels={channels}"):
        shapes.shapes(size=size, channels=channels)


@pytest.mark.parametrize(("size", "channels"), [(16, 1), (17, 3)])
def test_shapes_come_in_sizes_and_are_always_the_same(size, channels):
    source = shapes.shapes(size=size, channels=channels)
    assert source.spec == Spec("image", (channels, size, size), "classification", outputs=10)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = source.load()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    again = source.load()
    for split, data in first.items():
        assert data[0].shape == (len(data[1]), channels, size, size)
        assert same(data, again[split])


SIDES = {"cat": (20, 13), "ant": (9, 30), "bee": (16, 16)}


def paint(path: Path, seed: int, width: int = 16, height: int = 16, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(path)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three classes of uneven images in three formats; two in each, one of each in test/."""
    root = tmp_path / "images"
    for seed, (name, sides) in enumerate(SIDES.items()):
        paint(root / "train" / name / "a.png", seed, *sides)
        paint(root / "train" / name / "b.JPG", 10 + seed, *reversed(sides), mode="L")
        paint(root / "test" / name / "c.jpeg", 20 + seed, *sides)
    (root / "train" / "cat" / "notes.txt").write_text("no image")
    return root


def by_pillow(path: Path, size: int, mode: str) -> torch.Tensor:
    square = ImageOps.fit(Image.open(path).convert(mode), (size, size), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(square))
    return pixels[None] if mode == "L" else pixels.permute(2, 0, 1)


@pytest.mark.parametrize(("channels", "mode"), [(3, "RGB"), (1, "L")])
@pytest.mark.parametrize("size", [1, 8, 24])
def test_folders_hold_what_pillow_sees(folder, size, channels, mode):
    source = image_folder.image_folder(str(folder), size, channels)
    assert source.spec == Spec("image", (channels, size, size), "classification", outputs=3)
    splits = whole(source)
    assert sorted(splits) == ["test", "train"]
    for split, names in (("train", ("a.png", "b.JPG")), ("test", ("c.jpeg",))):
        files = [folder / split / label / name for label in ("ant", "bee", "cat") for name in names]
        x, y = splits[split]
        assert x.dtype == torch.uint8
        assert torch.equal(x, torch.stack([by_pillow(file, size, mode) for file in files]))
        assert torch.equal(y, torch.arange(3).repeat_interleave(len(names)))
    assert source.origin()["classes"] == ["ant", "bee", "cat"]


@pytest.mark.parametrize("mode", ["RGBA", "P", "1", "CMYK"])
def test_other_kinds_of_images(folder, mode):
    name = "d.jpg" if mode == "CMYK" else "d.png"
    paint(folder / "train" / "ant" / name, 5, mode=mode)
    x, _ = whole(image_folder.image_folder(str(folder), 16, 3))["train"]
    assert torch.equal(x[2], by_pillow(folder / "train" / "ant" / name, 16, "RGB"))


@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_16_bits_keep_their_greys(folder, channels):
    """Pillow's own conversion cuts at 255, which makes nearly every such image white."""
    greys = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    Image.fromarray(greys).save(folder / "train" / "ant" / "d.png")
    x, _ = whole(image_folder.image_folder(str(folder), 16, channels))["train"]
    assert (x[2].flatten(1) - torch.arange(256)).abs().max() <= 1


def forbid_decoding(monkeypatch) -> None:
    monkeypatch.setattr(image_folder, "decode", never)


def test_the_cache_is_used(folder, monkeypatch):
    first = whole(image_folder.image_folder(str(folder), 8, 3))
    (test, train) = left_in(folder / ".gradflow")  # and no draft
    assert (test[:9], train[:10]) == ("test-8x3-", "train-8x3-")
    kept = sorted(path.name for path in (folder / ".gradflow" / train).iterdir())
    assert kept == ["checksums.json", "x.npy", "y.npy"]
    forbid_decoding(monkeypatch)
    again = whole(image_folder.image_folder(str(folder), 8, 3))
    assert all(same(first[split], again[split]) for split in ("train", "test"))
    for size, channels in ((9, 3), (8, 1)):
        with pytest.raises(AssertionError, match="not again"):
            image_folder.image_folder(str(folder), size, channels).prepare()


def replace(path: Path) -> None:
    paint(path, 99, *SIDES["ant"])


def touch(path: Path) -> None:
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1000))


def lengthen(path: Path) -> None:
    before = path.stat()
    path.write_bytes(path.read_bytes() + b"more")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("change", [replace, lengthen, Path.unlink, lambda path: path.rename(path.with_name("aa.png"))])
def test_the_cache_is_made_again_when_a_file_changes(folder, monkeypatch, change):
    image_folder.image_folder(str(folder), 8, 3).prepare()
    change(folder / "train" / "ant" / "a.png")
    forbid_decoding(monkeypatch)
    with pytest.raises(AssertionError, match="not again"):
        image_folder.image_folder(str(folder), 8, 3).prepare()


def rewrite(path: Path) -> None:
    path.with_name("copy").write_bytes(path.read_bytes())
    path.with_name("copy").replace(path)


@pytest.mark.parametrize("change", [touch, rewrite])
def test_a_file_whose_contents_stay_is_not_decoded_again(folder, monkeypatch, change):
    first = whole(image_folder.image_folder(str(folder), 8, 3))
    change(folder / "train" / "ant" / "a.png")
    forbid_decoding(monkeypatch)
    assert same(whole(image_folder.image_folder(str(folder), 8, 3))["train"], first["train"])
    monkeypatch.setattr(image_folder, "digest_of", never)  # the second time the listing is known, too
    assert same(whole(image_folder.image_folder(str(folder), 8, 3))["train"], first["train"])


@pytest.mark.parametrize("change", [touch, replace, lambda path: paint(path.with_name("d.png"), 3)])
def test_files_are_read_again_when_a_name_a_size_or_a_time_changes(folder, monkeypatch, change):
    image_folder.image_folder(str(folder), 8, 3).prepare()
    change(folder / "train" / "ant" / "a.png")
    read = []
    digest_of = image_folder.digest_of
    monkeypatch.setattr(image_folder, "digest_of", lambda path: read.append(path) or digest_of(path))
    image_folder.image_folder(str(folder), 8, 3).prepare()
    assert {path.parents[1].name for path in read} == {"train"}  # those of the other split are known
    assert len(read) == len(image_folder.files_of(folder / "train"))


def test_a_changed_file_is_shown(folder):
    before = whole(image_folder.image_folder(str(folder), 8, 3))
    replace(folder / "train" / "ant" / "a.png")
    after = whole(image_folder.image_folder(str(folder), 8, 3))
    assert torch.equal(after["train"][0][0], by_pillow(folder / "train" / "ant" / "a.png", 8, "RGB"))
    assert torch.equal(before["train"][0][1:], after["train"][0][1:])
    assert same(before["test"], after["test"])


def test_swapped_files_of_one_size_are_seen(folder):
    files = [folder / "train" / "bee" / name for name in ("a.png", "c.png")]
    for seed, file in enumerate(files):
        paint(file, seed, 16, 16)
    size = max(file.stat().st_size for file in files)
    for moment, file in enumerate(files):
        file.write_bytes(file.read_bytes().ljust(size, b"\0"))
        os.utime(file, ns=(1, moment))
    rows = [2, 4]  # a.png, b.JPG and c.png of bee come after two of ant
    before = whole(image_folder.image_folder(str(folder), 8, 3))["train"][0][rows]
    files[0].rename(folder / "kept")
    files[1].rename(files[0])
    (folder / "kept").rename(files[1])  # renaming keeps the times
    after = whole(image_folder.image_folder(str(folder), 8, 3))["train"][0][rows]
    assert torch.equal(after, before.flip(0))
    assert not torch.equal(after, before)


def test_a_run_loads_what_it_prepared(folder):
    """Although a file comes meanwhile."""
    source = image_folder.image_folder(str(folder), 8, 3)
    source.prepare()
    paint(folder / "train" / "ant" / "d.png", 7)
    assert len(source.load()["train"][1]) == 6
    assert len(whole(image_folder.image_folder(str(folder), 8, 3))["train"][1]) == 7


def test_the_same_images_elsewhere_are_decoded_once(folder, tmp_path, monkeypatch):
    cache = str(tmp_path / "cache")
    first = whole(image_folder.image_folder(str(folder), 8, 3, cache))
    shutil.copytree(folder, tmp_path / "copy")
    forbid_decoding(monkeypatch)
    again = image_folder.image_folder(str(tmp_path / "copy"), 8, 3, cache)
    assert all(same(split, first[name]) for name, split in whole(again).items())
    assert len(left_in(Path(cache))) == 2
    assert not (folder / ".gradflow").exists()


@pytest.mark.parametrize("names", [("ant/a.png", "ant/aa.png"), ("ant", "asp")])
def test_a_new_name_is_a_new_key(flat, monkeypatch, names):
    """Even if, as here, the tensors stay as they were."""
    before = whole(image_folder.image_folder(str(flat), 8, 3))["train"]
    old, new = (flat / name for name in names)
    old.rename(new)
    with monkeypatch.context() as patch:
        forbid_decoding(patch)
        with pytest.raises(AssertionError, match="not again"):
            image_folder.image_folder(str(flat), 8, 3).prepare()
    assert same(whole(image_folder.image_folder(str(flat), 8, 3))["train"], before)
    assert len(left_in(flat / ".gradflow")) == 2


COUNTS = {"ant": 8, "bee": 8, "cat": 4}


@pytest.fixture
def flat(tmp_path) -> Path:
    """Class folders and nothing else, but for a hidden folder."""
    root = tmp_path / "flat"
    for seed, (name, count) in enumerate(COUNTS.items()):
        for number in range(count):
            paint(root / name / f"{'abcdefgh'[number]}.png", 10 * seed + number)
    paint(root / ".thumbnails" / "a.png", 0)
    return root


def test_class_folders_in_root_are_all_for_training(flat):
    for _ in range(2):  # .gradflow is there the second time, and is no class
        source = image_folder.image_folder(str(flat), 8, 3)
        assert source.spec.outputs == 3
        assert source.origin()["classes"] == ["ant", "bee", "cat"]
        splits = whole(source)
        assert sorted(splits) == ["train"]
        x, y = splits["train"]
        assert y.bincount().tolist() == [8, 8, 4]
        assert torch.equal(x[8], by_pillow(flat / "bee" / "a.png", 8, "RGB"))
        assert torch.equal(x[19], by_pillow(flat / "cat" / "d.png", 8, "RGB"))


@pytest.mark.parametrize("name", ["test", "val"])
def test_without_train_every_folder_is_a_class(flat, name):
    (flat / "cat").rename(flat / name)
    source = image_folder.image_folder(str(flat), 8, 3)
    assert source.origin()["classes"] == ["ant", "bee", name]
    assert {split: len(y) for split, (_, y) in whole(source).items()} == {"train": 20}


def test_the_configuration_holds_out_a_tenth_of_class_folders(flat, composed):
    data = build.data(composed("data=image_folder", f"data.root={flat}", "data.size=8", "data.batch_size=2"))
    data.prepare_data()
    data.setup()
    assert data.sizes == {"train": 16, "val": 2, "test": 2}


def rows_of(part) -> set[bytes]:
    return {row.numpy().tobytes() for row in part.take("x", slice(None))}


def test_the_test_is_held_out_of_class_folders_in_root(flat):
    held = []
    for seed in (0, 1):
        options = {"root": str(flat), "size": 8, "channels": 3}
        data = DataModule(image_folder.image_folder, 2, seed=seed, val=0.2, test=0.25, **options)
        data.prepare_data()
        data.setup()
        assert {name: part.y.bincount().tolist() for name, part in data.splits.items()} == {
            "train": [5, 5, 2],
            "val": [1, 1, 1],
            "test": [2, 2, 1],
        }
        held.append({name: rows_of(part) for name, part in data.splits.items()})
        assert len(set.union(*held[-1].values())) == 20  # each image is in one of them
    assert held[0]["test"] == held[1]["test"]  # the same in every run
    assert held[0]["val"] != held[1]["val"]


def test_a_folder_with_train_is_not_taken_for_classes(folder):
    paint(folder / "other" / "a.png", 0)
    assert image_folder.image_folder(str(folder), 8, 3).origin()["classes"] == ["ant", "bee", "cat"]


KILLED = """
import os, signal, sys
from gradflow.data.sources import image_folder

decode, seen = image_folder.pixels, []

def pixels(path, size, channels):
    seen.append(path)
    if len(seen) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return decode(path, size, channels)

image_folder.pixels, image_folder.AHEAD = pixels, 2
image_folder.image_folder(sys.argv[1], 128, 3).prepare()
"""


CHILDS = {**os.environ, "PYTHONPATH": str(Path(image_folder.__file__).parents[3])}
PIPES = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)


def test_what_a_killed_process_left_is_not_used(folder):
    done = subprocess.run([sys.executable, "-c", KILLED, folder], env=CHILDS, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL
    (draft,) = left_in(folder / ".gradflow")
    assert re.fullmatch(r"\.train-128x3-\w+\.draft", draft)
    half = (folder / ".gradflow" / draft / "x.npy").stat().st_size
    assert 2 * 3 * 128 * 128 < half < 6 * 3 * 128 * 128
    x, y = whole(image_folder.image_folder(str(folder), 128, 3))["train"]
    files = [folder / "train" / label / name for label in ("ant", "bee", "cat") for name in ("a.png", "b.JPG")]
    assert torch.equal(x, torch.stack([by_pillow(file, 128, "RGB") for file in files]))
    assert y.tolist() == [0, 0, 1, 1, 2, 2]
    assert [name.partition("-")[0] for name in left_in(folder / ".gradflow")] == ["test", "train"]  # and no draft


WAITED_FOR = """
import hashlib, sys
from gradflow.data.sources import image_folder

decode = image_folder.decode

def slow(*arguments):
    print("decoding", flush=True)
    input()
    decode(*arguments)

image_folder.decode = slow
source = image_folder.image_folder(sys.argv[1], 8, 3)
source.prepare()
x, y = source.load()["train"]
print(hashlib.sha256(x.numpy().tobytes()).hexdigest(), y.tolist())
"""


def test_of_two_processes_one_decodes_and_the_other_waits(flat, monkeypatch):
    forbid_decoding(monkeypatch)
    released = threading.Event()
    with subprocess.Popen([sys.executable, "-c", WAITED_FOR, flat], env=CHILDS, text=True, **PIPES) as other:
        assert other.stdout.readline() == "decoding\n"

        def release() -> None:
            released.set()
            other.stdin.write("go on\n")
            other.stdin.flush()

        timer = threading.Timer(0.3, release)
        timer.start()
        try:
            x, y = whole(image_folder.image_folder(str(flat), 8, 3))["train"]
            waited = released.is_set()
        finally:
            timer.join()
            out, _ = other.communicate(timeout=60)
    assert waited
    assert out == f"{hashlib.sha256(x.numpy().tobytes()).hexdigest()} {y.tolist()}\n"  # and "decoding" once
    files = sorted(flat.glob("[a-c]*/*.png"))
    assert torch.equal(x, torch.stack([by_pillow(file, 8, "RGB") for file in files]))


def test_progress_names_the_folder_and_goes_to_stderr(folder, capsys):
    """Without a terminal in a line each."""
    image_folder.image_folder(str(folder), 8, 3).prepare()
    out, error = capsys.readouterr()
    assert out == ""
    expected = {f"{word} {folder / split}: {count} files" for word in ("reading", "decoding")
                for split, count in (("train", 6), ("test", 3))}  # fmt: skip
    assert set(error.splitlines()) == expected
    image_folder.image_folder(str(folder), 8, 3).prepare()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("ahead", [1, 2, 7, 20])
def test_order_is_kept_however_far_ahead_images_are_decoded(flat, monkeypatch, ahead):
    done, decode, progress = [], image_folder.pixels, image_folder.progress

    def pixels(path, size, channels):
        time.sleep(0.02 * (path.name == "a.png"))  # the first of each class comes late
        done.append(path)
        return decode(path, size, channels)

    def watched(items, title, count):
        for number, item in enumerate(progress(items, title, count)):
            if title.startswith("decoding"):
                assert len(done) <= (number // ahead + 1) * ahead  # no more than `ahead` wait in memory
            yield item

    monkeypatch.setattr(image_folder, "AHEAD", ahead)
    monkeypatch.setattr(image_folder, "pixels", pixels)
    monkeypatch.setattr(image_folder, "progress", watched)
    x, y = whole(image_folder.image_folder(str(flat), 8, 3))["train"]
    files = sorted(flat.glob("[a-c]*/*.png"))
    assert torch.equal(x, torch.stack([by_pillow(file, 8, "RGB") for file in files]))
    assert y.tolist() == [0] * 8 + [1] * 8 + [2] * 4
    assert sorted(done) == files


@pytest.mark.parametrize("damage", [lambda raw: raw[: len(raw) // 2], lambda raw: b"", lambda raw: b"not an image"])
def test_broken_files_are_counted_and_named(folder, damage):
    for name in ("ant/a.png", "cat/b.JPG"):
        file = folder / "train" / name
        file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UserError, match="2 of 6 images") as caught:
        image_folder.image_folder(str(folder), 8, 3).prepare()
    assert str(folder / "train" / "ant" / "a.png") in str(caught.value)
    assert str(folder / "train" / "cat" / "b.JPG") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert left_in(folder / ".gradflow") == []


def test_of_many_broken_files_five_are_named(flat):
    files = sorted(flat.glob("bee/*.png"))
    for file in files:
        file.write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"^8 of 20 images can't be read; remove or replace them: ") as caught:
        image_folder.image_folder(str(flat), 8, 3).prepare()
    named = [part.partition(" (")[0] for part in str(caught.value).partition("them: ")[2].split("; ")]
    assert len(named) == 5
    assert {Path(name) for name in named} < set(files)
    for file in files:
        file.unlink()
    paint(files[0], 0)
    assert whole(image_folder.image_folder(str(flat), 8, 3))["train"][1].bincount().tolist() == [8, 1, 4]


def test_broken_files_are_named_in_order(flat, monkeypatch):
    files, decode = sorted(flat.glob("bee/*.png")), image_folder.pixels
    for file in files:
        file.write_bytes(b"not an image")

    def pixels(path, size, channels):
        time.sleep(0.1 * (path == files[0]))
        return decode(path, size, channels)

    monkeypatch.setattr(image_folder, "pixels", pixels)
    with pytest.raises(UserError) as caught:
        image_folder.image_folder(str(flat), 8, 3).prepare()
    places = [str(caught.value).find(str(file)) for file in files[:5]]
    assert places == sorted(places)
    assert min(places) > 0


def test_a_new_class_moves_the_labels_of_the_other_split(folder):
    assert whole(image_folder.image_folder(str(folder), 8, 3))["test"][1].tolist() == [0, 1, 2]
    paint(folder / "train" / "aaa" / "a.png", 0)
    assert whole(image_folder.image_folder(str(folder), 8, 3))["test"][1].tolist() == [1, 2, 3]


def test_a_class_without_an_image_is_refused_beside_a_cache(folder):
    image_folder.image_folder(str(folder), 8, 3).prepare()
    (folder / "train" / "aaa").mkdir()
    with pytest.raises(UserError, match="classes without an image: aaa"):
        image_folder.image_folder(str(folder), 8, 3).prepare()


def test_a_cache_in_root_is_no_class(flat):
    for _ in range(2):
        source = image_folder.image_folder(str(flat), 8, 3, cache=str(flat / "decoded"))
        source.prepare()
        assert source.origin()["classes"] == ["ant", "bee", "cat"]


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to("nowhere")])
def test_what_cannot_be_read_is_named_with_the_right_advice(folder, make):
    make(folder / "train" / "ant" / "d.png")
    with pytest.raises(UserError, match=r"ant/d\.png") as caught:
        DataModule(image_folder.image_folder, 2, root=str(folder), size=8, channels=3).prepare_data()
    assert "to write to" not in str(caught.value)


def test_a_disk_that_is_full_before_the_first_image(folder, monkeypatch):
    home = folder / ".gradflow"
    monkeypatch.setattr(image_folder, "progress", lambda items, *rest: items)  # it may write to a file
    with files_of_at_most(10), pytest.raises(UserError) as caught:
        DataModule(image_folder.image_folder, 2, root=str(folder), size=8, channels=3).prepare_data()
    assert str(home) in str(caught.value)
    assert [path.suffix for path in home.iterdir()] == [".lock"]


def test_an_image_that_pillow_takes_for_a_bomb_is_named(folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)  # the error comes at twice that
    paint(folder / "train" / "ant" / "huge.png", 0, 40, 40)
    with pytest.raises(UserError, match=r"huge\.png"):
        image_folder.image_folder(str(folder), 8, 3).prepare()


def test_a_strange_class_is_refused(folder):
    paint(folder / "test" / "dog" / "a.png", 0)
    with pytest.raises(UserError, match=r"test has classes that train/ does not have: dog"):
        image_folder.image_folder(str(folder), 8, 3).prepare()


def test_a_class_may_be_absent_from_test(folder):
    shutil.rmtree(folder / "test" / "bee")
    assert whole(image_folder.image_folder(str(folder), 8, 3))["test"][1].tolist() == [0, 2]


def test_val_is_used_where_there_is_one(folder):
    paint(folder / "val" / "cat" / "a.png", 42)
    splits = whole(image_folder.image_folder(str(folder), 8, 3))
    assert sorted(splits) == ["test", "train", "val"]
    assert torch.equal(splits["val"][0][0], by_pillow(folder / "val" / "cat" / "a.png", 8, "RGB"))
    assert splits["val"][1].tolist() == [2]


def test_folders_without_images_are_refused(tmp_path, folder):
    with pytest.raises(UserError, match=r"data\.root=.*train"):
        image_folder.image_folder(str(tmp_path / "nothing"), 8, 3)
    for name in ("ant", "bee"):
        (tmp_path / "empty" / "train" / name).mkdir(parents=True)
    with pytest.raises(UserError, match=r"empty.*holds no image"):
        image_folder.image_folder(str(tmp_path / "empty"), 8, 3).prepare()
    for name in ("ant", "bee"):
        shutil.rmtree(folder / "train" / name)
    with pytest.raises(UserError, match="found 1 class folders"):
        image_folder.image_folder(str(folder), 8, 3)


@pytest.mark.parametrize(("size", "channels"), [(0, 3), (8, 2), (8, 4), (-1, 1)])
def test_impossible_sizes_are_refused(folder, size, channels):
    with pytest.raises(UserError, match=rf"data\.size={size}, data\.channels={channels}"):
        image_folder.image_folder(str(folder), size, channels)


def test_auto_takes_a_cache_without_an_archive(written, tmp_path):
    cache = tmp_path / "decoded"
    cifar10.cifar10(str(written), str(cache)).prepare()
    source = auto.auto(str(tmp_path / "nothing"), str(tmp_path), cache=str(cache))
    source.prepare()
    assert source.origin()["name"] == "cifar10"
    assert len(source.load()["train"][1]) == 20


def test_masks_show_where_the_shape_of_the_image_is(monkeypatch):
    """Of the same images; the background is class 0, and the shape differs from it in brightness."""
    source = shape_masks.shape_masks(size=32, channels=3)
    assert source.spec == Spec("image", (3, 32, 32), "segmentation", outputs=11, ignored=255)
    for split in ("train", "test"):
        monkeypatch.setattr(shape_masks, split.upper(), 500)
    for seed, (images, mask) in enumerate(source.load().values(), 1):
        x, labels, _ = shapes.render(500, seed, 32, 3)
        assert torch.equal(images, x)
        assert (mask.shape, mask.dtype) == ((500, 32, 32), torch.uint8)
        inside = mask > 0
        assert torch.equal(mask, (labels + 1).view(-1, 1, 1) * inside)
        assert 20 < inside.sum((1, 2)).min() < inside.sum((1, 2)).max() < 700
        grey = images.float().mean(1) / 255
        means = [(grey * part).sum((1, 2)) / part.sum((1, 2)) for part in (inside, ~inside)]
        assert ((means[0] - means[1]).abs() > 0.1).float().mean() > 0.97  # the contrast is 0.3 at least


def test_on_a_terminal_a_long_reading_is_a_bar_that_leaves_no_line(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert list(image_folder.progress("abc", "decoding x", 3)) == ["a", "b", "c"]
    said = capsys.readouterr().err
    assert "decoding x: " in said
    assert said.count("\n") == 0
