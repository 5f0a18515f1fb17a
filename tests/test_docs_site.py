"""Every page of the documentation, and the site that is made of them: nothing here names a page."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from conftest import OPTIONS
from examples import ROOT, copied, files
from PIL import Image

sys.path.insert(0, str(ROOT / "scripts"))

import docs_pictures

DOCS = ROOT / "docs"
SITE = tomllib.loads((ROOT / ".zensical.toml").read_text(encoding="utf-8"))["project"]
PAGES = sorted(page.relative_to(ROOT).as_posix() for folder in (ROOT, DOCS) for page in folder.glob("*.md"))
NOTEBOOKS = sorted(page.relative_to(ROOT).as_posix() for page in DOCS.glob("*.ipynb"))
_CODE = re.compile(r"^```\w*\n(.*?)^```|((?:^    [^\n]*\n)+)", re.MULTILINE | re.DOTALL)


def text(page: str) -> str:
    """Return what a page or the prose of a notebook says."""
    content = (ROOT / page).read_text(encoding="utf-8")
    if not page.endswith(".ipynb"):
        return content
    return "\n".join(
        "".join(cell["source"]) for cell in json.loads(content)["cells"] if cell["cell_type"] == "markdown"
    )


def code(page: str) -> str:
    blocks = ("".join(match.groups(default="")) for match in _CODE.finditer(text(page)))
    return "\n".join(blocks).replace("\\\n", " ")


def anchors(page: Path) -> set[str]:
    """Return the headings of a page as the ends of links."""
    prose = _CODE.sub("", page.read_text(encoding="utf-8"))
    found = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


def in_navigation(entries: Any) -> Iterator[str]:
    for entry in entries:
        for target in entry.values() if isinstance(entry, dict) else [entry]:
            yield from [target] if isinstance(target, str) else in_navigation(target)


def test_every_page_is_in_the_navigation_once():
    assert sorted(in_navigation(SITE["nav"])) == sorted(page.name for page in DOCS.glob("*.md"))


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS])
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\(([^)#:\s]*)(?:#([^)]*))?\)", text(page)):
        file = (ROOT / page).parent / target if target else ROOT / page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), f"{target}#{anchor}"
        assert file.is_relative_to(DOCS) or not page.startswith("docs/"), f"{target}: is not on the site"


def test_every_picture_is_shown_and_small():
    shown = " ".join(text(page) for page in PAGES)
    for picture in DOCS.glob("*.png"):
        assert picture.name in shown
        assert picture.stat().st_size <= 300_000
        with Image.open(picture) as image:
            assert image.width >= 1800


def commands(page: str) -> Iterator[list[str]]:
    """Yield program and overrides of each command of a page that trains or probes, of a sweep all values but one.

    Left out are options whose YAML the page names without its content, and what needs a finished run.
    """
    named = set(re.findall(r"(\w+)/(\w+)\.yaml", code(page))) - {
        (Path(name).parent.name, Path(name).stem) for name in files(page)
    }
    for program, rest in re.findall(r"(src/(?:train|probe)\.py) +([^#\n]*)", code(page)):
        words = [word for word in shlex.split(rest) if "=" in word and tuple(word.split("=", 1)) not in named]
        if "<" not in rest and "resume=" not in rest:
            yield [program, *(re.sub(r",[^\]]*$", "", word) for word in words)]


def test_options_of_commands_exist():
    seen = 0
    for page in PAGES:
        own = {Path(name).stem for name in files(page)}
        for _, *words in commands(page):
            chosen = {word.split("=", 1)[0]: re.findall(r"\w+", word.split("=", 1)[1]) for word in words}
            for group in chosen.keys() & OPTIONS.keys():
                assert set(chosen[group]) <= {*OPTIONS[group], *own, "null"}, f"{page}: {group}={chosen[group]}"
                seen += 1
    assert seen > 50


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CHANGELOG.md"])
def test_files_and_targets_that_are_named_are_there(page):
    """The changelog tells of those that are gone."""
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = re.findall(r"`make ([\w-]+)|^make ([\w-]+)", text(page), re.MULTILINE)
    assert {target for pair in named for target in pair if target} <= targets
    for file in re.findall(r"\b((?:src|tests|scripts|conf)/[\w/]+\.(?:py|yaml|sh))\b", text(page)):
        assert (ROOT / file).exists() or file in files(page), file


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("docs/") and [*commands(page)]])
def test_commands_compose(page, tmp_path):
    fork = copied(tmp_path, files(page))
    for command in commands(page):
        done = subprocess.run(
            [sys.executable, *command, "--cfg", "job"], cwd=fork, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (command, done.stderr)


def test_every_picture_of_a_run_stands_above_its_command():
    """So that scripts/docs_pictures.py finds it."""
    for page in PAGES:
        found = dict(docs_pictures.pictures(ROOT / page)) if page.startswith("docs/") else {}
        assert all(command.split()[1] in {program for program, *_ in commands(page)} for command in found.values())
    assert {"gradients", "depth", "report"} <= {
        name for page in DOCS.glob("*.md") for name, _ in docs_pictures.pictures(page)
    }


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path):
    """It tells of a network at chance, and of one that has learned."""
    out = tmp_path / "executed.ipynb"
    subprocess.run([sys.executable, ROOT / "scripts/notebook.py", "--out", out], cwd=tmp_path, check=True)
    stored = [
        cell["outputs"] for cell in json.loads(out.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"
    ]
    printed = "".join("".join(one.get("text", ())) for outputs in stored for one in outputs)
    stuck, cured = map(float, re.findall(r"validation accuracy after \d+ epochs: ([\d.]+)", printed))
    assert stuck < 0.12
    assert cured > 0.25
    assert re.search(r"^FAIL: ", printed, re.MULTILINE)
    assert sum("image/png" in one.get("data", ()) for outputs in stored for one in outputs) == 4


def test_the_notebook_is_stored_with_its_outputs():
    for page in NOTEBOOKS:
        cells = [
            cell
            for cell in json.loads((ROOT / page).read_text(encoding="utf-8"))["cells"]
            if cell["cell_type"] == "code"
        ]
        assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
        assert any("image/png" in one.get("data", ()) for cell in cells for one in cell["outputs"])
        assert not any(
            one["output_type"] == "error" or "/" + "tmp" in json.dumps(one) for cell in cells for one in cell["outputs"]
        )


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("zensical"), reason="zensical is not installed: `make docs` installs it")
def test_the_site_loads_nothing_from_elsewhere(tmp_path):
    shutil.copytree(DOCS, tmp_path / "docs")
    shutil.copy(ROOT / ".zensical.toml", tmp_path)
    build = [sys.executable, "-m", "zensical", "build", "--strict", "--config-file", ".zensical.toml"]
    subprocess.run(build, cwd=tmp_path, check=True)
    built = [*(tmp_path / SITE["site_dir"]).rglob("*")]
    html = {file.stem: file.read_text(encoding="utf-8") for file in built if file.suffix == ".html"}
    assert html.keys() >= {page.stem for page in DOCS.glob("*.md")}
    loads = re.compile(
        r"<(?:script|img|iframe|source|link|video|audio|object|embed)\b[^>]*?(?:src|href|data)=[\"']?(?:https?:)?//[^>]*>"
    )
    assert not [found for page in html.values() for found in loads.findall(page)]
    styles = [file.read_text(encoding="utf-8") for file in built if file.suffix == ".css"]
    assert styles
    assert not [
        found for style in styles for found in re.findall(r"(?:@import|url\()\s*[\"']?(?:https?:)?//[^)]*", style)
    ]
    assert all(SITE["extra"]["polyfills"][0] in page for page in html.values())
