"""Checks of a model's options: each names the key, its value and what would be right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gradflow.runs.errors import UserError


class Unfit(UserError):
    """The architecture can't take that kind of input."""


def positive(**values: int) -> None:
    """Reject sizes below 1, by the name of their key."""
    for name, value in values.items():
        if not isinstance(value, int):
            raise UserError(f"model.{name}={value}: expected one number")
        if value < 1:
            raise UserError(f"model.{name}={value}: expected 1 or more")


def widths(name: str, values: Sequence[int], each: str) -> None:
    """Reject a list of widths that is empty or holds one below 1."""
    if not values or not all(isinstance(value, int) and value > 0 for value in values):
        raise UserError(f"model.{name}={list(values)}: expected a width of 1 or more for each {each}")


def probability(**values: float) -> None:
    """Reject what is no fraction below 1, by the name of its key."""
    for name, value in values.items():
        if not 0 <= value < 1:
            raise UserError(f"model.{name}={value}: expected a fraction from 0 up to, not including, 1")


def one_of(name: str, value: Any, known: tuple[Any, ...]) -> None:
    """Reject what is none of the known values."""
    if value not in known:
        raise UserError(f"model.{name}={value}: expected one of {', '.join(map(str, known))}")


def blocks_in(depth: int, step: int, rest: int, name: str, known: str) -> int:
    """Return the n of depth = step · n + rest, or reject the depth and name a near one."""
    n = max(1, round((depth - rest) / step))
    if depth != (near := step * n + rest):
        raise UserError(f"model.depth={depth}: a {name} has {step}n + {rest} layers ({known}); {near} is near")
    return n
