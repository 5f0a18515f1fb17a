"""Whether a higher or a lower value of a metric is better, and what a user may say of it. No torch here."""

from __future__ import annotations

from gradflow.runs.errors import UserError


def mode(
    key: str, chosen: str | None, metric: str, direction: str | None, names: tuple[str, str] = ("min", "max")
) -> str:
    """Return the direction of `metric`, by one of two names; `key` is where a user could have `chosen` it."""
    known = dict(zip(("min", "max"), names, strict=True)).get(direction or "")
    if chosen not in (None, *names):
        raise UserError(f"{key}={chosen}: expected {' or '.join(names)}")
    if chosen is None and known is None:
        raise UserError(f"{key}=… must be given, {' or '.join(names)}: which way {metric} is better is not known")
    if known and chosen and chosen != known:
        better = "higher" if known == names[1] else "lower"
        raise UserError(f"{key}={chosen}: a {better} {metric} is better; leave {key} out")
    return chosen or str(known)
