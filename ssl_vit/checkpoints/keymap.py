"""The names of weights in two libraries: a table of templates that is read in either direction."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, cat

Turn = Callable[[Sequence[Tensor]], Sequence[Tensor]]

_FIELDS = {
    "any": r".+",
    "p": "weight|bias",
    "n": "weight|bias|running_mean|running_var|num_batches_tracked",
}  # what {field} in a template stands for; every other field is a number


class Rule(NamedTuple):
    """Templates of timm's names, templates of the other library's, and what to do to the tensors on the way."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    out: Turn = tuple
    back: Turn = tuple


class Mapped(NamedTuple):
    """A state dict under its new names, which name became which, and the names that no rule knows."""

    state: dict[str, Tensor]
    pairs: list[tuple[str, str]]
    left: list[str]


class KeyMap:
    """Renames a state dict by the first rule that knows a name, from timm's names or back to them.

    >>> import torch
    >>> rules = KeyMap(fused("blocks.{i}.qkv.{p}", "h.{i}.q.{p}", "h.{i}.k.{p}", "h.{i}.v.{p}"))
    >>> mapped = rules.export({"blocks.4.qkv.bias": torch.arange(6), "extra": torch.zeros(1)})
    >>> mapped.state
    {'h.4.q.bias': tensor([0, 1]), 'h.4.k.bias': tensor([2, 3]), 'h.4.v.bias': tensor([4, 5])}
    >>> mapped.left, rules.restore(mapped.state).state
    (['extra'], {'blocks.4.qkv.bias': tensor([0, 1, 2, 3, 4, 5])})
    """

    def __init__(self, *rules: Rule) -> None:
        self.rules = rules
        self._outward = [(_pattern(rule.ours[0]), rule.ours, rule.theirs, rule.out) for rule in rules]
        self._inward = [(_pattern(rule.theirs[0]), rule.theirs, rule.ours, rule.back) for rule in rules]

    def export(self, state: Mapping[str, Tensor]) -> Mapped:
        """timm's names become theirs."""
        return _apply(self._outward, state)

    def restore(self, state: Mapping[str, Tensor]) -> Mapped:
        """Their names become timm's."""
        return _apply(self._inward, state)


def _apply(
    rules: list[tuple[re.Pattern[str], tuple[str, ...], tuple[str, ...], Turn]], state: Mapping[str, Tensor]
) -> Mapped:
    renamed: dict[str, Tensor] = {}
    pairs: list[tuple[str, str]] = []
    used: set[str] = set()
    for name in state:
        for pattern, sources, targets, turn in rules:
            if (match := pattern.fullmatch(name)) is None:
                continue
            fields = match.groupdict()
            taken = [source.format(**fields) for source in sources]
            if all(source in state for source in taken):
                named = [target.format(**fields) for target in targets]
                renamed.update(zip(named, turn([state[source] for source in taken]), strict=True))
                pairs += [(source, target) for source in taken for target in named]
                used.update(taken)
            break
    return Mapped(renamed, pairs, [name for name in state if name not in used])


def _pattern(template: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", template)  # text, field, text, field, …, text
    pattern = ""
    for index, part in enumerate(parts):
        if index % 2 == 0:
            pattern += re.escape(part)
        elif part in parts[1:index:2]:
            pattern += f"(?P={part})"
        else:
            pattern += f"(?P<{part}>{_FIELDS.get(part, r'[0-9]+')})"
    return re.compile(pattern)


def renames(names: Mapping[str, str], ours: str = "", theirs: str = "") -> list[Rule]:
    """Make a rule for each pair of templates, with these prefixes; the tensors stay as they are."""
    return [Rule((ours + left,), (theirs + right,)) for left, right in names.items()]


def fused(ours: str, *theirs: str) -> Rule:
    """Make the rule that cuts one tensor of timm's in equal parts along its first dimension: query, key and value."""
    return Rule((ours,), theirs, split_equally(len(theirs)), join)


def split_equally(parts: int) -> Turn:
    """Make a turn that cuts a tensor in equal parts along the first dimension."""
    return lambda tensors: [part.contiguous() for part in tensors[0].chunk(parts)]


def join(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Concatenate along the first dimension."""
    return [cat(list(tensors))]
