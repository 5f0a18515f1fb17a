"""`hydra/sweeper=optuna`: Optuna proposes the jobs of a sweep, and learns from what they return.

Hydra imports this file whenever it starts: what it needs is imported when a search does.
"""

from __future__ import annotations

from typing import Any

from hydra.plugins.sweeper import Sweeper


class OptunaSweeper(Sweeper):
    def __init__(self, **options: Any) -> None:
        self.given = options

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        from hydra.core.plugins import Plugins

        from gradflow.sweeps.search import storage
        from gradflow.sweeps.space import Options, Space

        self.config = config
        self.choose(config)
        self.options = Options(**self.given)
        self.space = Space(config.hydra.overrides.task, self.options.params, hydra_context.config_loader)
        self.options.check(self.space)  # all mistakes are told before the launcher makes a folder
        self.options.point(self.space.check(config))
        if self.options.storage is not None:
            storage(self.options.storage)
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def choose(self, config: Any) -> None:
        """As if the sweeper had been named on the command line: jobs are composed without `search`, which chose it."""
        from omegaconf import open_dict, read_write

        words = config.hydra.overrides.hydra
        if not any(word.startswith("hydra/sweeper=") for word in words):
            with read_write(config.hydra), open_dict(config.hydra):
                words.append(f"hydra/sweeper={config.hydra.runtime.choices['hydra/sweeper']}")

    def sweep(self, arguments: list[str]) -> None:
        from gradflow.sweeps.search import search

        assert self.config is not None
        assert self.launcher is not None
        search(self.config, self.options, self.space, self.launcher)
