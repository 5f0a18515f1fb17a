"""What a library says when it rejects a value, as the one line that names the key."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from gradflow.runs.errors import did_you_mean

_UNEXPECTED = re.compile(r"(\w+)(?:\.__init__)?\(\) got an unexpected keyword argument '(\w+)'")


def why_not_found(target: str) -> str:
    """Return why a dotted name leads to nothing."""
    module, _, last = target.rpartition(".")
    try:
        classes = [name for name, value in vars(import_module(module)).items() if inspect.isclass(value)]
    except ImportError:
        return f"there is no module {module}"
    guess = did_you_mean(last, classes)
    return f"{module} has no {last}" + (f"; {guess}" if guess.startswith("did") else "")


def with_key(name: str, node: Mapping[Any, Any], error: object, overrides: Sequence[str] = ()) -> str:
    """Return an error behind the key of the node that it is about, where names and values in its text show which."""
    text = " ".join(str(error).split())
    if text.startswith(f"{name}."):
        return text
    keys = [str(key) for key in node if not str(key).startswith("_")]
    if (unexpected := _UNEXPECTED.search(text)) and unexpected[2] in keys:
        return f"{name}.{unexpected[2]}: no such key of {unexpected[1]}"
    if "NoneType" in text:
        nulls = [key for key in keys if node[key] is None]
        set_by_user = [key for key in nulls if f"{name}.{key}=null" in overrides] or nulls
        if len(set_by_user) == 1:
            return f"{name}.{set_by_user[0]}=null: expected a value"
    tokens = [token.rstrip(".") for token in re.findall(r"[^\s'\"`()\[\],:=]+", text)]
    by_name = [key for key in keys if re.search(rf"\b{key}\b", text, re.IGNORECASE)]
    by_value = [key for key in keys if str(node[key]) in tokens]
    both = [key for key in by_name if key in by_value]
    about = both or by_name or (by_value if len(by_value) == 1 else [])
    return f"{name}.{about[0]}={node[about[0]]}: {text}" if about else f"{name}: {text}"
