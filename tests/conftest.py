"""Runs as a user makes them, in this process and in a folder of their own."""

from __future__ import annotations

import base64
import gc
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import composing
import pytest
import stand_ins
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.hydra import Hydra
from matplotlib.backends.backend_agg import FigureCanvasAgg
from omegaconf import DictConfig

import gradflow.runs.claims  # registers the resolver of the run folder
from gradflow.config.options import CONF, folders, of_group
from gradflow.spec import Spec
from gradflow.tasks.task import task_of

# Two threads beside another busy process are many times slower than one.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start
os.environ["WANDB_MODE"] = "offline"
composing.once()
os.fsync = lambda file: None  # nobody cuts the power of a test, and a run waits for its disk thirty times
yaml.SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # a composition reads twenty files

GROUPS = {group.name for folder in folders() for group in folder.iterdir() if group.is_dir()}
OPTIONS = {group: list(of_group(group)) for group in sorted(GROUPS)}
RGB = Spec("image", (3, 32, 32), "classification", outputs=10)
GREY = Spec("image", (1, 28, 28), "classification", outputs=10)
NUMBERS = Spec("sequence", (12, 2), "regression", outputs=1)
SYMBOLS = Spec("sequence", (12,), "classification", outputs=4, tokens=8)
COPY = Spec("sequence", (12,), "classification", outputs=9, tokens=10, per_step=True, blank=0)
TEXT = Spec("sequence", (12,), "next_token", outputs=8, tokens=8, per_step=True, ignored=-1)
MASKS = Spec("image", (3, 16, 16), "segmentation", outputs=4, ignored=255)
POINTS = Spec("vector", (2,), "regression", outputs=1)
PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGNgYGAAAAAEAAH2FzhVAAAAAElFTkSuQmCC")


def pytest_collection_finish() -> None:
    """Leave libraries and collected tests out of garbage collections, which took a tenth of the suite."""
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def _packages_that_hold_data(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Those that are installed come first."""
    folder = tmp_path_factory.mktemp("packages")
    stand_ins.write(folder)
    sys.path.append(str(folder))


@pytest.fixture
def exact() -> Iterator[None]:
    """Numbers in float64, and the same random ones each time."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def composed(tmp_path: Path) -> Callable[..., DictConfig]:
    """The configuration that a command line gives."""

    def make(*words: str) -> DictConfig:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose("train", [*words, f"run_dir={tmp_path}/run"])

    return make


@pytest.fixture
def trained(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """`python src/train.py words…`, without the start of Python; the run folder that it left.

    Its pictures, half of the time of a short run, are a pixel each where a test is not marked `pictures`.
    """
    if not request.node.get_closest_marker("pictures"):
        monkeypatch.setattr(FigureCanvasAgg, "print_png", lambda canvas, file: file.write(PIXEL))

    def run(*words: str, program: str = "train") -> Path:
        module = __import__(program)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [f"src/{program}.py", *words])
        if not any(word in ("-m", "--multirun") or word.startswith(("hydra.mode=", "search=")) for word in words):
            monkeypatch.setattr(Hydra, "get_mode", lambda *_, **__: None)  # composes once more to ask if it is a sweep
        before = set(tmp_path.glob("runs/*/*"))
        module.main()
        if new := set(tmp_path.glob("runs/*/*")) - before:
            return new.pop()
        summaries = tmp_path.glob("runs/*/*/summary.json")  # of a run that went on in its folder
        return max(summaries, key=lambda path: path.stat().st_mtime_ns, default=tmp_path / "x").parent

    return run


def inputs(spec: Spec, batch: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Random inputs and targets that fit a spec."""
    x = torch.randint(spec.tokens, (batch, *spec.shape)) if spec.tokens else torch.randn(batch, *spec.shape)
    entries = entries_of(spec)
    if task_of(spec).asks_for == "numbers":
        return x, torch.randn(batch, *entries, spec.outputs)
    return x, torch.randint(spec.outputs, (batch, *entries))


def entries_of(spec: Spec) -> tuple[int, ...]:
    """The shape of what has an output of its own in a sample."""
    return {"sample": (), "step": spec.shape[:1], "pixel": spec.shape[1:]}[task_of(spec).answers]


def plain(spec: Spec) -> dict:
    return asdict(spec)


assert gradflow.runs.claims
