"""Finished runs as one page: tables, pictures and the commands that made them. Reads run folders; no torch here."""

from __future__ import annotations

from pathlib import Path


def write(folder: str | Path) -> Path:
    """The page of all runs below `folder`, beside them; what the end of a sweep calls."""
    from gradflow.report import read
    from gradflow.report.page import make

    return make(read.collect([Path(folder)]), Path(folder))
