"""The overrides of a run: how one is read, which make up the run, how its folder records them. No torch here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from gradflow.runs.file_names import OVERRIDES
from gradflow.runs.files import write_text
from gradflow.runs.folder import recorded_overrides

MULTIRUN = ("-m", "--multirun")
_OF_ENVIRONMENT, _OF_OTHERS = re.compile(r"\$\{oc\.env:"), re.compile(r"\$\{(?!oc\.env:)")  # interpolations


def key(override: str) -> str:
    """Return the key that an override sets."""
    return override.partition("=")[0].lstrip("+~")


def top_key(override: str) -> str:
    """Return the part of the configuration, or the group, that an override is about."""
    return re.split("[./@]", key(override))[0]


def literal(name: str, overrides: Sequence[str]) -> Any:
    """Return the last value of a key as it is written, which is all that may be done with what a run folder holds."""
    matching = [override for override in overrides if key(override) == name and "=" in override]
    return OverridesParser.create().parse_override(matching[-1]).value() if matching else None


def value(name: str, overrides: Sequence[str]) -> str | None:
    """Return the last value that the user has given for a key, as Hydra will read it; None for null."""
    text = literal(name, overrides)
    if isinstance(text, str) and _OF_ENVIRONMENT.search(text) and not _OF_OTHERS.search(text):
        return str(OmegaConf.create({"value": text})["value"])
    return None if text is None else str(text)


def quoted(path: Path) -> str:
    """Return a path as a value in Hydra's grammar."""
    text = str(path).replace("'", "\\'").replace("${", "\\${")
    return f"'{text}'"


def of_command() -> list[str]:
    """Return the overrides of the command, or of this job of a sweep; none where Hydra has not begun."""
    return [str(one) for one in HydraConfig.get().overrides.task] if HydraConfig.initialized() else []


def of_run(arguments: Sequence[str]) -> list[str]:
    """Return what a run consists of: neither where it lies nor where it began, nor flags and what follows them."""
    overrides = [one for one in arguments if not one.startswith("-") and ("=" in one or one.startswith("~"))]
    return [override for override in overrides if top_key(override) not in ("resume", "hydra")]


def same_run(run: Path, arguments: Sequence[str]) -> bool:
    """Return whether the run of a folder has these overrides, in any order."""
    return sorted(of_run(arguments)) == sorted(of_run(recorded_overrides(run)))


def goes_on_in_folder(resume: str) -> bool:
    """Return whether `resume=` names a run that goes on where it is, rather than a checkpoint to begin from."""
    return resume == "auto" or Path(resume).is_dir()


def to_record(run: Path, overrides: Sequence[str]) -> list[str]:
    """Return what stands in a run's records: the overrides of its beginning, however often it was resumed since."""
    if (resume := value("resume", overrides)) and goes_on_in_folder(resume):
        return [override for override in overrides if key(override) != "resume"] + initial_resume(run)
    return list(overrides)


def initial_resume(run: Path) -> list[str]:
    """Return the recorded `resume=<file>` of a run that began from another's checkpoint."""
    if not (run / OVERRIDES).is_file():
        return []
    recorded = [override for override in recorded_overrides(run) if key(override) == "resume"]
    resume = literal("resume", recorded)
    return recorded[-1:] if resume is not None and not goes_on_in_folder(str(resume)) else []


def record(run: Path, cfg: DictConfig) -> None:
    """Write a run's configuration and overrides to its folder, and Hydra's own, unless the same stands there."""
    overrides = of_command()
    if (run / OVERRIDES).is_file() and same_run(run, overrides):
        return
    contents = {"config": cfg, "hydra": {"hydra": HydraConfig.get()}, "overrides": to_record(run, overrides)}
    (run / OVERRIDES).parent.mkdir(exist_ok=True)
    for name, content in contents.items():
        text = OmegaConf.to_yaml(OmegaConf.create(content))  # type: ignore[call-overload]
        write_text(run / ".hydra" / f"{name}.yaml", text)
