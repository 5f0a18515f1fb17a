"""CIFAR-10, the choice of `auto`, shapes and image folders, from files that the tests write. Nothing is downloaded."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import pickle
import shutil
import socket
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.datasets import CIFAR10

from gradflow import runs
from gradflow.data import auto, cifar10, image_folder, shapes
from gradflow.mistakes import Mistake
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
    assert source.origin() == {"archive": ARCHIVE, "md5": CIFAR10.tgz_md5}


def test_cifar10_from_the_unpacked_files_alone(written):
    whole(cifar10.cifar10(str(written)))
    (written / ARCHIVE).unlink()
    assert same(whole(cifar10.cifar10(str(written)))["train"], expected(range(5)))


def test_cifar10_unpacks_again_what_was_damaged(written):
    whole(cifar10.cifar10(str(written)))
    (written / UNPACKED / "data_batch_3").write_bytes(b"half")
    assert same(whole(cifar10.cifar10(str(written)))["train"], expected(range(5)))


def test_a_truncated_archive_is_named(written):
    archive = written / ARCHIVE
    archive.write_bytes(archive.read_bytes()[:-100])
    with pytest.raises(Mistake, match=f"{archive.resolve()} is truncated"):
        cifar10.cifar10(str(written)).prepare()
    assert not (written / UNPACKED).exists()


def test_absent_and_not_to_be_had(tmp_path):
    with pytest.raises(Mistake, match=f"{tmp_path}.*no network here.*{ARCHIVE}.*data=shapes"):
        cifar10.cifar10(str(tmp_path)).prepare()


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
    assert same(cifar10.load(folder)["test"], expected([5]))


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
    assert source.origin() == {"archive": ARCHIVE, "md5": CIFAR10.tgz_md5, "chosen_by": "data=auto", **record}
    assert "!!!" not in capsys.readouterr().err


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
    with pytest.raises(Mistake, match=ARCHIVE):
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
    with pytest.raises(Mistake, match=rf"data\.size={size}, data\.channels={channels}"):
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
    def never(*arguments) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(image_folder, "decode", never)


def test_the_cache_is_used(folder, monkeypatch):
    first = whole(image_folder.image_folder(str(folder), 8, 3))
    assert [path.name for path in (folder / ".gradflow").glob("*.npz") if path.name.startswith(".")] == []  # no draft
    forbid_decoding(monkeypatch)
    again = whole(image_folder.image_folder(str(folder), 8, 3))
    assert all(same(first[split], again[split]) for split in ("train", "test"))
    for size, channels in ((9, 3), (8, 1)):
        with pytest.raises(AssertionError, match="decoded"):
            image_folder.image_folder(str(folder), size, channels).prepare()


def replace(path: Path) -> None:
    paint(path, 99, *SIDES["ant"])


def touch(path: Path) -> None:
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1000))


@pytest.mark.parametrize("change", [replace, touch, Path.unlink, lambda path: path.rename(path.with_name("aa.png"))])
def test_the_cache_is_made_again_when_a_file_changes(folder, monkeypatch, change):
    image_folder.image_folder(str(folder), 8, 3).prepare()
    change(folder / "train" / "ant" / "a.png")
    forbid_decoding(monkeypatch)
    with pytest.raises(AssertionError, match="decoded"):
        image_folder.image_folder(str(folder), 8, 3).prepare()


def test_a_changed_file_is_shown(folder):
    before = whole(image_folder.image_folder(str(folder), 8, 3))
    replace(folder / "train" / "ant" / "a.png")
    after = whole(image_folder.image_folder(str(folder), 8, 3))
    assert torch.equal(after["train"][0][0], by_pillow(folder / "train" / "ant" / "a.png", 8, "RGB"))
    assert torch.equal(before["train"][0][1:], after["train"][0][1:])
    assert same(before["test"], after["test"])


def test_what_a_killed_process_left_is_not_used(folder, monkeypatch):
    def killed(path, **arrays) -> None:
        path.write_bytes(b"half of it")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(image_folder.np, "savez", killed)
        with pytest.raises(KeyboardInterrupt):
            image_folder.image_folder(str(folder), 8, 3).prepare()
    assert [path.name.startswith(".") for path in (folder / ".gradflow").glob("*.npz")] == [True]
    x, _ = whole(image_folder.image_folder(str(folder), 8, 3))["train"]
    assert torch.equal(x[0], by_pillow(folder / "train" / "ant" / "a.png", 8, "RGB"))


@pytest.mark.parametrize("damage", [lambda raw: raw[: len(raw) // 2], lambda raw: b"", lambda raw: b"not an image"])
def test_broken_files_are_counted_and_named(folder, damage):
    for name in ("ant/a.png", "cat/b.JPG"):
        file = folder / "train" / name
        file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(Mistake, match="2 of 6 images") as caught:
        image_folder.image_folder(str(folder), 8, 3).prepare()
    assert str(folder / "train" / "ant" / "a.png") in str(caught.value)
    assert str(folder / "train" / "cat" / "b.JPG") in str(caught.value)
    assert not list((folder / ".gradflow").glob("train-*.npz"))


def test_an_image_that_pillow_takes_for_a_bomb_is_named(folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)  # the error comes at twice that
    paint(folder / "train" / "ant" / "huge.png", 0, 40, 40)
    with pytest.raises(Mistake, match=r"huge\.png"):
        image_folder.image_folder(str(folder), 8, 3).prepare()


def test_a_strange_class_is_refused(folder):
    paint(folder / "test" / "dog" / "a.png", 0)
    with pytest.raises(Mistake, match=r"test has classes that train/ does not have: dog"):
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
    with pytest.raises(Mistake, match=r"data\.root=.*train"):
        image_folder.image_folder(str(tmp_path / "nothing"), 8, 3)
    for name in ("ant", "bee"):
        (tmp_path / "empty" / "train" / name).mkdir(parents=True)
    with pytest.raises(Mistake, match=r"empty.*holds no image"):
        image_folder.image_folder(str(tmp_path / "empty"), 8, 3).prepare()
    for name in ("ant", "bee"):
        shutil.rmtree(folder / "train" / name)
    with pytest.raises(Mistake, match="found 1 class folders"):
        image_folder.image_folder(str(folder), 8, 3)


@pytest.mark.parametrize(("size", "channels"), [(0, 3), (8, 2), (8, 4), (-1, 1)])
def test_impossible_sizes_are_refused(folder, size, channels):
    with pytest.raises(Mistake, match=rf"data\.size={size}, data\.channels={channels}"):
        image_folder.image_folder(str(folder), size, channels)
