"""A map-style dataset from a YAML alone: read once, by index, and then like any other source."""

from __future__ import annotations

import random
import re
from functools import partial

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image
from torch.utils.data import Dataset, TensorDataset
from torchvision.datasets import CIFAR10, FakeData

from gradflow import runs
from gradflow.config import trust
from gradflow.config.options import CONF
from gradflow.data import memory
from gradflow.data.datamodule import DataModule
from gradflow.data.sources.map_style import map_style
from gradflow.runs.errors import UserError
from gradflow.spec import Spec

DOC = CONF.parent / "docs" / "data.md"


def seed() -> None:
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    random.seed(5)


def drawn() -> tuple[float, float, float]:
    return torch.rand(()).item(), np.random.rand(), random.random()  # noqa: NPY002


class Noisy(Dataset):
    """Numbers that the global generators draw, as a dataset with an augmentation of its own has them."""

    def __init__(self, size: int, classes: bool = False) -> None:
        self.size, self.classes = size, classes

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int):
        numbers = torch.tensor(drawn())
        return numbers, index % 3 if self.classes else numbers.sum()[None]


def loaded(source):
    source.prepare()
    return source.load()


def test_images_are_read_once_into_the_cache(tmp_path):
    images = partial(FakeData, size=12, image_size=(3, 8, 6), num_classes=4)
    source = map_style({"train": images, "test": partial(images, size=5)}, (3, 8, 6), 4, cache=str(tmp_path))
    splits = loaded(source)
    assert {name: tuple(x.shape) for name, (x, _) in splits.items()} == {"train": (12, 3, 8, 6), "test": (5, 3, 8, 6)}
    for index, (image, label) in ((i, images()[i]) for i in range(12)):
        assert torch.equal(splits["train"][0][index], torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy()))
        assert splits["train"][1][index] == int(label)
    (place,) = tmp_path.glob("FakeData-*-train")
    before = (place / "x.npy").stat().st_mtime_ns
    again = loaded(map_style({"train": images}, (3, 8, 6), 4, cache=str(tmp_path)))
    assert (place / "x.npy").stat().st_mtime_ns == before
    assert torch.equal(again["train"][0], splits["train"][0])
    loaded(map_style({"train": partial(images, num_classes=3)}, (3, 8, 6), 3, cache=str(tmp_path)))
    assert len([*tmp_path.glob("FakeData-*-train")]) == 2  # other arguments, another cache


def test_random_numbers_follow_from_the_index_and_leave_the_global_ones(tmp_path):
    def source():
        return map_style({"train": partial(Noisy, 6)}, (3,), 1, "regression", "vector", cache=str(tmp_path))

    seed()
    one = loaded(source())
    after = drawn()
    other = loaded(source())
    seed()
    assert after == drawn()
    assert torch.equal(one["train"][0], other["train"][0])
    assert len({tuple(row) for row in one["train"][0].tolist()}) == 6
    assert one["train"][1].shape == (6, 1)


