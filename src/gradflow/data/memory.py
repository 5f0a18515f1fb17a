"""Where the samples lie while a run goes on, and how batches get from there to the device."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from gradflow.data.splits import Part
from gradflow.runs.errors import UserError

HOMES = {
    "device": "in the memory of {device}",
    "host": "in the host's memory",
    "mapped": "mapped from disk, {cache}",
}


def choose(memory: str, size: int, device: torch.device, ranks: int, cached: bool) -> str:
    """Return where samples go.

    `auto`: on the accelerator when they fill a quarter of it at most, else in the host's memory when all ranks' fill
    half of it at most, else left in the cache, of which the system keeps in memory what it can.
    """
    if memory == "device" and device.type != "cuda":
        raise UserError(f"data.memory=device: this run is on {device.type}; expected auto, host or mapped")
    if memory == "mapped" and not cached:
        raise UserError("data.memory=mapped: these data have no cache on disk; expected auto or host")
    if memory != "auto":
        return memory
    if device.type == "cuda" and size <= torch.cuda.mem_get_info(device)[0] / 4:
        return "device"
    return "mapped" if cached and size * ranks > free() / 2 else "host"


def free() -> int:
    """Return the bytes of the host that may be taken: what the system says, or a container's limit."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        limits.append(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")))
    with suppress(OSError, ValueError):  # "max" where there is no limit
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8")))
    return min(limits)


def check_room(key: str, what: str, size: int) -> None:
    """Reject what this machine can't hold: it would be filled for minutes, until the system ends some process."""
    if size > (there := free()):
        taken, left = (f"{number / 2**30:,.1f}" for number in (size, there))
        raise UserError(f"{key}: {what} would take {taken} GiB; {left} GiB of memory are free here")


def settle(part: Part, home: str, device: torch.device) -> Part:
    """Return the part at its home; mapped from disk it stays one with the other splits of its file."""
    if home == "mapped":
        return part
    x, y = (tensor if part.rows is None else tensor.index_select(0, part.rows) for tensor in (part.x, part.y))
    if home == "device":
        return Part(x.to(device), y.to(device))
    return Part(x.clone(), y.clone()) if part.rows is None else Part(x, y)


class Courier:
    """Carries tensors to the device: to a CUDA device through pinned memory and on a stream of its own, so that the
    copy runs beside the computation and the host waits for neither."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, tensor: Tensor) -> Tensor:
        if self.stream is None or tensor.device.type == "cuda":
            return tensor.to(self.device)
        pinned = tensor.pin_memory()
        with torch.cuda.stream(self.stream):
            moved = pinned.to(self.device, non_blocking=True)
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self.stream)
        moved.record_stream(current)
        return moved
