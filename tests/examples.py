"""The examples of the README and of docs/, and copies of the project that hold them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]


def blocks(page: str) -> list[str]:
    """Return the code of a page, block by block."""
    return re.findall(r"```\w+\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


def files(page: str) -> dict[str, str]:
    """Return the files that a page tells to write, by the names in their first lines."""
    return {match[1]: block for block in blocks(page) if (match := re.match(r"# ((?:src|conf)/\S+)\n", block))}


def copied(folder: Path, added: Mapping[str, str]) -> Path:
    """Copy src/ and conf/ into a folder and write files there; a fork may have pasted them already."""
    for name in ("src", "conf"):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored, dirs_exist_ok=True)
    return add(folder, added)


def add(folder: Path, added: Mapping[str, str]) -> Path:
    for name, text in added.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder
