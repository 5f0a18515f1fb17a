"""Standard output and error that outlast their reader: a closed pipe or terminal, or a full disk, ends no run."""

from __future__ import annotations

import codecs
import io
import os
import re
import sys
from pathlib import Path
from typing import Any

_POWER = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻·]*[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]")
_SIGNS: dict[int, int | str] = {**str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻₀₁₂₃₄₅₆₇₈₉−–━─╸×·µ∂Δ", "0123456789-0123456789-----x*udd")}
_SIGNS |= {ord("‖"): "||", ord("…"): "...", ord("±"): "+/-", ord("√"): "sqrt "}


def _spell(error: UnicodeError) -> tuple[str, int]:
    """Return what stands for signs that an encoding lacks: letters for ours, an escape for any other, as in a path."""
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    text = _POWER.sub(lambda power: "^" + power[0].replace("·", "."), text).translate(_SIGNS)
    return text.encode("ascii", "backslashreplace").decode(), error.end


codecs.register_error("spell", _spell)


class _Lasting(io.FileIO):
    """Write to the null device once nobody reads any more."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, self.fileno())  # for the processes that this one starts, too
            os.close(nothing)
            return len(data)


def outlast_reader() -> None:
    """Let stdout and stderr outlast whoever reads them, take letters that their encoding does not have, and show each
    line when it is printed."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # it was closed from the start
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
        elif stream is getattr(sys, f"__{name}__") and type(stream) is io.TextIOWrapper:
            if type(getattr(stream.buffer, "raw", None)).__name__ == "_WindowsConsoleIO":
                continue  # whose bytes are not those of the stream's encoding
            stream.flush()
            raw = io.BufferedWriter(_Lasting(stream.fileno(), "w", closefd=False))
            setattr(sys, name, io.TextIOWrapper(raw, stream.encoding, "spell", line_buffering=True))
