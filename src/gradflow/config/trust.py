"""What a configuration may build. conf/ and the user's own command line are trusted; the overrides that a run folder
has recorded may be a stranger's, and choose only among what conf/ offers. No torch here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from inspect import isclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf
from yaml import YAMLError

from gradflow import runs
from gradflow.config import options
from gradflow.config.hydra_internals import locate
from gradflow.config.library_errors import why_not_found
from gradflow.runs.errors import UserError
from gradflow.runs.files import check_files
from gradflow.runs.overrides import top_key

_LIBRARIES = ("torch.optim.", "torch.nn.", "lightning.", "torchmetrics.", "torchvision.")
_OPTION = re.compile(r"[\w-]+(/[\w-]+)*")  # of a group, and no path to a file elsewhere
_REFERENCE = re.compile(r"\$\{(\w+(?:\.\w+)*)\}")  # to another key; a resolver has a colon


def check_target(name: str, target: str) -> None:
    """Reject what a trusted configuration may not build: conf/ can name anything for its group, the command line
    classes of the libraries besides. Where a class was defined counts, not by which module it can be reached."""
    ours, located = target in targets(top_key(name)), None
    if ours or target.startswith(_LIBRARIES):
        try:
            located = locate(target)
        except Exception as error:  # whatever an import ends with
            raise UserError(f"{name}._target_={target}: {why_not_found(target)}") from error
    if not ours and not (isclass(located) and f"{located.__module__}.".startswith(_LIBRARIES)):
        libraries = ", ".join(f"{prefix}*" for prefix in _LIBRARIES)
        raise UserError(
            f"{name}: _target_ {target} is neither named in conf/{top_key(name)}/ nor a class of {libraries}"
        )


def check_recorded(overrides: Sequence[str]) -> list[str]:
    """Return the overrides that a run folder has recorded, or reject the first that chooses more than values and
    options of conf/: none builds something else, reads the environment, or writes outside of the run's folder."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    paths = [path for one in parsed for path, _ in nodes({one.key_or_group: one.value()})]
    built = {path for path, _ in _keys_of_conf() if last_key(path) == "_target_"}
    built |= {path for path in paths if last_key(path).startswith("_")}
    for override in parsed:
        if reason := _why_rejected(override, built):
            raise UserError(
                f"{override.input_line}: the run's folder asks for it, but {reason}; "
                "if you trust it, give it on the command line, beside resume=…"
            )
    return list(overrides)


def check_run(run: Path) -> None:
    """Reject a run folder, or a sweep's around it, with links that lead out of it, pipes or devices."""
    check_files(run)
    if (sweep := runs.shared_folder(run)) != run:
        check_files(sweep, deep=False)


def _why_rejected(override: Override, built: set[str]) -> str | None:
    key, value = override.key_or_group, override.value()
    if override.package is not None or override.is_sweep_override() or top_key(key) == "hydra":
        return "changes more than values"
    if "/" in key or options.is_group(key):
        chosen = value if isinstance(value, list) else [value]
        wrong = next((one for one in chosen if one is not None and not _OPTION.fullmatch(str(one))), None)
        return None if wrong is None else f"{wrong} is not the name of an option"
    return next((why for path, one in nodes({key: value}) if (why := _why_value_rejected(path, one, built))), None)


def _why_value_rejected(path: str, value: Any, built: set[str]) -> str | None:
    group, key, text = top_key(path), last_key(path), str(value)
    if key.startswith("_") and not (key == "_target_" and text in targets(group)):
        return f"conf/{group}/ has no such {key}"
    if isinstance(value, (Mapping, list)):
        return None  # its entries follow
    if "${" in _REFERENCE.sub("", text):
        return "only ${key} may refer to something else"
    for to in _REFERENCE.findall(text):
        if top_key(to) == "hydra" or any(f"{node}.".startswith(f"{to}.") for node in built):
            return "only a value may be referred to"
    if (group, key) in _places():
        return "what a run writes stays in its folder"
    if options.is_group(group) and group != "data" and _leads_out(text):
        return "only data may lie outside of the run's folder"
    return None


def _leads_out(text: str) -> bool:
    return text.startswith(("/", "~")) or ".." in re.split(r"[/\\]", text) or ":/" in text or ":\\" in text


def last_key(path: str) -> str:
    return path.rpartition(".")[2]


@cache
def targets(group: str) -> frozenset[str]:
    """Return what conf/ names to be built in a group."""
    keys = _keys_of_conf()
    return frozenset(value for path, value in keys if last_key(path) == "_target_" and top_key(path) == group)


@cache
def _places() -> frozenset[tuple[str, str]]:
    """Return the groups and keys whose value is a place in the run's folder."""
    paths = [path for path, value in _keys_of_conf() if isinstance(value, str) and "${run_dir}" in value]
    return frozenset((top_key(path), last_key(path)) for path in paths)


@cache
def _keys_of_conf() -> list[tuple[str, Any]]:
    """Return all keys of conf/, by their paths in the configuration that is composed from it."""
    keys: list[tuple[str, Any]] = []
    files = ((above, file) for above in options.folders() for file in sorted(above.rglob("*.yaml")))
    for folder, file in files:
        text = file.read_text(encoding="utf-8")
        if "_target_" in text or "${run_dir}" in text:
            above = "" if "@package _global_" in text else ".".join(file.relative_to(folder).parent.parts)
            with suppress(YAMLError):  # Hydra tells when it is chosen
                keys += nodes(OmegaConf.to_container(OmegaConf.create(text), resolve=False), above)
    return keys


def nodes(content: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every key within a configuration, at any depth: its path, and what it holds."""
    entries = dict(enumerate(content)) if isinstance(content, list) else content
    for key, value in entries.items() if isinstance(entries, Mapping) else ():
        path = f"{above}.{key}" if above else str(key)
        yield path, value
        yield from nodes(value, path)
