"""The one writer of whole files, and how what others wrote is read: as plain data. No torch here."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from yaml import SafeLoader, YAMLError
from yaml.composer import ComposerError
from yaml.events import AliasEvent

from gradflow.runs.errors import UserError, naming_file

_WANDB_LOG = "debug-core.log"  # a link to W&B's cache, made by W&B in every run's folder; nobody here reads it


@contextmanager
def write_whole(path: Path, mode: str = "w", **options: Any) -> Iterator[IO[Any]]:
    """Open a file that gets its name when all of it is on the disk: a reader never sees half of it. Of a write that
    fails the earlier file stays and nothing else; the error names the file."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open(mode, **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # a rename may reach the disk before what was written
        draft.replace(path)
    except BaseException as error:
        draft.unlink(missing_ok=True)
        cause = error.__context__ if isinstance(error, RuntimeError) else error  # torch's writer wraps it so
        if isinstance(cause, OSError) and cause.filename in (None, str(draft)):
            raise OSError(cause.errno, cause.strerror, str(path)) from error
        raise


def write_text(path: Path, text: str) -> None:
    with write_whole(path, encoding="utf-8", errors="backslashreplace", newline="") as file:
        file.write(text)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(replace_nonfinite(content), indent=2, allow_nan=False) + "\n")


def append_json(path: Path, content: Mapping[str, Any]) -> None:
    with naming_file(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(replace_nonfinite(content), allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Return what a JSON file holds; nothing where there is no such file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is damaged ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: is damaged (it holds no names and values)")
    return content


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def replace_nonfinite(content: Any) -> Any:
    """Return the same with None for nan and infinities, which JSON does not know."""
    if isinstance(content, Mapping):
        return {key: replace_nonfinite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [replace_nonfinite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


class _PlainLoader(SafeLoader):
    """Plain values only, and no aliases: ten short lines of them make a billion entries."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(AliasEvent):
            raise ComposerError(None, None, "it has an alias", self.peek_event().start_mark)
        return super().compose_node(parent, index)


def read_yaml(file: Path) -> Any:
    """Return what a YAML file holds; an interpolation is a piece of text in it."""
    if not file.is_file():  # a pipe would be waited for
        raise UserError(f"{file}: no such file")
    try:
        return _PlainLoader(file.read_text(encoding="utf-8")).get_single_data()
    except (OSError, ValueError, YAMLError, RecursionError) as error:
        raise UserError(f"{file}: can't be read ({str(error).splitlines()[0]})") from error


def check_files(folder: Path, deep: bool = True) -> None:
    """Reject a folder in which a link leads out of it, or a pipe or a device would be waited for."""
    pending, home = [folder], folder.resolve()
    while pending:
        try:
            entries = list(os.scandir(pending.pop()))
        except FileNotFoundError:  # another process has removed it meanwhile
            continue
        for entry in entries:
            path = Path(entry.path)
            if entry.is_symlink():
                inside = Path(os.path.realpath(path)).is_relative_to(home)
                if not inside and entry.name != _WANDB_LOG:
                    raise UserError(f"{path}: is a link that leads out of {folder}; put what it leads to in its place")
            elif entry.is_dir():
                pending += [path] if deep else []
            elif not entry.is_file():
                raise UserError(f"{path}: is neither a file nor a folder; remove it")
