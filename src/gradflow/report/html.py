"""HTML that can't be broken by what stands in it: every plain string is escaped, only `Html` is taken as it is."""

from __future__ import annotations

from html import escape

VOID = ("img", "meta", "source", "br")


class Html(str):
    """Text that is markup already."""


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """`class_` and `data_value` are written class and data-value; an attribute that is None or False is left out."""
    told = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{escape(str(value), quote=True)}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    return Html(f"<{name}{told}>" if name in VOID else f"<{name}{told}>{join(*children)}</{name}>")


def join(*children: object) -> Html:
    return Html("".join(child if isinstance(child, Html) else escape(str(child), quote=True) for child in children))
