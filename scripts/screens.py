"""Pictures of what the terminal shows, as docs/screens.md has them: docs/screens/<screen>-<80|120|pipe>.svg.

python scripts/screens.py               # all of them, in some minutes; needs tmux
python scripts/screens.py end_fail      # one

A screen is a command, run in a pseudo-terminal of 80 and of 120 columns and through a pipe, and what stood there last.
Add one to SCREENS, and a line to docs/screens.md.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parents[1]
OUT = ROOT / "docs" / "screens"
SMALL = "model.width=64 data=shapes data.size=16 trainer=cpu logger=none"
DEEP = f"model=mlp model.depth=20 activation=sigmoid init=torch {SMALL}"
SWEEP = "optimizer.lr=0.001,1e30 seed=0,1 trainer.max_epochs=1"
SCREENS = {  # the command, and what stands on the screen when its picture is taken; None: when it has ended
    "start": (f"src/train.py model=mlp model.depth=8 {SMALL} trainer.max_epochs=200", r"Epoch \d+/200 [━─]* ?[1-9]"),
    "end_ok": (f"src/train.py model=mlp model.depth=5 {SMALL} trainer.max_epochs=5", None),
    "end_fail": (f"src/train.py {DEEP} trainer.max_epochs=2", None),
    "sweep": (f"src/train.py -m model=mlp model.depth=3,12 activation=relu,sigmoid,tanh {SMALL} {SWEEP}", None),
    "probe": (f"src/probe.py {DEEP.replace('=20', '=12').replace(' logger=none', '')}", None),
}
LINES = 120  # of the pseudo-terminal: no screen scrolls
PATIENCE = 300  # seconds
PAGE = """<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>{styles}
.{unique_id}-matrix {{ font: {char_height}px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace }}
</style><defs><clipPath id="{unique_id}-clip-terminal">
<rect width="{terminal_width}" height="{terminal_height}"/></clipPath>{lines}</defs>
<rect width="100%" height="100%" rx="8" fill="#292929"/>
<g transform="translate(9, 9)">{backgrounds}<g class="{unique_id}-matrix">{matrix}</g></g></svg>
"""


def main() -> None:
    OUT.mkdir(exist_ok=True)
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    os.environ["OMP_NUM_THREADS"] = "1"  # two beside a busy process are many times slower
    for name in sys.argv[1:] or SCREENS:
        command, until = SCREENS[name]
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "src").symlink_to(ROOT / "src")
            for columns in (80, 120):
                draw(on_terminal(f"python {command}", until, columns, folder), columns, f"{name}-{columns}")
            text = through_pipe(f"python {command}", until, folder)
            draw(text, max(map(len, text.splitlines())), f"{name}-pipe")


def on_terminal(command: str, until: str | None, columns: int, folder: str) -> str:
    """Return the last state of the screen, with the escape codes of its colours."""
    server = ["tmux", "-L", f"screens-{os.getpid()}", "-f", os.devnull]

    def ask(*question: str) -> str:
        return subprocess.run([*server, *question], check=True, capture_output=True, text=True).stdout

    lines = textwrap.wrap(
        f"$ {command}", columns - 2, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )
    typed = " \\\n".join(lines)
    shown = f"printf '%s\\n' {shlex.quote(typed)}; exec {command}"
    begin = ["set", "-g", "remain-on-exit", "on", ";", "new-session", "-d", "-x", f"{columns}", "-y", f"{LINES}", shown]
    subprocess.run([*server, "start-server", ";", *begin], cwd=folder, check=True)
    try:
        text, end = "", time.monotonic() + PATIENCE
        dead = "0"
        while time.monotonic() < end and dead == "0" and not (until and re.search(until, text)):
            time.sleep(0.5)
            dead = ask("display-message", "-p", "#{pane_dead}").strip()
            text = ask("capture-pane", "-p", "-e", "-S", "-")  # with what has scrolled by: the line on the pane's end
        return re.sub(r"\s*Pane is dead.*", "", text, flags=re.DOTALL).rstrip()
    finally:
        subprocess.run([*server, "kill-server"], check=False)


def through_pipe(command: str, until: str | None, folder: str) -> str:
    """Return what a file would hold."""
    process = subprocess.Popen(command.split(), cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    lines = [f"$ {command} 2>&1 | cat\n"]
    for line in process.stdout or ():
        lines.append(line)
        if until and line.startswith("Epoch"):
            process.terminate()
            break
    process.communicate()
    return "".join(lines)


def draw(text: str, columns: int, name: str) -> None:
    console = Console(record=True, width=columns, file=io.StringIO(), force_terminal=True)
    for line in text.splitlines():
        console.print(Text.from_ansi(line.rstrip()), soft_wrap=True)
    (OUT / f"{name}.svg").write_text(console.export_svg(code_format=PAGE, unique_id=name), encoding="utf-8")


if __name__ == "__main__":
    main()
