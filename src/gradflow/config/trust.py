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

from hydra._internal.utils import _locate
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf
from yaml import YAMLError  # type: ignore[import-untyped]

from gradflow import runs
from gradflow.config.arguments import CONF
from gradflow.config.library_errors import no_such
from gradflow.runs.errors import UserError
from gradflow.runs.files import check_files

LIBRARIES = ("torch.optim.", "torch.nn.", "lightning.", "torchmetrics.", "torchvision.")
OPTION = re.compile(r"[\w-]+(/[\w-]+)*")  # of a group, and no path to a file elsewhere
REFERENCE = re.compile(r"\$\{(\w+(?:\.\w+)*)\}")  # to another key; a resolver has a colon


def permit(name: str, target: str) -> None:
    """Refuse what a trusted configuration may not build: conf/ can name anything for its group, the command line
    classes of the libraries besides. Where a class was defined counts, not by which module it can be reached."""
    if not (ours := target in targets(group_of(name))) and not target.startswith(LIBRARIES):
        raise UserError(f"{name}: _target_ {target} is neither {allowed(name)}")
    try:
        found: Any = _locate(target)  # get_object is the same, and prints what it does not find
    except Exception as error:  # whatever an import ends with
        raise UserError(f"{name}._target_={target}: {no_such(target)}") from error
    if not ours and not (isclass(found) and f"{found.__module__}.".startswith(LIBRARIES)):
        raise UserError(f"{name}: _target_ {target} is neither {allowed(name)}")


def allowed(name: str) -> str:
    return f"named in conf/{group_of(name)}/ nor a class of {', '.join(f'{prefix}*' for prefix in LIBRARIES)}"


def check_recorded(words: Sequence[str]) -> list[str]:
    """Return the overrides that a run folder has recorded, or refuse the first that chooses more than values and
    options of conf/: none builds something else, reads the environment, or writes outside of the run's folder."""
    parsed = OverridesParser.create().parse_overrides(list(words))
    built = {path for path, _ in conf() if last(path) == "_target_"}
    built |= {
        path for word in parsed for path, _ in nodes({word.key_or_group: word.value()}) if last(path).startswith("_")
    }
    for word in parsed:
        if why := unfit(word, built):
            raise UserError(
                f"{word.input_line}: the run's folder asks for it, but {why}; "
                "if you trust it, give it on the command line, beside resume=…"
            )
    return list(words)


def check_run(run: Path) -> None:
    """Refuse a run folder, or a sweep's around it, with links that lead out of it, pipes or devices."""
    check_files(run)
    if (sweep := runs.shared_folder(run)) != run:
        check_files(sweep, deep=False)


def unfit(word: Override, built: set[str]) -> str | None:
    """Why a recorded override is refused."""
    key, value = word.key_or_group, word.value()
    if word.package is not None or word.is_sweep_override() or group_of(key) == "hydra":
        return "changes more than values"
    if "/" in key or (CONF / key).is_dir():
        options = value if isinstance(value, list) else [value]
        ill = next((one for one in options if one is not None and not OPTION.fullmatch(str(one))), None)
        return None if ill is None else f"{ill} is not the name of an option"
    return next((why for path, one in nodes({key: value}) if (why := unfit_value(path, one, built))), None)


def unfit_value(path: str, value: Any, built: set[str]) -> str | None:
    group, key, text = group_of(path), last(path), str(value)
    if key.startswith("_") and not (key == "_target_" and text in targets(group)):
        return f"conf/{group}/ has no such {key}"
    if isinstance(value, (Mapping, list)):
        return None  # its entries follow
    if "${" in REFERENCE.sub("", text):
        return "only ${key} may refer to something else"
    if any(group_of(to) == "hydra" or any(f"{node}.".startswith(f"{to}.") for node in built)
           for to in REFERENCE.findall(text)):  # fmt: skip
        return "only a value may be referred to"
    if (group, key) in places():
        return "what a run writes stays in its folder"
    if (CONF / group).is_dir() and group != "data" and leads_out(text):
        return "only data may lie outside of the run's folder"
    return None


def leads_out(text: str) -> bool:
    return text.startswith(("/", "~")) or ".." in re.split(r"[/\\]", text) or ":/" in text or ":\\" in text


def group_of(path: str) -> str:
    return re.split("[./]", path)[0]


def last(path: str) -> str:
    return path.rpartition(".")[2]


@cache
def targets(group: str) -> frozenset[str]:
    """What conf/ names to be built in a group."""
    return frozenset(value for path, value in conf() if last(path) == "_target_" and group_of(path) == group)


@cache
def places() -> frozenset[tuple[str, str]]:
    """Groups and keys whose value is a place in the run's folder."""
    return frozenset(
        (group_of(path), last(path)) for path, value in conf() if isinstance(value, str) and "${run_dir}" in value
    )


@cache
def conf() -> list[tuple[str, Any]]:
    """All keys of conf/, by their paths in the configuration that is composed from it."""
    found: list[tuple[str, Any]] = []
    for file in sorted(CONF.rglob("*.yaml")):
        text = file.read_text()
        if "_target_" in text or "${run_dir}" in text:
            above = "" if "@package _global_" in text else ".".join(file.relative_to(CONF).parent.parts)
            with suppress(YAMLError):  # Hydra tells when it is chosen
                found += nodes(OmegaConf.to_container(OmegaConf.create(text), resolve=False), above)
    return found


def nodes(content: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """Every key within a configuration, at any depth: its path, and what it holds."""
    if isinstance(content, Mapping):
        entries = list(content.items())
    else:
        entries = list(enumerate(content)) if isinstance(content, list) else []
    for key, value in entries:
        path = f"{above}.{key}" if above else str(key)
        yield path, value
        yield from nodes(value, path)
