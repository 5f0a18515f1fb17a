"""Read the rows of a W&B run back from its .wandb files: LevelDB's log format around W&B's records."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

AXIS = "trainer/global_step"
BLOCK = 32768  # bytes; a record may span several
HEAD, PART = 7, 7  # bytes: of the file, and of each part of a record
FULL, FIRST, LAST = 1, 2, 4  # kinds of parts

Mark = tuple[Any, frozenset[str]]


def mark(step: Any, names: Iterable[str]) -> Mark:
    """What tells a row from others: its step and its names, those that W&B adds left out."""
    return step, frozenset(name for name in names if name != AXIS and not name.startswith("_"))


def rows(path: Path, last: int | None = None) -> Iterator[tuple[int, Mark]]:
    """Number and mark of each row, up to where the file is torn; of the `last` bytes alone, if they are given."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    size = path.stat().st_size
    start = max(0, size - last) // BLOCK * BLOCK if last else 0
    with path.open("rb") as file:
        file.seek(start)
        log = file.read()
    for content in records(log, 0 if start else HEAD):
        record = Record.FromString(content)
        if record.HasField("history"):
            items = {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
            yield json.loads(items["_step"]), mark(json.loads(items.get(AXIS, "null")), items)


def records(log: bytes, position: int) -> Iterator[bytes]:
    whole: bytes | None = None  # until a record begins
    while position + PART <= len(log):
        if (left := BLOCK - position % BLOCK) < PART:
            position += left
            continue
        length, kind = struct.unpack_from("<HB", log, position + 4)
        position += PART + length
        if not kind or position > len(log):
            return
        if kind in (FULL, FIRST):
            whole = b""
        if whole is not None:
            whole += log[position - length : position]
            if kind in (FULL, LAST):
                yield whole
                whole = None


def files(run: Path, kind: str = "*run-*") -> list[Path]:
    """The file of each segment, in order of their start."""
    found = run.glob(f"wandb/{kind}/*.wandb")
    return sorted((path for path in found if not path.parent.is_symlink()), key=os.path.getmtime)


def drop_empty(run: Path) -> None:
    """Segments of a service that was killed before it wrote a record: over one, `wandb sync` forgets the others."""
    for path in files(run, "offline-run-*"):
        if path.stat().st_size <= HEAD:
            shutil.rmtree(path.parent)


def unsynced(run: Path) -> bool:
    """Whether rows are here that W&B's server has not: `wandb sync` leaves a note beside what it has uploaded."""
    return any(not path.with_name(f"{path.name}.synced").exists() for path in files(run, "offline-run-*"))
