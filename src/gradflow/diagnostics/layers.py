"""The trainable layers of any `nn.Module`, from input to output, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn


def weighted(layers: Mapping[str, Sequence[nn.Parameter]]) -> list[str]:
    """Return the layers with a weight matrix or kernel: what pictures show, since norm layers are on another scale."""
    return [name for name, parameters in layers.items() if any(p.ndim > 1 for p in parameters)]


def layers(model: nn.Module, frozen: bool = False) -> dict[str, list[nn.Parameter]]:
    """Return {"03.block2.conv1": its trainable parameters}, in the order in which the modules are defined.

    A layer is a module that holds parameters of its own. What is frozen is left out unless asked for, and a parameter
    that two layers share counts for the first. The index has two digits, or as many as the last needs, so that names
    sort.
    """
    seen: set[nn.Parameter] = set()
    named: list[tuple[str, list[nn.Parameter]]] = []
    for name, module in model.named_modules():
        own = [p for p in module.parameters(recurse=False) if (p.requires_grad or frozen) and p not in seen]
        if own:
            seen.update(own)
            named.append((name.replace("_orig_mod.", "").removeprefix("net."), own))
    digits = max(2, len(str(len(named) - 1)))
    return {
        f"{index:0{digits}d}.{name}" if name else f"{index:0{digits}d}": own for index, (name, own) in enumerate(named)
    }
