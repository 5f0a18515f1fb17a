"""`hydra/launcher=ray`: every job of a sweep is its own clean run, somewhere on a Ray cluster.

Hydra imports this file whenever it starts: what it needs is imported when a sweep does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher


class RayLauncher(Launcher):
    def __init__(self, address: str | None, jobs: int | None, fail_fast: bool, **options: Any) -> None:
        self.given: dict[str, Any] = {"address": address, "jobs": jobs, "options": options}
        self.fail_fast = fail_fast

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        from gradflow.sweeps.jobs import Jobs
        from gradflow.sweeps.ray_cluster import RayCluster

        cluster = RayCluster(**self.given)
        self.jobs = Jobs(hydra_context.config_loader, config, cluster, cluster.at, self.fail_fast)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        return self.jobs.launch([list(words) for words in job_overrides])
