"""Execute the notebook of docs/ from top to bottom, and store what its cells print and show; no Jupyter is needed.

    python scripts/notebook.py                        # a minute or two on two CPU cores
    python scripts/notebook.py --out somewhere.ipynb  # and leave that of docs/ as it is

What goes to stderr, such as a progress bar, is seen and not stored.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import sys
import types
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from docs_pictures import store

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "docs" / "why-does-it-not-train.ipynb"
sys.path.insert(0, str(ROOT / "src"))
os.environ["COLUMNS"] = "150"  # a line for an epoch, not broken


class Image:
    """Stands for IPython's: a picture on disk, stored in fewer colours."""

    def __init__(self, filename: Path) -> None:
        store(filename, png := io.BytesIO())
        self.png = base64.b64encode(png.getvalue()).decode()


class Outputs:
    """Collects what a cell prints and shows, in order, as a notebook holds it."""

    def __init__(self) -> None:
        self.cell: list[Mapping[str, Any]] = []
        self.printed = io.StringIO()

    def display(self, *shown: Image) -> None:
        if text := self.printed.getvalue():
            self.cell.append({"name": "stdout", "output_type": "stream", "text": text.splitlines(keepends=True)})
            self.printed.seek(0)
            self.printed.truncate()
        for one in shown:
            data = {"image/png": one.png, "text/plain": ["<IPython.core.display.Image object>"]}
            self.cell.append({"data": data, "metadata": {}, "output_type": "display_data"})

    def of(self, source: str, names: dict[str, Any]) -> list[Mapping[str, Any]]:
        """Run a cell among the names of those before it."""
        with redirect_stdout(self.printed):
            exec(compile(source, "cell", "exec"), names)
        self.display()
        outputs, self.cell = self.cell, []
        return outputs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=NOTEBOOK, help="where the executed notebook goes")
    args = parser.parse_args()
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    outputs, names = Outputs(), {"__name__": "__main__"}
    sys.modules["IPython.display"] = shown = types.ModuleType("IPython.display")
    vars(shown).update(Image=Image, display=outputs.display)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(code, 1):
        cell["execution_count"], cell["outputs"] = number, outputs.of("".join(cell["source"]), names)
    args.out.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
