"""CIFAR-10 if it is on disk or can be fetched within a minute, else `shapes`; the choice is made once and recorded."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchvision.datasets import CIFAR10

from gradflow import runs
from gradflow.data.sources import cifar10, shapes
from gradflow.data.sources.source import Source, Split
from gradflow.runs.errors import UserError
from gradflow.runs.locks import locked

PATIENCE = 60.0  # seconds that a download may take before `shapes` steps in


def auto(root: str, run_dir: str, resume: str | None = None, cache: str | None = None) -> Source:
    """The two sets have the same spec. Every rank reads what the first one recorded, every job of a sweep what the
    first job did, and a resumed run what it began with, so that none mixes them."""
    record = runs.shared_folder(Path(run_dir)) / runs.DATASET

    def prepare() -> None:
        with locked(record):
            if not record.exists():
                name, reason = _begun_with(resume) or decide(Path(root), cifar10.home_of(root, cache))
                runs.write_json(record, {"name": name, "reason": reason})
                _announce(name, reason)
        chosen().prepare()

    def chosen() -> Source:
        known = {"cifar10": lambda: cifar10.cifar10(root, cache), "shapes": lambda: shapes.shapes(size=32, channels=3)}
        name = runs.read_json(record).get("name")
        if name not in known:
            raise UserError(f"{record}: is damaged (its name is {name}); remove it")
        return known[name]()

    def load() -> Mapping[str, Split]:
        make = chosen().load
        assert make is not None
        return make()

    def origin() -> Mapping[str, Any]:
        source = chosen()
        return {**source.origin(), "name": source.name, "chosen_by": "data=auto", **runs.read_json(record)}

    return Source("auto", cifar10.SPEC, load=load, prepare=prepare, origin=origin)


def _begun_with(resume: str | None) -> tuple[str, str] | None:
    if resume is None or not Path(resume).exists():
        return None
    try:
        folder = runs.find(resume)
    except UserError:
        return None  # a checkpoint that lies in no run folder
    known = runs.read_json(runs.shared_folder(folder) / runs.DATASET)
    return (known["name"], known["reason"]) if known else None


def decide(root: Path, cache: Path) -> tuple[str, str]:
    """Which set, and why."""
    if all(place.exists() for place in cifar10.places(cache).values()):
        return "cifar10", f"it is in {cache.resolve()}"
    if cifar10.unpacked(root):
        return "cifar10", f"it is in {root.resolve()}"
    try:
        with locked(root / CIFAR10.filename):
            if cifar10.on_disk(root):
                return "cifar10", f"it is in {root.resolve()}"
            problem = cifar10.fetch(root, PATIENCE)
    except (UserError, OSError) as error:
        problem = str(error)
    if problem is None:
        return "cifar10", f"it was fetched to {root.resolve()}"
    return "shapes", f"CIFAR-10 is not in {root.resolve()} and can't be fetched ({problem})"


def _announce(name: str, reason: str) -> None:
    if name == "shapes":
        line = f"data=auto: THIS RUN USES THE BUNDLED SYNTHETIC IMAGES 'shapes', NOT CIFAR-10: {reason}"
        print(f"\n{'!' * 80}\n{line}\n{'!' * 80}\n", file=sys.stderr)
