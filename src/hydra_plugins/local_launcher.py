"""`hydra/launcher=local`: every job of a sweep is its own clean run, and all devices of this machine are kept busy.

Hydra imports this file whenever it starts: what it needs is imported when a sweep does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher


class LocalLauncher(Launcher):
    def __init__(self, jobs: int | None = None, jobs_per_device: int = 1, fail_fast: bool = False) -> None:
        self.given, self.fail_fast = {"jobs": jobs, "jobs_per_device": jobs_per_device}, fail_fast

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        from gradflow.sweeps.forkserver import ForkServer
        from gradflow.sweeps.jobs import Jobs
        from gradflow.sweeps.machine import Pool

        pool, server = Pool(**self.given), lambda folder: ForkServer()
        self.jobs = Jobs(hydra_context.config_loader, config, pool, server, self.fail_fast)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        return self.jobs.launch([list(words) for words in job_overrides])
