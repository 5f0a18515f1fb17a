"""Write finished runs as one page: tables, pictures and commands. It reads run folders; no torch here."""

from __future__ import annotations

from pathlib import Path


def write(folder: str | Path) -> Path:
    """Write the page of all runs below `folder` into it, as src/report.py does, and return its path."""
    from gradflow.report.collect import collect
    from gradflow.report.page import write_page

    return write_page(collect([Path(folder)]), Path(folder))
