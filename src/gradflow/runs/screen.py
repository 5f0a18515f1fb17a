"""What a command prints for a person: tables and rows, laid out for the terminal."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.text import Text

from gradflow.runs.errors import spelled


class Screen(Console):
    """A console of plain text on stdout. Signs that the encoding spells with several letters are replaced before a
    table is laid out, so that its columns stay below each other and fit the width."""

    def __init__(self) -> None:
        super().__init__(highlight=False)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(spelled(text, sys.stdout), **options)
