"""What we use of Hydra 1.3 that it does not promise to keep; pyproject.toml allows no newer minor version.

`get_args_parser` is the parser of `hydra.main`, of which the flags are known. Without it: write the list of flags down.
`locate` is `hydra.utils.get_object` without its print to stderr. Without it: silence `get_object`.
`ConfigLoaderImpl._apply_overrides_to_config` is handed what is composed of the chosen options, before single values are
set in it, and in which a value of a role (optimizers/roles.py) needs no `+`. Without it: compose a second configuration
of those options alone, in 0.2 s, and ask for the `+`.
`ConfigLoaderImpl.repository` knows the options of a group; `get_group_options` of the loader copies all that was read
before it looks, in 4 ms. Without it: that one.
`Hydra.get_mode` composes a configuration to read `hydra.mode` in it, an eighth of the time of a small job. Without it:
drop `expect_single_run`.
"""

import copy
import re
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra._internal.utils import _locate as locate
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig

__all__ = ["OF_ROLE", "expect_single_run", "get_args_parser", "has_options", "last_defaults", "locate"]

_apply_overrides = ConfigLoaderImpl._apply_overrides_to_config
_defaults = DictConfig({})
OF_ROLE = re.compile(r"optimizer\.\w+\.")  # values that a role may have beside those in the optimizer's YAML


def last_defaults() -> DictConfig:
    """Return the configuration that was composed last, as it was before its overrides of values."""
    return _defaults


def has_options(key: str) -> bool:
    """Return whether a key is that of a group, wherever Hydra finds its options."""
    loader: Any = GlobalHydra.instance().config_loader()
    return bool(loader.repository.get_group_options(key, ObjectType.CONFIG))


def _keep_and_apply(overrides: list[Override], cfg: DictConfig) -> None:
    global _defaults
    _defaults = copy.deepcopy(cfg)
    for override in overrides:
        if override.type == OverrideType.CHANGE and "optimizer" in cfg and OF_ROLE.match(override.key_or_group):
            override.type = OverrideType.FORCE_ADD
    _apply_overrides(overrides, cfg)


ConfigLoaderImpl._apply_overrides_to_config = staticmethod(_keep_and_apply)  # type: ignore[method-assign]


def expect_single_run() -> None:
    """Spare this process, a job of a sweep, to ask its configuration whether it is a sweep itself."""
    Hydra.get_mode = lambda *_, **__: None  # type: ignore[method-assign]
