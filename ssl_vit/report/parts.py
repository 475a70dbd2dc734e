"""What a page is made of: sections, and in each of them parts that the template draws, by the name of its macro."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ssl_vit.report.pixels import embedded

Part = dict[str, Any]
ROOM = 4_300_000  # bytes of a page's pictures, as they are written in it: the page stays below 5 MB


@dataclass
class Section:
    """A section has a title, a line that says how to read it, and its parts."""

    id: str
    short: str  # in the list of sections
    title: str
    note: str = ""
    parts: list[Part] = field(default_factory=list)


class Room:
    """Pictures are taken into a page as long as there is room."""

    def __init__(self, size: int = ROOM) -> None:
        self._left = size

    def picture(self, path: Path | None) -> str | None:
        """The picture as an address; None where there is none, it is damaged, or there is no room."""
        if path is None or not path.is_file():
            return None
        try:
            found = embedded(path)
        except (OSError, ValueError, SyntaxError):  # as Pillow says it of broken files
            return None
        if len(found) > self._left:
            return None
        self._left -= len(found)
        return found


def charts(found: Sequence[tuple[str, str, Markup]], *, small: bool = False) -> Part:
    """Charts, each with its title and some words; those with nothing to draw are left out."""
    shown = [{"title": title, "small": small, "svg": svg} for title, small, svg in found if svg]
    return {"macro": "charts", "charts": shown, "kind": "small" if small else ""}


def table(
    rows: Sequence[Sequence[Any]],
    head: Sequence[str] = (),
    *,
    numbers: Sequence[int] = (),
    mono: int = 0,
    odd: Sequence[bool] = (),
    colours: Sequence[int | None] = (),
    title: str = "",
) -> Part:
    """A table; numbers: columns of them; mono: how many columns are code; odd: rows to look at; title: folded away."""
    made = [
        {
            "cells": ["" if cell is None else cell for cell in row],
            "odd": bool(odd) and odd[place],
            "colour": colours[place] if colours else None,
            "shades": None,
        }
        for place, row in enumerate(rows)
    ]
    return {
        "macro": "fold" if title else "table",
        "rows": made,
        "head": list(head),
        "numbers": list(numbers),
        "mono": mono,
        "title": title,
        "kind": "",
    }


def words(text: str, title: str = "", kind: str = "") -> Part:
    """A paragraph."""
    return {"macro": "words", "text": text, "title": title, "kind": kind}
