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
    return path.endswith(".tar") and not os.path.isdir(path)


def is_pattern(path: str) -> bool:
    """Tell whether a text is no path that is there, and has signs of a pattern that the shell did not expand."""
    return glob.has_magic(path) and not is_url(path) and not os.path.lexists(path)


def matches(pattern: str) -> list[str]:
    """List what a pattern with *, ? and ** names, sorted; UserError where that is nothing."""
    found = sorted(glob.glob(pattern, recursive=True))
    if not found:
        raise UserError(f"{pattern}: nothing is there by such a name; check the pattern, or pass a folder")
    return found


def expand(pattern: str) -> list[str]:
    """List the archives that a pattern with braces, * and ? names, in order; UserError where a local one is missing.

    >>> expand("s3://mine/{train,val}-{08..10}.tar")[:4]
    ['s3://mine/train-08.tar', 's3://mine/train-09.tar', 's3://mine/train-10.tar', 's3://mine/val-08.tar']
    """
    pieces = re.split(r"\{([^{}]*)\}", pattern) if not os.path.exists(pattern) else [pattern]
    if (count := math.prod(_count(piece, pattern) for piece in pieces[1::2])) > MOST:
        raise UserError(f"{pattern}: names {count:,} archives; at most {MOST:,} are taken, check the braces")
    choices = [[piece] if i % 2 == 0 else _choices(piece) for i, piece in enumerate(pieces)]
    files = ["".join(parts) for parts in itertools.product(*choices)]
    if any(glob.has_magic(file) and is_url(file) for file in files):
        raise UserError(
            f"{pattern}: behind a URL nothing is looked for; name the archives by braces: a-{{000..099}}.tar"
        )
    files = [each for file in files for each in (matches(file) if is_pattern(file) else [file])]
    missing = [file for file in files if not is_url(file) and not os.path.isfile(file)]
    if missing:
        found = f"{len(missing)} of {len(files)} archives missing, the first is" if len(files) > 1 else "no such file:"
        raise UserError(f"{pattern}: {found} {missing[0]}; name archives that are there")
    return files


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
