"""A package of a fork's own beside this one: its `conf/` holds options, its `tasks/` tasks. No torch here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path

from gradflow.runs.errors import UserError

NAMED_BY = "GRADFLOW_PACKAGES"  # environment: the packages that are installed elsewhere, with commas between
_OURS = Path(__file__).parents[1]


@cache
def folders() -> Mapping[str, Path]:
    """Return where each package lies: those that the environment names, those with a `conf/` beside ours in src/, ours.

    None is imported.
    """
    named = filter(None, map(str.strip, os.environ.get(NAMED_BY, "").split(",")))
    checkout = (_OURS.parents[1] / "conf").is_dir()  # and no folder of installed packages, of which others have a conf/
    beside = [path for path in sorted(_OURS.parent.iterdir()) if checkout and (path / "conf").is_dir()]
    return {name: _installed(name) for name in named} | {path.name: path for path in beside} | {_OURS.name: _OURS}


def _installed(name: str) -> Path:
    spec = PathFinder.find_spec(name) if name.isidentifier() else None
    for folder in (spec and spec.submodule_search_locations) or ():
        if (Path(folder) / "conf").is_dir():
            return Path(folder)
    why = "it has no folder conf/" if spec else "no such package is installed, or on PYTHONPATH"
    raise UserError(f"{NAMED_BY}={os.environ[NAMED_BY]}: {name}: {why}")
