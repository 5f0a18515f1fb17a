"""Any map-style `torch.utils.data.Dataset`, of torchvision's or of your own, from a YAML alone."""

from __future__ import annotations

import os
import random
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from gradflow.data import memory
from gradflow.data.cache import CACHE, cached, read, write
from gradflow.data.sources.source import Source, Split
from gradflow.data.streams import generators_restored
from gradflow.runs.errors import UserError
from gradflow.runs.locks import locked
from gradflow.spec import Spec

_Open = Callable[[], "Dataset[Any]"]


def map_style(
    splits: Mapping[str, _Open],
    shape: Sequence[int],
    outputs: int,
    task: str = "classification",
    kind: str = "image",
    tokens: int = 0,
    per_step: bool = False,
    ignored: int | None = None,
    cache: str | None = None,
) -> Source:
    """Every item (input, target) of each split, read once by its index, with random numbers that the index seeds.

    `splits` names the datasets: train, and val and test where there are any. What is kept on disk lies in `cache` (by
    default .gradflow in data), under a name that follows from the dataset's class, arguments and length; everything
    else is read anew by each process. An input is a PIL image, an array or a tensor, and so is a target, such as a
    mask. The rest is said to the Spec.
    """
    if "train" not in splits:
        raise UserError(f"data.splits has {', '.join(splits) or 'nothing'}: expected train, and perhaps val and test")
    home = Path(cache) if cache else Path("data") / CACHE
    spec = Spec(kind, tuple(shape), task, outputs, tokens, per_step, ignored=ignored)  # type: ignore[arg-type]
    opened, places = dict[str, Dataset[Any]](), dict[str, Path]()

    def prepare() -> None:
        home.mkdir(parents=True, exist_ok=True)
        for split, make in splits.items():
            opened[split] = _opened(split, make, home)
            if _is_cached(opened[split]):
                places[split] = home / f"{_name(make, _length(opened[split]))}-{split}"
                cached(places[split], partial(_fill, opened[split]))

    def load() -> Mapping[str, Split]:
        return {s: read(places[s]) if s in places else _stacked(dataset) for s, dataset in opened.items()}

    def origin() -> Mapping[str, Any]:
        classes = {split: _class_of(make).__name__ for split, make in splits.items()}
        return {"datasets": classes, **({"cache": os.path.relpath(home)} if places else {})}

    return Source(_class_of(splits["train"]).__name__, spec, load=load, prepare=prepare, origin=origin)


def _opened(split: str, make: _Open, home: Path) -> Dataset[Any]:
    """Return the dataset, or say in one line why it can't be had: files that are not there, or other arguments."""
    if not callable(make):
        raise UserError(f"data.splits.{split}: expected a node with a _target_ and _partial_: true")
    try:
        with locked(home / f"{split}.download"):  # two processes would fetch into each other's files
            dataset = make()
        _item(dataset, 0)
    except (RuntimeError, OSError, TypeError, ValueError, IndexError) as error:
        raise UserError(f"data.splits.{split}: {_class_of(make).__name__}: {error}") from error
    return dataset


def _class_of(make: _Open) -> Any:
    return make.func if isinstance(make, partial) else make


def _name(make: _Open, length: int) -> str:
    arguments = (make.args, sorted(make.keywords.items())) if isinstance(make, partial) else ()
    what = f"{_class_of(make).__module__}.{_class_of(make).__qualname__}{arguments}{length}"
    return f"{_class_of(make).__name__}-{zlib.crc32(what.encode()):08x}"


def _is_cached(dataset: Dataset[Any]) -> bool:
    """Return whether it is kept on disk: images of bytes with a class each, and what fills half of the memory."""
    x, y = _item(dataset, 0)
    images = x.dtype == np.uint8 and y.dtype == np.int64 and not y.ndim
    return images or _length(dataset) * (x.nbytes + y.nbytes) > memory.free() / 2


def _length(dataset: Dataset[Any]) -> int:
    return len(dataset)  # type: ignore[arg-type]


def _item(dataset: Dataset[Any], index: int) -> tuple[np.ndarray, np.ndarray]:
    """Return one input and target; what they draw of random numbers depends on the index alone."""
    with generators_restored(), torch.random.fork_rng([]):
        torch.manual_seed(index)
        np.random.seed(index)  # noqa: NPY002
        random.seed(index)
        item = dataset[index]
    if isinstance(item, Mapping):  # {"image": …, "label": …}: in the order in which the dataset has them
        item = tuple(item.values())
    if not isinstance(item, Sequence) or len(item) != 2:
        raise ValueError("expected items of two, an input and a target")
    x, y = item
    array = np.asarray(x)
    if not hasattr(x, "dtype"):  # of PIL: [H, W] or [H, W, channels]
        array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    return array, np.asarray(y)


def _fill(dataset: Dataset[Any], draft: Path) -> None:
    length, first = _length(dataset), _item(dataset, 0)
    shape, kinds = first[0].shape, (_kind(first[0]), _kind(first[1]))
    labels = np.empty((length, *first[1].shape), kinds[1])

    def images() -> Iterator[np.ndarray]:
        for index in range(length):
            image, labels[index] = _alike(dataset, index, first)
            yield image

    write(draft, (length, *shape), images(), labels, kinds)  # labels are complete when the images are written


def _alike(dataset: Dataset[Any], index: int, first: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return an item, whose input and target have the shapes of the first."""
    item = _item(dataset, index)
    for what, one, other in zip(("input", "target"), item, first, strict=True):
        if one.shape != other.shape:
            where = f"item {index} of {type(dataset).__name__}"
            raise UserError(f"{where} has {what}s of shape {one.shape}, the first {other.shape}: expected all alike")
    return item


def _kind(array: np.ndarray) -> str:
    """Return as what numbers are kept: bytes, float32, or int64."""
    return "|u1" if array.dtype == np.uint8 else "<f4" if np.issubdtype(array.dtype, np.floating) else "<i8"


def _stacked(dataset: Dataset[Any]) -> Split:
    first = _item(dataset, 0)
    items = [_alike(dataset, index, first) for index in range(_length(dataset))]
    x, y = (torch.from_numpy(np.stack(arrays).astype(_kind(arrays[0]))) for arrays in zip(*items, strict=True))
    return x, y
