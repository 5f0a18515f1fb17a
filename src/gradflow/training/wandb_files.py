"""Read the rows of a W&B run back from its .wandb files: LevelDB's log format around W&B's records, as of wandb 0.31.

A resumed offline run has to know which rows its earlier processes have written: W&B appends whatever comes, and would
show a row twice after `wandb sync`. W&B had a reader of its own (wandb.sdk.internal.datastore) until its service was
rewritten in Go; since then no Python name reads these files. Should the format change, `rows` can yield nothing:
what came after the last checkpoint then appears twice in W&B, with the same step.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

AXIS = "trainer/global_step"
_BLOCK = 32768  # bytes; a record may span several
_HEAD, _PART = 7, 7  # bytes: of the file, and of each part of a record
_FULL, _FIRST, _LAST = 1, 2, 4  # kinds of parts

Mark = tuple[Any, frozenset[str]]


def mark(step: Any, names: Iterable[str]) -> Mark:
    """Return what tells a row from others: its step and its names, those that W&B adds left out."""
    return step, frozenset(name for name in names if name != AXIS and not name.startswith("_"))


def rows(path: Path, last: int | None = None) -> Iterator[tuple[int, Mark]]:
    """Yield number and mark of each row, up to where the file is torn; of the `last` bytes alone, if they are given."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    size = path.stat().st_size
    start = max(0, size - last) // _BLOCK * _BLOCK if last else 0
    with path.open("rb") as file:
        file.seek(start)
        log = file.read()
    for content in _records(log, 0 if start else _HEAD):
        record = Record.FromString(content)
        if record.HasField("history"):
            items = {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
            yield json.loads(items["_step"]), mark(json.loads(items.get(AXIS, "null")), items)


def _records(log: bytes, position: int) -> Iterator[bytes]:
    whole: bytes | None = None  # until a record begins
    while position + _PART <= len(log):
        if (left := _BLOCK - position % _BLOCK) < _PART:
            position += left
            continue
        length, kind = struct.unpack_from("<HB", log, position + 4)
        position += _PART + length
        if not kind or position > len(log):
            return
        if kind in (_FULL, _FIRST):
            whole = b""
        if whole is not None:
            whole += log[position - length : position]
            if kind in (_FULL, _LAST):
                yield whole
                whole = None


def files(run: Path, kind: str = "*run-*") -> list[Path]:
    """Return the file of each segment, in order of their start."""
    paths = run.glob(f"wandb/{kind}/*.wandb")
    return sorted((path for path in paths if not path.parent.is_symlink()), key=os.path.getmtime)


def drop_empty(run: Path) -> None:
    """Remove segments of a service that was killed before it wrote a record: `wandb sync` stops at one."""
    for path in files(run, "offline-run-*"):
        if path.stat().st_size <= _HEAD:
            shutil.rmtree(path.parent)


def unsynced(run: Path) -> bool:
    """Return whether W&B's server lacks some of the rows: `wandb sync` leaves a file beside what it has uploaded."""
    return any(not path.with_name(f"{path.name}.synced").exists() for path in files(run, "offline-run-*"))
