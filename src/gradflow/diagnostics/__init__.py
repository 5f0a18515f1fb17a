"""What measures a network, of this package or any other (docs/library.md).

| name | what it is |
|---|---|
| `probe_model` | a function: judges a network by one pass on a batch, before training |
| `GradientFlow` | a Lightning callback: measures the gradient of every layer while a network trains |

They are imported when they are asked for: the first needs no Lightning.
"""

from importlib import import_module
from typing import Any

_HOMES = {"GradientFlow": "gradient_flow", "probe_model": "model_probe"}
__all__ = ["GradientFlow", "probe_model"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
