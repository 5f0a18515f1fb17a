"""Batches of any shape: tensors, and tuples, lists and mappings of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from copy import copy
from typing import Any

import torch
from torch import Tensor


def map_tensors(change: Callable[[Tensor], Tensor], batch: Any) -> Any:
    """Return the batch with each of its tensors changed; what is none of the known containers stays what it is."""
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, Mapping):
        changed: Any = copy(batch)  # of its own class, whose attributes a model may ask for
        for key in batch:
            changed[key] = map_tensors(change, batch[key])
        return changed
    if isinstance(batch, (tuple, list)):
        parts = [map_tensors(change, part) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    return batch


def tensors_in(batch: Any) -> Iterator[Tensor]:
    """Yield the tensors of a batch, or of what a module returns: an object's attributes count, too."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, (Mapping, tuple, list)):
        for part in batch.values() if isinstance(batch, Mapping) else batch:
            yield from tensors_in(part)
    elif hasattr(batch, "__dict__"):
        yield from (part for part in vars(batch).values() if isinstance(part, Tensor))


def in_precision(batch: Any, dtype: torch.dtype) -> Any:
    """Return the batch with its floating-point numbers in that type."""
    return map_tensors(lambda x: x.to(dtype) if x.is_floating_point() else x, batch)


def first_samples(batch: Any, count: int) -> Any:
    """Return copies of the first samples; of the whole batch, where its tensors don't agree in how many they hold."""
    sizes = {len(x) if x.ndim else 0 for x in tensors_in(batch)}
    kept = count if len(sizes) == 1 else None
    return map_tensors(lambda x: (x[:kept] if x.ndim else x).detach().clone(), batch)
