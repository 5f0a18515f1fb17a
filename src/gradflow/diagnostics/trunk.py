"""The trunk of a network that names none: its blocks, whose outputs are the hidden layers h_1 … h_L."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from torch import nn

from gradflow.diagnostics.probe import holds_matrix
from gradflow.runs.errors import UserError, did_you_mean

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)  # hold blocks, and are none


def find_trunk(model: nn.Module) -> list[str]:
    """Return the names of the most numerous like blocks, in the order in which they are defined; none where no class of
    blocks is there twice.

    A block is a module of two or more layers with weights that is no mere container, and lies in no other block.
    """
    count = Counter(type(module) for module in model.modules())
    blocks: dict[type, list[str]] = {}
    for name, kind in _outermost(model, "", count):
        blocks.setdefault(kind, []).append(name)
    most = max(blocks.values(), key=len, default=[])
    return most if len(most) > 1 else []


def _outermost(module: nn.Module, name: str, count: Counter[type]) -> Iterator[tuple[str, type]]:
    kind = type(module)
    if count[kind] > 1 and kind not in _CONTAINERS and sum(map(holds_matrix, module.modules())) > 1:
        yield name, kind
        return
    for key, child in module.named_children():
        yield from _outermost(child, f"{name}.{key}" if name else key, count)


def check_trunk(model: nn.Module, trunk: Sequence[str]) -> list[str]:
    """Return the names, or reject one that is no module's."""
    known = [name for name, _ in model.named_modules() if name]
    if isinstance(trunk, str) or not all(isinstance(name, str) for name in trunk):
        raise UserError(f"trunk={trunk!r}: expected names of modules in a list, first to last")
    for name in trunk:
        if name not in known:
            guess = did_you_mean(name, known)
            hint = guess if len(guess) < 200 else "see model.named_modules()"
            raise UserError(f"trunk: {type(model).__name__} has no module {name}; {hint}")
    return list(trunk)
