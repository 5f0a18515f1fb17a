"""What each parameter is to its network, so that an optimizer can treat some of them in another way.

| role | parameters |
|---|---|
| `input` | weights of the first layer, unless that is an embedding |
| `hidden` | weights between the first and the last layer: matrices, kernels of convolutions, recurrent weights |
| `output` | weights of the last layer |
| `embeddings` | embeddings, and what a module holds beside its layers: positions, a class token |
| `vectors` | biases, norms, scales |

They are read off the order in which modules are defined. A model knows better where it says so: its attribute `roles`
maps the name of a parameter, or of a module with all that is in it, to one of these roles or to one of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from gradflow.runs.errors import UserError, did_you_mean

ROLES = ("input", "hidden", "output", "embeddings", "vectors")
REST = "rest"  # the group of what no other group names
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_NORMS = (nn.LayerNorm, nn.RMSNorm)  # whose weights may have several dimensions


def roles(model: nn.Module) -> dict[str, str]:
    """Return the role of each parameter by its name, in the order of `model.named_parameters()`."""
    names = {parameter: name for name, parameter in model.named_parameters()}  # of one that is shared, the first
    found: dict[str, str] = {}
    layers: list[list[str]] = []  # the weights of each, in order
    for module in model.modules():
        own = {names[p]: p for p in module.parameters(recurse=False)}
        whole = not any(True for child in module.children() for _ in child.parameters())
        for full, parameter in own.items():
            found.setdefault(full, _role(module, full, parameter, whole))
        weights = [full for full in own if found[full] == "hidden"]
        if weights or (whole and any(found[full] != "vectors" for full in own)):  # an embedding is a layer, too
            layers.append(weights)
    for place, role in ((0, "input"), (-1, "output")) if layers else ():
        found |= {name: role for name in layers[place] if not _is_recurrent(name)}
    found |= _said_by(model, list(found))
    return {name: found[name] for name in names.values()}


def _role(module: nn.Module, name: str, parameter: nn.Parameter, whole: bool) -> str:
    """Return the role of a parameter that `module` itself holds, as if it stood amid the network; a module is a `whole`
    layer unless layers are within it."""
    beside_layers = not whole and "weight" not in name.rpartition(".")[2]
    if isinstance(module, _EMBEDDINGS) or (beside_layers and parameter.ndim > 1):
        return "embeddings"
    scale = parameter.ndim > 2 and parameter.numel() == max(parameter.shape)  # of shape [channels, 1, 1]
    return "vectors" if parameter.ndim < 2 or scale or isinstance(module, _NORMS) else "hidden"


def _is_recurrent(name: str) -> bool:
    """Return whether a weight of an `nn.RNNBase` leads from state to state, or from one of its layers to the next."""
    last = name.rpartition(".")[2]
    return last.startswith(("weight_hh", "weight_hr")) or (last.startswith("weight_ih_l") and last[11:12] != "0")


def _said_by(model: nn.Module, names: list[str]) -> dict[str, str]:
    """Return the roles that the model says; of several entries for a parameter the last counts."""
    said: Any = getattr(model, "roles", {})
    if not isinstance(said, Mapping):
        raise UserError(f"{type(model).__name__}.roles: expected names and their roles, like {{'net.gate': 'vectors'}}")
    roles: dict[str, str] = {}
    for prefix, role in said.items():
        own = [name for name in names if name == prefix or name.startswith(f"{prefix}.")]
        if not own:
            modules = {name.rpartition(".")[0] for name in names}
            guess = did_you_mean(prefix, {*names, *modules} - {""})
            raise UserError(f"{type(model).__name__}.roles: the model has no parameter {prefix}; {guess}")
        if role == REST:
            raise UserError(
                f"{type(model).__name__}.roles: {REST} is what no group names; call {prefix}'s role otherwise"
            )
        roles |= dict.fromkeys(own, str(role))
    return roles
