"""Lightning's way to call hooks, without what nobody sees: private names of lightning 2.6.

At each step Lightning calls every hook of every callback, whether or not it does anything, 60 of them with the default
callbacks, in a context for a profiler that is not there, and writes a line for a debug log that nobody keeps. Here
those hooks alone are called that somebody has written, in the same order; a step with all default callbacks then takes
about as long as one of Lightning without any.

`test_lean_hooks.py` compares the two. Should these names go, this file and its line in train.py go with them: a run
stays the same, and its steps take longer.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import nullcontext
from functools import lru_cache
from typing import Any

from lightning import Callback, LightningModule
from lightning.pytorch.loops import training_epoch_loop
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.trainer import call
from lightning.pytorch.trainer.connectors.data_connector import _DataHookSelector

_UNSEEN = nullcontext()
_signature = training_epoch_loop.is_param_in_hook_signature
_THEIRS = ("_call_callback_hooks", "_call_lightning_module_hook", "_call_strategy_hook")
_theirs: dict[str, Callable[..., Any]] = {name: getattr(call, name) for name in _THEIRS}


class _Unseen(PassThroughProfiler):
    """A profiler that measures nothing, at no cost."""

    def profile(self, action_name: str) -> Any:
        return _UNSEEN


def install(trainer: Any) -> None:
    """Call hooks directly from now on; for a run with a profiler, or a debug log, as Lightning does."""
    lean = type(trainer.profiler) is PassThroughProfiler and not call.log.isEnabledFor(logging.DEBUG)
    if lean:
        trainer.profiler = _Unseen()
    # Lightning makes torch load NVML's library each time that it asks for a GPU, as optimizers do at each step (33 µs,
    # not 1), so that the process can be forked; none of ours is.
    os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)
    training_epoch_loop.is_param_in_hook_signature = _takes  # type: ignore[assignment]
    _DataHookSelector.get_instance = _hooks_of  # type: ignore[assignment]
    for ours in (_call_callback_hooks, _call_lightning_module_hook, _call_strategy_hook):
        setattr(call, ours.__name__, ours if lean else _theirs[ours.__name__])


_chosen = _DataHookSelector.get_instance
_of_function = lru_cache(64)(_signature)


def _takes(hook: Callable[..., Any], param: str, explicit: bool = False, min_args: int | None = None) -> bool:
    """Return whether a hook takes a parameter; Lightning reads the signature anew at each step. The function is kept,
    and not the hook, which holds a model."""
    return bool(_of_function(getattr(hook, "__func__", hook), param, explicit, min_args))


def _hooks_of(selector: Any, hook_name: str) -> Any:
    """Return whose hook moves a batch, the model's or the data's; Lightning asks both anew for each batch."""
    known = vars(selector)
    if hook_name not in known:
        known[hook_name] = _chosen(selector, hook_name)
    return known[hook_name]


def _call_callback_hooks(trainer: Any, hook_name: str, *args: Any, **kwargs: Any) -> None:
    if kwargs:  # which ask for some of the callbacks only
        _theirs["_call_callback_hooks"](trainer, hook_name, *args, **kwargs)
        return
    empty = getattr(Callback, hook_name)
    model: Any = trainer.lightning_module
    for callback in trainer.callbacks:
        hook = getattr(callback, hook_name)
        if getattr(hook, "__func__", None) is not empty:
            _in_hook(model, hook_name, hook, trainer, model, *args)


def _call_lightning_module_hook(
    trainer: Any, hook_name: str, *args: Any, pl_module: LightningModule | None = None, **kwargs: Any
) -> Any:
    model: Any = pl_module or trainer.lightning_module
    hook = getattr(model, hook_name)
    return _in_hook(model, hook_name, hook, *args, **kwargs) if callable(hook) else None


def _call_strategy_hook(trainer: Any, hook_name: str, *args: Any, **kwargs: Any) -> Any:
    return _in_hook(trainer.lightning_module, hook_name, getattr(trainer.strategy, hook_name), *args, **kwargs)


def _in_hook(model: Any, hook_name: str, hook: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a hook while the model knows its name, by which `self.log` decides; past the checks that torch makes of
    every attribute of a module, which may be a parameter."""
    attributes = vars(model) if model is not None else {}
    before = attributes.get("_current_fx_name")
    attributes["_current_fx_name"] = hook_name
    result = hook(*args, **kwargs)
    attributes["_current_fx_name"] = before
    return result
