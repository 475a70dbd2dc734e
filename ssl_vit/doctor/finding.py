"""A finding is a line that the doctor says: what was looked at, what is so, and what mends it."""

from __future__ import annotations

from typing import Literal, NamedTuple

Level = Literal["fine", "will hurt", "stops a run"]


class Finding(NamedTuple):
    """A finding says how something is, and what to do where that is not as it should be."""

    subject: str
    level: Level
    found: str  # what is so, and what it does to a run
    mend: str = ""  # a command or a setting


def fine(subject: str, found: str) -> Finding:
    """Say that nothing is wrong with it."""
    return Finding(subject, "fine", found)


def hurts(subject: str, found: str, mend: str) -> Finding:
    """Say that a run goes on, slower, with less, or at a risk."""
    return Finding(subject, "will hurt", found, mend)


def stops(subject: str, found: str, mend: str) -> Finding:
    """Say that a run can't begin, or can't end well."""
    return Finding(subject, "stops a run", found, mend)
