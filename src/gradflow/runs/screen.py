"""What a command prints for a person: tables and rows, laid out for the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from gradflow.runs.errors import spelled, wrapped


class Screen(Console):
    """A console without guesses at colours. Signs that the encoding spells with several letters are replaced before a
    table is laid out, so that its columns stay below each other and fit the width."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(spelled(text, self.file), **options)

    def row(self, name: str, text: str, style: str = "", margin: int = 12) -> None:
        """Print a text behind its name. The style is that of a verdict's first word, or of a link."""
        line = Text(wrapped(name.ljust(margin) + text, margin))
        line.stylize(style, margin, None if "link" in style else margin + len(text.partition(" ")[0]))
        self.print(line, soft_wrap=True)


def link(path: Path) -> str:
    """Return the style of a text that a terminal opens."""
    return f"link {path.absolute().as_uri()}"
