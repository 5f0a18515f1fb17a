"""Whether a higher or a lower value of a metric is better. No torch here: reports and searches need it, too."""

from __future__ import annotations

from gradflow.runs.errors import UserError

_DIRECTIONS = {  # as `higher_is_better` of the classes of torchmetrics says
    **dict.fromkeys(("accuracy", "top5", "f1", "precision", "recall", "auroc", "iou", "r2"), "max"),
    **dict.fromkeys(("loss", "mse", "mae", "perplexity"), "min"),
}


def direction(metric: str) -> str | None:
    """Return `min` or `max`, whichever is better of a metric like `accuracy/val`; None where that is not known."""
    return _DIRECTIONS.get(metric.partition("/")[0])


def mode(key: str, given: str | None, metric: str, names: tuple[str, str] = ("min", "max")) -> str:
    """Return the direction of `metric`, by one of two names; `key` is where a user could have `given` it."""
    known = dict(zip(("min", "max"), names, strict=True)).get(direction(metric) or "")
    if given is None and known is None:
        raise UserError(f"{key}=… must be given, {' or '.join(names)}: which way {metric} is better is not known")
    if known and given in names and given != known:
        raise UserError(
            f"{key}={given}: a {'higher' if known == names[1] else 'lower'} {metric} is better; leave {key} out"
        )
    return given or str(known)
