"""What others wrote is read as plain data, and what is written for others shows as text. No torch here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from yaml import SafeLoader, YAMLError  # type: ignore[import-untyped]
from yaml.composer import ComposerError  # type: ignore[import-untyped]
from yaml.events import AliasEvent  # type: ignore[import-untyped]

from gradflow.mistakes import Mistake

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how a cell begins that a spreadsheet would compute


class Loader(SafeLoader):
    """Plain values only, and no aliases: ten short lines of them make a billion entries."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(AliasEvent):
            raise ComposerError(None, None, "it has an alias", self.peek_event().start_mark)
        return super().compose_node(parent, index)


def read_yaml(file: Path) -> Any:
    """Return what a YAML file holds; an interpolation is a piece of text in it."""
    if not file.is_file():  # a pipe would be waited for
        raise Mistake(f"{file}: no such file")
    try:
        return Loader(file.read_text(encoding="utf-8")).get_single_data()
    except (OSError, ValueError, YAMLError, RecursionError) as error:
        raise Mistake(f"{file}: can't be read ({str(error).splitlines()[0]})") from error


def check_files(folder: Path, deep: bool = True) -> None:
    """Refuse a folder in which a link leads out of it, or a pipe or a device would be waited for."""
    pending, home = [folder], folder.resolve()
    while pending:
        try:
            entries = list(os.scandir(pending.pop()))
        except FileNotFoundError:  # another process has removed it meanwhile
            continue
        for entry in entries:
            path = Path(entry.path)
            if entry.is_symlink():
                if not Path(os.path.realpath(path)).is_relative_to(home):
                    raise Mistake(f"{path}: is a link that leads out of {folder}; put what it leads to in its place")
            elif entry.is_dir():
                pending += [path] if deep else []
            elif not entry.is_file():
                raise Mistake(f"{path}: is neither a file nor a folder; remove it")


def to_cell(text: str) -> str:
    """Return a text as the cell of a table: behind an apostrophe where a spreadsheet would take it for a formula."""
    return f"'{text}" if text.lstrip("'").startswith(FORMULA) and not is_number(text) else text


def from_cell(cell: str) -> str:
    """Return the text that `to_cell` was given."""
    return cell[1:] if cell.startswith("'") and cell.lstrip("'").startswith(FORMULA) else cell


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
