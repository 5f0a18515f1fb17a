"""The folders of options: the project's `conf/`, and before it those of the packages beside it. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

from gradflow.runs import packages

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


class SearchPackages(SearchPathPlugin):
    """Lets Hydra search the packages' options as well."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in reversed(folders()[:-1]):
            search_path.prepend(folder.parent.name, str(folder), anchor="main")


Plugins.instance().register(SearchPackages)
