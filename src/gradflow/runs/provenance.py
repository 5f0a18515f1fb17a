"""Where the numbers of a run come from: commit, uncommitted changes, packages, processor. What can't be told is left
out, and never fails a run. No torch here."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

from gradflow.runs.errors import printable
from gradflow.runs.file_names import CHANGES, SUMMARY
from gradflow.runs.files import read_json, write_whole

_ROOT = Path(__file__).parents[3]  # of the checkout
_MOST = 2**20  # bytes of changes that are kept
_PATIENCE = 2.0  # seconds for git, whose files may be on a slow disk
_NAMED = 20  # files that git does not track
_WORD = 10  # letters of a hash or a version that are shown


def record(run: Path) -> dict[str, Any]:
    """Return what a summary says of code, packages and processor, and write uncommitted changes beside it. Of a run
    that is resumed it also says what has changed since its earlier processes."""
    facts, changes = _facts()
    if before := read_json(run / SUMMARY):
        known = earlier if isinstance(earlier := before.get("changed_when_resumed"), list) else []
        if changed := [printable(str(one)) for one in known] + _differences(before, facts):
            facts["changed_when_resumed"] = changed
    if changes:
        with write_whole(run / CHANGES, "wb") as file:
            file.write(changes)
    return facts


def differences(run: Path) -> list[str]:
    """Return what differs between a run's code, packages and processor and today's, as far as both are known."""
    return _differences(read_json(run / SUMMARY), _facts()[0])


def _differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    then, now = _comparable(one), _comparable(other)
    return [f"{name} {then[name]} then, {now[name]} now" for name in now if then.get(name, now[name]) != now[name]]


def _comparable(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return commit, hashes and versions, as words without what a terminal obeys: a stranger may have written them."""
    git, versions = (dict(one) if isinstance(one := facts.get(name), Mapping) else {} for name in ("git", "versions"))
    code = {"commit": git.get("commit", "unknown"), "uncommitted changes": git.get("changes", "none")}
    known = code | {"requirements.lock": facts.get("lock", "unknown")} | versions
    return {name: re.sub(r"[^\w.+ -]", "", str(value))[:_WORD] for name, value in known.items()}


def _facts() -> tuple[dict[str, Any], bytes]:
    git, changes = _code() if (_ROOT / "conf").is_dir() else ({}, b"")  # else a package in somebody's environment
    lock = _ROOT / "requirements.lock"
    facts = {"git": git, "lock": hashlib.sha256(lock.read_bytes()).hexdigest() if lock.is_file() else ""}
    facts |= {"versions": {"python": platform.python_version()} | _versions(), "processor": _processor()}
    return {name: fact for name, fact in facts.items() if fact}, changes


def _code() -> tuple[dict[str, Any], bytes]:
    """Return the commit, whether tracked files differ from it, and the changes, with their hash."""
    lines = (_git("status", "--porcelain=v2", "--branch") or b"").decode(errors="replace").splitlines()
    commit = next((line.split()[2] for line in lines if line.startswith("# branch.oid ")), "(initial)")
    if commit == "(initial)":
        return {}, b""
    changes, untracked = b"", [line[2:] for line in lines if line.startswith("? ")]
    facts = {"commit": commit, "dirty": any(line[0] not in "#?" for line in lines)}
    if facts["dirty"]:
        changes = _git("diff", "HEAD", "--binary", "--no-ext-diff", "--no-textconv", "--no-color") or b""
        facts["changes"] = hashlib.sha256(changes).hexdigest() if changes else "too large"
    return facts | ({"untracked": untracked[:_NAMED]} if untracked else {}), changes


def _git(*arguments: str) -> bytes | None:
    """Return what git says of the checkout, for which no link is followed; None where there is none, or it is too slow
    or says too much."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # as of a hook
    command = ["git", "--no-optional-locks", *arguments, "--", "."]
    with suppress(OSError, subprocess.SubprocessError):
        options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "timeout": _PATIENCE}
        said = subprocess.run(command, cwd=_ROOT, env=environment, check=True, **options).stdout
        return said if len(said) <= _MOST else None
    return None


def _versions() -> dict[str, str]:
    """Return the version of each package that the project declares and that is there, by the name of its folder: to
    read what each says of itself takes 20 ms."""
    file = _ROOT / "pyproject.toml"
    declared: list[str] = []
    with suppress(PackageNotFoundError, tomllib.TOMLDecodeError):
        known = tomllib.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        declared = known.get("project", {}).get("dependencies") or requires(__name__.partition(".")[0]) or []
    folders = [path for place in reversed(sys.path) for path in Path(place).glob("*.dist-info")]
    found = {name.lower().replace("_", "-"): version for name, _, version in (f.stem.partition("-") for f in folders)}
    names = [re.split(r"[^\w.-]", requirement)[0] for requirement in declared]
    return {name: found[name] for name in names if name in found}


def _processor() -> str:
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        if name := next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), ""):
            return name
    return platform.processor() or platform.machine()
