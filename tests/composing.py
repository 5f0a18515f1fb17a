"""Of the configurations that tests compose, what the same options give is composed once in a process: a quarter of the
time is left of a composition. Values are set in it anew each time."""

from __future__ import annotations

import copy
from typing import Any

from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.defaults_list import DefaultsList, Overrides

from gradflow.config.options import CONF

_load = FileConfigSource.load_config
_create, _compose = config_loader_impl.create_defaults_list, ConfigLoaderImpl._compose_config_from_defaults_list
_files: dict[str, Any] = {}
_lists: dict[Any, DefaultsList] = {}
_configs: dict[int, Any] = {}  # by the identity of the list of defaults that is kept above


def _create_once(repo: Any, config_name: str | None, overrides_list: list[Any], **how: Any) -> DefaultsList:
    arguments = {"repo": repo, "config_name": config_name, "overrides_list": overrides_list, **how}
    if any(source.scheme() == "file" and source.path != str(CONF) for source in repo.get_sources()):
        return _create(**arguments)  # a test's own, which it may change
    overrides = Overrides(repo, overrides_list)
    of_values = set(map(id, overrides.config_overrides))
    options = [one.input_line for one in overrides_list if id(one) not in of_values and not one.is_sweep_override()]
    key = (config_name, *how.values(), *options)
    if key not in _lists:
        _lists[key] = _create(**arguments)
        _configs[id(_lists[key].defaults)] = None
    made = copy.copy(_lists[key])
    made.config_overrides = overrides.config_overrides
    return made


def _compose_once(loader: ConfigLoaderImpl, defaults: list[Any], repo: Any) -> Any:
    if id(defaults) not in _configs:
        return _compose(loader, defaults, repo)
    if _configs[id(defaults)] is None:
        _configs[id(defaults)] = _compose(loader, defaults, repo)
    return copy.deepcopy(_configs[id(defaults)])


def _load_once(source: FileConfigSource, config_path: str) -> Any:
    if source.path != str(CONF):
        return _load(source, config_path)
    if config_path not in _files:
        _files[config_path] = _load(source, config_path)
    return copy.deepcopy(_files[config_path])


def once() -> None:
    """Let Hydra do so from now on."""
    FileConfigSource.load_config = _load_once  # type: ignore[method-assign]
    config_loader_impl.create_defaults_list = _create_once
    ConfigLoaderImpl._compose_config_from_defaults_list = _compose_once  # type: ignore[method-assign]
