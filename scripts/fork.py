"""Give the package another name, in every file that git knows (docs/forking.md): python scripts/fork.py mylab"""

from __future__ import annotations

import keyword
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[1]
KEPT = ("LICENSE", "CITATION.cff")  # they name the authors of what is forked


def main(name: str) -> None:
    old = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["name"]
    files = texts()
    check(name, old, files)
    for path, text in files.items():
        path.write_text(renamed(text, old, name), newline="", encoding="utf-8")
    folder = ROOT / "src" / name / "runs" / "folder.py"
    for package in {parent for path in files for parent in path.parents if parent.name == old and parent != ROOT}:
        package.rename(package.with_name(name))
    before, after = r"(_FORMER_NAMES: tuple\[str, \.\.\.\] = \()", rf'\g<1>"{old}",'
    folder.write_text(re.sub(before, after, folder.read_text(encoding="utf-8")), newline="", encoding="utf-8")
    print(f"{old} is {name} now: look at it with  git diff, test it with  make test, and commit")


def texts() -> Mapping[Path, str]:
    """Return what is in the files that git knows, but for those that are no text."""
    files = {}
    for line in git("ls-files", "-z").split("\0"):
        path = ROOT / line
        if line and line not in KEPT and path.is_file() and not path.is_symlink():
            try:
                files[path] = path.read_bytes().decode()
            except UnicodeDecodeError:
                continue
    return files


def check(name: str, old: str, files: Mapping[Path, str]) -> None:
    """Reject a name that can't be, or that could not be told from what is there; nothing was changed yet."""
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or keyword.iskeyword(name):
        fail(f"NAME={name}: expected small letters, digits and single underscores, as of a Python package")
    if name == old:
        fail(f"NAME={name}: is its name already")
    inside = [path for path in files if path.relative_to(ROOT).parts[0] in ("src", "conf")]
    uses = next((path for path in inside if re.search(rf"(?<![^\W_]){name}(?![^\W_])", files[path])), None)
    if uses or find_spec(name) or (ROOT / "src" / name).exists() or (ROOT / "src" / f"{name}.py").exists():
        fail(f"NAME={name}: is taken, by {uses.relative_to(ROOT) if uses else 'another package or module'}")
    if changed := git("status", "--porcelain").splitlines():
        fail(f"the working tree has {len(changed)} changed or new files: commit or stash them first")


def renamed(text: str, old: str, name: str) -> str:
    """Return a text with the new name in place of the old one, where it stands as a word; the cache of decoded images
    keeps its name, so that those of earlier runs are found."""
    text = re.sub(rf"(?<![^\W_])(?<!(?<!\w)\.){old}(?![^\W_])", name, text)
    return re.sub(rf"\b{old.upper()}_", f"{name.upper()}_", text)


def git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        fail(f"{ROOT}: is no git repository, in which this could be undone: run  git init, and commit first")
    return done.stdout


def fail(line: str) -> NoReturn:
    print(f"error: {line}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    if len(sys.argv) != 2 or not sys.argv[1]:
        fail("give the new name:  make fork NAME=mylab")
    main(sys.argv[1])
