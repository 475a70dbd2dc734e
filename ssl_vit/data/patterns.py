"""A text names archives, or with * and ? several of anything. Nothing heavy is imported here: it is asked before
anything is read.
"""

from __future__ import annotations

import glob
import itertools
import math
import os
import re

from ssl_vit.data.remote import is_url
from ssl_vit.errors import UserError

MOST = 100_000  # archives that a pattern may name

_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_DIGITS = 18  # of a number in braces


def is_shards(path: str) -> bool:
    """Tell whether a text names archives: one (.tar), several by braces, * and ?, or a URL.

    >>> is_shards("train-{000..009}.tar"), is_shards("photos")
    (True, False)
    """
    return path.lower().endswith(".tar") and not os.path.isdir(path)


def is_pattern(path: str) -> bool:
    """Tell whether a text is no path that is there, and has signs of a pattern that the shell did not expand."""
    return (glob.has_magic(path) or "{" in path) and not is_url(path) and not os.path.lexists(path)


def matches(pattern: str) -> list[str]:
    """List what a pattern with *, ?, ** and braces names; UserError where that, or a part of it, is nothing."""
    found = {path: _found(path) for path in _unbraced(pattern)}
    if nothing := [path for path, each in found.items() if not each]:
        names = f"for {len(nothing)} of {len(found)} names, as {nothing[0]}, " if len(found) > 1 else ""
        raise UserError(f"{pattern}: {names}nothing is there; check the pattern, or pass a folder")
    return [path for each in found.values() for path in each]


def expand(pattern: str) -> list[str]:
    """List the archives that a pattern with braces, * and ? names, in order; UserError where a local one is missing.

    >>> expand("s3://mine/{train,val}-{08..10}.tar")[:4]
    ['s3://mine/train-08.tar', 's3://mine/train-09.tar', 's3://mine/train-10.tar', 's3://mine/val-08.tar']
    """
    files = [pattern] if os.path.exists(pattern) else _unbraced(pattern)
    if any(glob.has_magic(file) and is_url(file) for file in files):
        raise UserError(f"{pattern}: behind a URL nothing is looked for; name archives by braces: a-{{000..099}}.tar")
    if any(is_pattern(file) for file in files):
        return matches(pattern)
    missing = [file for file in files if not is_url(file) and not os.path.isfile(file)]
    if missing:
        found = f"{len(missing)} of {len(files)} archives missing, the first is" if len(files) > 1 else "no such file:"
        raise UserError(f"{pattern}: {found} {missing[0]}; name archives that are there")
    return files


def _found(path: str) -> list[str]:
    """What is there by a name with * and ?, sorted; the name itself where it is a path's own."""
    return [path] if os.path.lexists(path) else sorted(glob.glob(path, recursive=True))


def _unbraced(pattern: str) -> list[str]:
    """The names that braces stand for, in order; UserError for too many."""
    pieces = re.split(r"\{([^{}]*)\}", pattern)
    if (count := math.prod(_count(piece, pattern) for piece in pieces[1::2])) > MOST:
        raise UserError(f"{pattern}: names {count:,} paths; at most {MOST:,} are taken, check the braces")
    choices = [[piece] if i % 2 == 0 else _choices(piece) for i, piece in enumerate(pieces)]
    return ["".join(parts) for parts in itertools.product(*choices)]


def _count(text: str, pattern: str) -> int:
    """How many choices braces give, before any is made."""
    if (found := _RANGE.fullmatch(text)) is None:
        return text.count(",") + 1
    first, last = found.groups()
    if len(last) > _DIGITS or len(first) > _DIGITS:
        raise UserError(f"{pattern}: braces with a number of {max(map(len, found.groups()))} digits; check the braces")
    if int(last) < int(first):
        raise UserError(f"{pattern}: {{{text}}} counts down; write the smaller number first")
    return int(last) - int(first) + 1


def _choices(text: str) -> list[str]:
    if (found := _RANGE.fullmatch(text)) is None:
        return text.split(",")
    first, last = found.groups()
    return [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
