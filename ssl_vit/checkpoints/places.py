"""Where in a document a backbone may lie: any entry, under any prefix, found by names that only backbones have."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from torch import Tensor

from ssl_vit.checkpoints.architectures import MARKS
from ssl_vit.checkpoints.vocabularies import VOCABULARIES

_DEEPEST = 3  # entries in entries
_ROOTS = re.compile("|".join(f"(?:{mark.replace('^', '(?:^|(?<=[.]))')})" for mark in (
    *MARKS, *(vocabulary.mark for vocabulary in VOCABULARIES)
)))  # fmt: skip
_AVERAGED = re.compile(r"(?:^|[._])(?:ema|averaged|teacher|target_encoder)(?:[._]|$)")  # the last of I-JEPA
_FOLLOWS = re.compile(r"student|momentum|target|online|raw|_[km]\b")
_OTHER = re.compile(r"(?:^|[._])(?:text|decoder|discriminator|language|loss|optim)")


class Place(NamedTuple):
    """A place is an entry of a document and a prefix of names in it; what lies there has its names without it."""

    entry: str  # "" for the document itself
    prefix: str
    state: dict[str, Tensor]
    left: list[str]

    def __str__(self) -> str:
        names = f"names that begin with {self.prefix}" if self.prefix else "all names"
        return names + (f" of {self.entry}" if self.entry else "")


def is_rooted(state: Collection[str]) -> bool:
    """Tell whether a backbone's names begin here, and not under a prefix."""
    return any((match := _ROOTS.search(key)) and match.start() == 0 for key in state)


def places(document: dict[str, Any], expected: Collection[str] = ()) -> list[Place]:
    """List the places where a backbone may lie, the likeliest first: a teacher or an average, then the largest.

    expected: names of weights, where it is known what is looked for.
    """
    found = list[Place]()
    for entry, state in _entries(document, "", _DEEPEST):
        for prefix in _prefixes(state, expected):
            inside = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
            found.append(Place(entry, prefix, inside, [key for key in state if not key.startswith(prefix)]))
    return sorted(found, key=_rank)


def prefixes_found(state: Collection[str]) -> str:
    """Say under which prefixes names lie, in words, the commonest first."""
    parts = [key.split(".") for key in state]
    common = 0
    while parts and all(len(names) > common + 1 and names[common] == parts[0][common] for names in parts):
        common += 1
    counts = Counter(".".join(names[: common + 1]) + ("." if len(names) > common + 1 else "") for names in parts)
    return ", ".join(f"{name} ({count})" for name, count in counts.most_common(5)) + ", …" * (len(counts) > 5)


def _entries(document: dict[str, Any], name: str, deepest: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every dict of tensors in the document, with its name."""
    if state := {key: value for key, value in document.items() if isinstance(key, str) and isinstance(value, Tensor)}:
        yield name, state
    for key, value in document.items():
        if deepest and isinstance(key, str) and isinstance(value, dict) and not re.search("optim|sched", key):
            yield from _entries(value, f"{name}.{key}" if name else key, deepest - 1)


def _prefixes(state: dict[str, Tensor], expected: Collection[str]) -> list[str]:
    """What stands before names that a backbone's begin with, and before those that are expected."""
    found = {key[: match.start()]: None for key in state if (match := _ROOTS.search(key))}
    for name in list(expected)[:3]:
        found |= {key.removesuffix(name): None for key in state if key == name or key.endswith(f".{name}")}
    return list(found)


def _rank(place: Place) -> tuple[int, int, int]:
    where = f"{place.entry}.{place.prefix}".lower()
    role = 0 if _AVERAGED.search(where) else 2 if _FOLLOWS.search(where) else 1
    return role + 4 * bool(_OTHER.search(where)), -sum(v.numel() for v in place.state.values()), len(where)
