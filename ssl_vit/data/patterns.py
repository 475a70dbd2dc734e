"""A text names archives. Nothing heavy is imported here: it is asked before anything is read."""

from __future__ import annotations

import itertools
import os
import re

from ssl_vit.data.remote import is_url
from ssl_vit.errors import UserError

_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def is_shards(path: str) -> bool:
    """Tell whether a text names archives: one (.tar), several by braces, or a URL.

    >>> is_shards("train-{000..009}.tar"), is_shards("photos")
    (True, False)
    """
    return path.endswith(".tar")


def expand(pattern: str) -> list[str]:
    """List the archives that a pattern with braces names, in order; UserError where a local one is missing.

    >>> expand("s3://mine/{train,val}-{08..10}.tar")[:4]
    ['s3://mine/train-08.tar', 's3://mine/train-09.tar', 's3://mine/train-10.tar', 's3://mine/val-08.tar']
    """
    pieces = re.split(r"\{([^{}]*)\}", pattern) if not os.path.exists(pattern) else [pattern]
    choices = [[piece] if i % 2 == 0 else _choices(piece, pattern) for i, piece in enumerate(pieces)]
    files = ["".join(parts) for parts in itertools.product(*choices)]
    missing = [file for file in files if not is_url(file) and not os.path.isfile(file)]
    if missing:
        found = f"{len(missing)} of {len(files)} archives missing, the first is" if len(files) > 1 else "no such file:"
        raise UserError(f"{pattern}: {found} {missing[0]}; name archives that are there")
    return files


def _choices(text: str, pattern: str) -> list[str]:
    if (found := _RANGE.fullmatch(text)) is None:
        return text.split(",")
    first, last = found.groups()
    if int(last) < int(first):
        raise UserError(f"{pattern}: {{{text}}} counts down; write the smaller number first")
    return [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
