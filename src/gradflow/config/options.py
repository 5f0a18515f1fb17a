"""The folders of options: the project's `conf/`, and before it those of the packages beside it. No torch here."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from gradflow.runs import packages
from gradflow.runs.overrides import key

CONF = Path(__file__).parents[3] / "conf"


def folders() -> list[Path]:
    """Return all folders of groups, the first with an option of a name being the one that Hydra takes it from."""
    return [*(path / "conf" for path in packages.folders().values() if (path / "conf").is_dir()), CONF]


def is_group(key: str) -> bool:
    return any((folder / key).is_dir() for folder in folders())


def of_group(group: str) -> Mapping[str, Path]:
    """Return the options of a group, sorted by name, and the file of each."""
    files = {path.stem: path for folder in reversed(folders()) for path in (folder / group).glob("*.yaml")}
    return dict(sorted(files.items()))


def spelled_out(overrides: Sequence[str]) -> list[str]:
    """Return overrides, and behind an experiment's, in brackets, those that it stands for."""
    return [f"{one} ({' '.join(words)})" if (words := _stands_for(one)) else one for one in overrides]


def _stands_for(override: str) -> list[str]:
    group, path = key(override), of_group(key(override)).get(override.partition("=")[2])
    text = path.read_text() if path else ""
    if "@package _global_" not in text or "_target_" in text:
        return []
    content: Any = OmegaConf.to_container(OmegaConf.create(text))
    words = []
    for default in content.pop("defaults", []):
        pair = next(iter(default.items())) if isinstance(default, dict) else (group, default)
        words += [f"{pair[0].removeprefix('override ').lstrip('/')}={pair[1]}"] if default != "_self_" else []
    return [*spelled_out(words), *_values(content)]


def _values(content: Mapping[str, Any], above: str = "") -> Iterator[str]:
    for name, value in content.items():
        inner = isinstance(value, Mapping)
        text = value if isinstance(value, str) else json.dumps(value)
        yield from _values(value, f"{above}{name}.") if inner else [f"{above}{name}={text}"]


class SearchPackages(SearchPathPlugin):
    """Lets Hydra search the packages' options as well."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in reversed(folders()[:-1]):
            search_path.prepend(folder.parent.name, str(folder), anchor="main")


Plugins.instance().register(SearchPackages)
