"""Make the pictures of docs/ again, at twice the pixels, each by the command that stands under it on its page.

    python scripts/docs_pictures.py                 # all of them: a quarter of an hour on two CPU cores
    python scripts/docs_pictures.py depth 're*'     # some

A picture has the name that its run gives it (depth.png). Where a run leaves a page of that name instead (report.html),
Chromium takes a picture of the page. What scripts/calibrate.py and scripts/bench measure they draw themselves.
"""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
_PICTURE = re.compile(r"!\[[^\]]*\]\((\w+)\.png\)")
_TWICE = (
    "import runpy, sys; from gradflow.plots import theme; theme.DPI *= 2; "
    "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
)
_WIDE, _TALL = 1200, 2400  # CSS pixels of a page that are shown, at most
_GAP = 64  # empty rows of pixels, as between two sections
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["*"], help="names or patterns of pictures, without .png")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="where the pictures go")
    args = parser.parse_args()
    known = {name: command for page in sorted((ROOT / "docs").glob("*.md")) for name, command in pictures(page)}
    chosen = [name for name in known if any(fnmatch(name, pattern) for pattern in args.names)]
    if not chosen:
        parser.error(f"no such picture; known: {', '.join(sorted(known))}")
    for command in dict.fromkeys(known[name] for name in chosen):
        print(command, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            run(command, Path(folder))
            for name in [name for name in chosen if known[name] == command]:
                store(found(Path(folder), name), target := args.out / f"{name}.png")
                print(f"  {target.name}: {target.stat().st_size / 1000:.0f} kB", flush=True)


def pictures(page: Path) -> Iterator[tuple[str, str]]:
    """Yield the name of each picture of a page that a run makes, and its command: the first one under it."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for match in _PICTURE.finditer(text):
        command = re.search(r"^ *(python .*)$", text[match.end() :], re.MULTILINE)
        if command and command[1].startswith("python src/"):
            yield match[1], " ".join(command[1].partition(" #")[0].split())


def run(command: str, folder: Path) -> None:
    """Do what a command says, in a folder of its own."""
    program, *overrides = shlex.split(command)[1:]
    kind, parent = ("sweep", "multirun") if "-m" in overrides else ("run", "runs")
    place = f"hydra.{kind}.dir={folder / parent / 'example'}"
    quiet = ["logger=none"] if program.endswith("train.py") else []
    subprocess.run([sys.executable, "-c", _TWICE, program, *overrides, *quiet, place], cwd=ROOT, check=True)


def found(folder: Path, name: str) -> Path:
    """Return the picture of a name that a run has left, or take one of the page of that name."""
    for file in sorted(folder.rglob(f"{name}.png")):
        return file
    for file in sorted(folder.rglob(f"{name}.html")):
        return screenshot(file, folder / f"{name}.png")
    sys.exit(f"error: the command left no {name}.png and no {name}.html")


def screenshot(page: Path, picture: Path) -> Path:
    """Take a picture of a page from its top, at two pixels for each of its own, down to the last gap that it shows."""
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if browser is None:
        sys.exit(f"error: a picture of {page.name} needs one of {', '.join(_BROWSERS)}, and none is on the PATH")
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars"]
    words += ["--force-device-scale-factor=2", f"--window-size={_WIDE},{_TALL}", "--virtual-time-budget=10000"]
    command = [browser, *words, f"--screenshot={picture}", page.resolve().as_uri()]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("RGB"))
    empty = (pixels == pixels[0, 0]).all((1, 2))
    gaps = np.flatnonzero(np.convolve(empty, np.ones(_GAP), "valid") == _GAP)
    begins = gaps[np.diff(gaps, prepend=-_GAP) > 1]
    Image.fromarray(pixels[: begins[-1] + _GAP if len(begins) else None]).save(picture)
    return picture


def store(source: Path, target: Path | IO[bytes]) -> None:
    """Write a picture in 256 colours, which take a third of the space."""
    with Image.open(source) as image:
        few = image.convert("RGB").quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        few.save(target, "png", optimize=True)


if __name__ == "__main__":
    main()
