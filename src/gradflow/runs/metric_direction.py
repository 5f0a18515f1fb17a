"""Whether a higher or a lower value of a metric is better, as each run has recorded it. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gradflow.runs.errors import UserError

_UNRECORDED = {"loss": "min", "accuracy": "max", "mse": "min"}  # of runs whose summary does not say


def directions(summary: Mapping[str, Any]) -> dict[str, str]:
    """Return `min` or `max`, whichever is better, by metric; those of which it is not known are left out."""
    recorded = summary.get("directions")
    known = recorded if isinstance(recorded, Mapping) else {}
    return _UNRECORDED | {str(name): way for name, way in known.items() if way in ("min", "max")}


def mode(
    key: str, given: str | None, metric: str, direction: str | None, names: tuple[str, str] = ("min", "max")
) -> str:
    """Return the direction of `metric`, by one of two names; `key` is where a user could have `given` it."""
    known = dict(zip(("min", "max"), names, strict=True)).get(direction or "")
    if given is None and known is None:
        raise UserError(f"{key}=… must be given, {' or '.join(names)}: which way {metric} is better is not known")
    if known and given in names and given != known:
        raise UserError(
            f"{key}={given}: a {'higher' if known == names[1] else 'lower'} {metric} is better; leave {key} out"
        )
    return given or str(known)
