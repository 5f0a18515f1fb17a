"""`hydra/launcher=slurm`: every job of a sweep is a job of SLURM, which starts it again when its time is up.

Hydra imports this file whenever it starts: what it needs is imported when a sweep does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher


class SlurmLauncher(Launcher):
    def __init__(self, cluster: str, max_num_timeout: int, jobs: int | None, fail_fast: bool, **options: Any) -> None:
        own = {"cluster": cluster, "max_num_timeout": max_num_timeout, "jobs": jobs}
        self.given: dict[str, Any] = own | {"options": options}
        self.fail_fast = fail_fast

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        from gradflow.sweeps.jobs import Jobs
        from gradflow.sweeps.slurm import Slurm

        slurm = Slurm(**self.given)
        self.jobs = Jobs(hydra_context.config_loader, config, slurm, slurm.at, self.fail_fast)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        return self.jobs.launch([list(words) for words in job_overrides])
