"""The set-up fetches nothing that a lock file does not name by hash."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LOCKS = (ROOT / "requirements.lock", ROOT / "scripts" / "setup.lock")


def commands(text: str) -> list[str]:
    """Of a shell script or a Makefile, without comments; continued lines joined."""
    lines = text.replace("\\\n", " ").splitlines()
    return [line for line in lines if not line.lstrip().startswith("#")]


@pytest.mark.parametrize("file", ["scripts/setup.sh", "Makefile", ".ci/run"])
def test_every_installation_asks_for_hashes(file):
    """--no-build-isolation, too: else a package that comes as source fetches its build tools without any."""
    fetches = re.compile(r"\b(install|sync|uvx|curl|wget)\b")
    found = [line for line in commands((ROOT / file).read_text()) if fetches.search(line)]
    assert len(found) == (2 if file.endswith(".sh") else 0), found
    for line in found:
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
