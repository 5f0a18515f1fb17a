"""What a library says when it refuses a value, as the one line that names the key."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from gradflow.runs.errors import did_you_mean

UNEXPECTED = re.compile(r"(\w+)(?:\.__init__)?\(\) got an unexpected keyword argument '(\w+)'")


def no_such(target: str) -> str:
    """Why a dotted name leads to nothing."""
    module, _, last = target.rpartition(".")
    try:
        classes = [word for word, value in vars(import_module(module)).items() if inspect.isclass(value)]
    except ImportError:
        return f"there is no module {module}"
    guess = did_you_mean(last, classes)
    return f"{module} has no {last}" + (f"; {guess}" if guess.startswith("did") else "")


def named(name: str, node: Mapping[Any, Any], error: object) -> str:
    """Led by the key of the node that it is about, where one can be made out from names and values in its words."""
    text = " ".join(str(error).split())
    keys = [str(key) for key in node if not str(key).startswith("_")]
    if (unexpected := UNEXPECTED.search(text)) and unexpected[2] in keys:
        return f"{name}.{unexpected[2]}: no such key of {unexpected[1]}"
    nulls = [key for key in keys if node[key] is None]
    if "NoneType" in text and len(nulls) == 1:
        return f"{name}.{nulls[0]}=null: expected a value ({text})"
    words = [word.rstrip(".") for word in re.findall(r"[^\s'\"`()\[\],:=]+", text)]
    named_there = [key for key in keys if re.search(rf"\b{key}\b", text, re.IGNORECASE)]
    valued_there = [key for key in keys if str(node[key]) in words]
    both = [key for key in named_there if key in valued_there]
    found = both or named_there or (valued_there if len(valued_there) == 1 else [])
    return f"{name}.{found[0]}={node[found[0]]}: {text}" if found else f"{name}: {text}"