def test_grey_images_have_one_channel(tmp_path):
    class Grey(Noisy):
        def __getitem__(self, index):
            return Image.new("L", (4, 5), index), index % 3

    x, y = loaded(map_style({"train": partial(Grey, 6)}, (1, 5, 4), 3, cache=str(tmp_path)))["train"]
    assert x.shape == (6, 1, 5, 4)
    assert x.flatten(1)[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert y.tolist() == [0, 1, 2, 0, 1, 2]


def test_what_does_not_fit_is_one_line(tmp_path):
    with pytest.raises(UserError, match="expected train"):
        map_style({"test": partial(Noisy, 2)}, (3,), 1)
    for make, line in (
        (partial(CIFAR10, str(tmp_path)), "CIFAR10: Dataset not found"),
        (partial(Noisy, 2, colour=1), "Noisy: .*unexpected keyword argument 'colour'"),
        (partial(FakeData, size=0), "FakeData: "),
        (partial(TensorDataset, torch.zeros(2, 3)), "TensorDataset: expected items of two, an input and a target"),
    ):
        with pytest.raises(UserError, match=rf"data\.splits\.train: {line}"):
            map_style({"train": make}, (3,), 1, cache=str(tmp_path)).prepare()
    data = DataModule(
        partial(map_style, {"train": partial(Noisy, 9, True)}, cache=str(tmp_path)),
        batch_size=3, shape=[4], outputs=3, kind="vector",
    )  # fmt: skip
    data.prepare_data()
    with pytest.raises(UserError, match=r"inputs of shape \(3,\), but the spec says \(4,\)"):
        data.setup()


class Masked(Dataset):
    """Pictures with masks, as a dict of two, in the number types that datasets have."""

    def __len__(self) -> int:
        return 9

    def __getitem__(self, index: int):
        picture = np.full((1, 4, 4), index / 9)
        return {"image": picture, "mask": torch.full((4, 4), index % 2, dtype=torch.int32)}


@pytest.mark.parametrize("free", [10**9, 100])
def test_masks_and_dicts_of_two_are_read_and_kept_on_disk_where_memory_is_short(tmp_path, monkeypatch, free):
    monkeypatch.setattr(memory, "free", lambda: free)
    options = {"task": "segmentation", "ignored": 255, "cache": str(tmp_path)}
    source = map_style({"train": Masked}, (1, 4, 4), 2, **options)
    assert source.spec == Spec("image", (1, 4, 4), "segmentation", 2, ignored=255)
    x, y = loaded(source)["train"]
    assert bool([*tmp_path.glob("Masked-*-train")]) is (free == 100)
    assert (x.dtype, y.dtype, y.shape) == (torch.float32, torch.int64, (9, 4, 4))
    torch.testing.assert_close(x[:, 0, 0, 0], torch.arange(9) / 9)
    assert y[:, 0, 0].tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 0]


def test_items_that_are_no_pairs_or_not_alike_are_one_line(tmp_path):
    class Three(Masked):
        def __getitem__(self, index):
            return super().__getitem__(index) | {"name": "x"}

    class Growing(Masked):
        def __getitem__(self, index):
            return torch.zeros(3), torch.zeros(index + 1)

    with pytest.raises(UserError, match=r"data\.splits\.train: Three: expected items of two, an input and a target"):
        map_style({"train": Three}, (1, 4, 4), 2, cache=str(tmp_path)).prepare()
    source = map_style({"train": Growing}, (3,), 1, "regression", "vector", cache=str(tmp_path))
    with pytest.raises(UserError, match=r"item 1 of Growing has targets of shape \(2,\), the first \(1,\)"):
        loaded(source)


def test_a_run_from_a_configuration_alone(trained, monkeypatch):
    """As a YAML in conf/data/ has it, which names the source."""
    named, source = trust.targets, "gradflow.data.sources.map_style.map_style"
    monkeypatch.setattr(trust, "targets", lambda group: named(group) | {source})
    data = (
        "data=shapes",
        "~data.size",
        "~data.channels",
        "data.source._target_=gradflow.data.sources.map_style.map_style",
        "+data.splits={train:{_target_:torchvision.datasets.FakeData,_partial_:true,size:64,image_size:[3,8,8],num_classes:4}}",
        "+data.shape=[3,8,8]",
        "+data.outputs=4",
        "data.batch_size=16",
    )
    short = ("trainer.max_epochs=1", "logger=none", "callbacks.progress=null", "callbacks.gradient_flow.probes=0")
    run = trained(*data, "model=mlp", "model.width=8", *short)
    summary = runs.read_json(run / runs.SUMMARY)
    assert summary["data"]["datasets"] == {"train": "FakeData"}
    assert (summary["status"], summary["steps"]) == ("finished", 3)  # 6 of 64 are held out


def test_the_documented_yaml_describes_a_source():
    """docs/data.md shows it; nothing is fetched before the run."""
    (text,) = re.findall(r"```yaml\n# conf/data/fashion_mnist.yaml\n(.*?)```", DOC.read_text(), re.DOTALL)
    node = OmegaConf.create(text)
    assert node.pop("defaults") == ["/_images", "_self_"]
    source = instantiate(node.pop("source"))(**instantiate(node))
    assert (source.name, source.spec) == ("FashionMNIST", Spec("image", (1, 28, 28), "classification", outputs=10))
