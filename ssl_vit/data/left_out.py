"""What a source has left out is said in one line, by whoever opens it."""

from __future__ import annotations

import logging

from ssl_vit.data.bad import printable
from ssl_vit.data.folder import LINKS_HINT, OUTSIDE
from ssl_vit.data.source import Source

log = logging.getLogger("ssl_vit.data")

_SHOWN = 20  # kinds


def left_out(source: Source) -> str:
    """Return what is not among the images, by kind and count, the largest first; empty where there is nothing.

    >>> from collections import Counter
    >>> from ssl_vit.data.source import build_source
    >>> left_out(build_source("photos", [(b"a.png", 9)], Counter({"hidden entries": 1, ".txt files": 3})))
    '3 .txt files, 1 hidden entries'
    """
    found = sorted(source.skipped.items(), key=lambda item: -item[1])
    said = ", ".join(f"{count} {printable(reason)}" for reason, count in found[:_SHOWN])
    rest = sum(count for _, count in found[_SHOWN:])
    hint = f" ({LINKS_HINT})" if OUTSIDE in source.skipped else ""
    return said + (f", {rest} others" if rest else "") + hint


def note_left_out(source: Source) -> None:
    """Warn of what a source has left out, if anything."""
    if found := left_out(source):
        log.warning("%s: %d images; left out: %s", printable(source.root), len(source), found)
