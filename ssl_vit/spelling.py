"""What the user may have meant by a word that isn't one of the names. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher, get_close_matches

_MOST = 40  # names that are worth listing


def did_you_mean(word: str, known: Iterable[str], count: int = 1) -> str:
    """Advice for a message: the known names nearest to the word, at most `count`, or all of them where none is near.

    Of more names than anyone would read the nearest are given however far they are.

    >>> did_you_mean("dina", ["dino", "moby"])
    'did you mean dino?'
    >>> did_you_mean("x", ["dino", "moby"])
    'known: dino, moby'
    """
    names = list(known)
    near = get_close_matches(word, names, count)
    if not near and len(names) <= _MOST:
        return f"known: {', '.join(names)}"
    return f"did you mean {', '.join(near or get_close_matches(word, names, count, cutoff=0))}?"


def closeness(a: str, b: str) -> float:
    """How alike two words are, from 0 to 1 for equal ones (Ratcliff and Obershelp's measure, as difflib has it)."""
    return SequenceMatcher(None, a, b).ratio()
