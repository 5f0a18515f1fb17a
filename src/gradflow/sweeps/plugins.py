"""Our launcher and our sweeper, as Hydra's plugins: what `hydra/launcher=` and `hydra/sweeper=` choose.

The command line registers them at its start, rather than in a package `hydra_plugins`, which every Hydra application of
the same environment would load. What they need is imported when a sweep starts.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.utils import get_class

_NAMESPACE = "hydra_plugins.gradflow"  # Hydra locates plugins by name, and takes none that begins otherwise


class JobLauncher(Launcher):
    """Run every job of a sweep in a process of its own, where the `Backend` of that name starts it."""

    __module__ = _NAMESPACE

    def __init__(self, backend: str, fail_fast: bool, **options: Any) -> None:
        self.backend, self.fail_fast, self.options = backend, fail_fast, options

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        from gradflow.sweeps.job_plan import Planner

        backend = get_class(self.backend)(**self.options)
        self.planner = Planner(hydra_context.config_loader, config, backend, self.fail_fast)
        backend.prepare()

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from gradflow.sweeps.launch import launch

        return launch(self.planner, [list(overrides) for overrides in job_overrides])


class OptunaSweeper(Sweeper):
    """Let Optuna propose the jobs of a sweep, and learn from what they return."""

    __module__ = _NAMESPACE

    def __init__(self, **options: Any) -> None:
        self.options = options

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        from gradflow.sweeps import search

        self.config = config
        self.study_options, self.space = search.checked(config, self.options, hydra_context.config_loader)
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        from gradflow.sweeps.search import search

        assert self.config is not None
        assert self.launcher is not None
        search(self.config, self.study_options, self.space, self.launcher)


def register() -> None:
    """Make the plugins known to Hydra in this process, under the one kind of name that it instantiates."""
    plugins = Plugins.instance()  # first of all, since it looks for a package hydra_plugins that others have installed
    package, _, name = _NAMESPACE.partition(".")
    parent = sys.modules.setdefault(package, ModuleType(package))
    sys.modules[_NAMESPACE] = sys.modules[__name__]
    setattr(parent, name, sys.modules[__name__])
    for plugin in (JobLauncher, OptunaSweeper):
        plugins.register(plugin)
