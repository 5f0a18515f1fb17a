"""The set-up fetches nothing that a lock file does not name by hash."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LOCKS = (ROOT / "requirements.lock", *sorted((ROOT / "scripts").glob("*.lock")))


def commands(text: str) -> list[str]:
    """Of a shell script or a Makefile, without comments; continued lines joined."""
    lines = text.replace("\\\n", " ").splitlines()
    return [line for line in lines if not line.lstrip().startswith("#")]


@pytest.mark.parametrize(
    ("file", "installs"), [("scripts/setup.sh", 3), ("scripts/docs.sh", 1), ("Makefile", 0), (".ci/run", 0)]
)
def test_every_installation_asks_for_hashes(file, installs):
    """--no-build-isolation, too: else a package that comes as source fetches its build tools without any."""
    fetches = re.compile(r"\b(install|sync|uvx|curl|wget)\b")
    found = [line for line in commands((ROOT / file).read_text()) if fetches.search(line)]
    assert len(found) == installs, found
    for line in found:
        if line.endswith("--editable ."):  # the project itself
            assert {"--no-deps", "--no-build-isolation", "--offline"} <= set(line.split())
            continue
        assert "--require-hashes" in line
        assert any(f"-r {lock.relative_to(ROOT)}" in line for lock in LOCKS)
        assert "uv pip" not in line or "--no-build-isolation" in line


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_every_package_is_pinned_by_hash(lock):
    entries = [line for line in commands(lock.read_text()) if line.strip()]
    assert entries
    for entry in entries:
        assert re.match(r"[\w.-]+==[^ ]+ .*--hash=sha256:[0-9a-f]{64}", entry), entry
    assert "://" not in lock.read_text()


def test_the_package_can_be_imported_from_anywhere(tmp_path):
    """After `make setup`, as a notebook or a script of one's own does it."""
    code = "import gradflow, pathlib; print(pathlib.Path(gradflow.__file__).parents[1])"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (Path(done.stdout.strip()) / "train.py").is_file()
