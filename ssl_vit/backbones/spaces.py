"""Spaces of plain ViTs that share weights: what may be chosen, the largest member, and each one's part of its weights.

A member is named by its genes: the depth and the width, then something for every block of the deepest member (those of
blocks that it has not are 0). The weights of every member are the first rows and columns of the largest one's, as
AutoFormer (2107.00651) has them, so that thousands of networks are trained as one. Needs no torch.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ssl_vit.errors import UserError
from ssl_vit.spelling import did_you_mean

Genes = tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Space:
    """What may be chosen of a network; `width` is always one gene, `depth` another, the others are one a block."""

    name: str
    backbone: str  # of which all members are, as `ssl-vit list backbones` prints it
    depth: tuple[int, ...]
    width: tuple[int, ...]
    blocks: Mapping[str, tuple[tuple[float, ...], ...]]  # by name of the gene, the choices of each block

    @property
    def choices(self) -> list[tuple[float, ...]]:
        """What each gene may be, in ascending order."""
        return [self.depth, self.width, *(each for column in self.blocks.values() for each in column)]

    @property
    def largest(self) -> Genes:
        """The member that all others are a part of."""
        return tuple(max(each) for each in self.choices)

    @property
    def smallest(self) -> Genes:
        """The member that all others have more than."""
        return self.settled(tuple(min(each) for each in self.choices))

    def settled(self, genes: Sequence[float]) -> Genes:
        """The same member with 0 for blocks that it has not, so that it has one name."""
        deepest, depth = max(self.depth), int(genes[0])
        return tuple(gene if i < 2 or (i - 2) % deepest < depth else 0 for i, gene in enumerate(genes))

    def draw(self, rng: random.Random) -> Genes:
        """Some member; each choice as likely as the others of its gene."""
        return self.settled([rng.choice(each) for each in self.choices])

    def columns(self, genes: Genes) -> dict[str, tuple[float, ...]]:
        """The genes of a member's blocks, by name."""
        depth, deepest = int(genes[0]), max(self.depth)
        starts = {name: 2 + i * deepest for i, name in enumerate(self.blocks)}
        return {name: genes[start : start + depth] for name, start in starts.items()}

    def args(self, genes: Genes) -> dict[str, Any]:
        """The arguments that make a member by itself out of the backbone's name."""
        columns = self.columns(genes)
        if "heads" in columns:
            heads = tuple(int(each) for each in columns["heads"])
            return {"embed_dim": int(genes[1]), "heads": heads, "ratios": columns["ratio"]}
        rows = zip(*(columns[name] for name in ("attention", "ratio", "wider", "inner", "kernel")), strict=True)
        return {"embed_dim": int(genes[1]), "found": tuple(number for row in rows for number in row)}

    def describe(self, genes: Genes) -> str:
        """A member in words."""
        columns = self.columns(genes)
        found = [f"{name} {' '.join(f'{each:g}' for each in column)}" for name, column in columns.items()]
        return f"{int(genes[0])} blocks of {int(genes[1])}: {'; '.join(found)}"


def _like(choices: tuple[float, ...], depth: int) -> tuple[tuple[float, ...], ...]:
    return (choices,) * depth


def _autoformer(
    name: str, depth: tuple[int, ...], width: tuple[int, ...], heads: tuple[int, ...], ratios: tuple[float, ...]
) -> Space:
    deepest = max(depth)
    blocks = {"heads": _like(heads, deepest), "ratio": _like(ratios, deepest)}
    return Space(name, "autoformer_tiny", depth, width, blocks)


_SPLIT = (3, 0, 1, 3, 0, 1, 3, 1, 0, 3, 0, 3)  # heads that attend, of three a block; GLiT's first search found it
_RATIOS = (3.0, 3.5, 4.0)
SPACES: dict[str, Space] = {
    space.name: space
    for space in (
        _autoformer("micro", (3, 4, 5), (96, 112, 128), (1, 2, 3), (2.0, 3.0, 4.0)),
        _autoformer("tiny", (12, 13, 14), (192, 216, 240), (3, 4), _RATIOS),
        _autoformer("small", (12, 13, 14), (320, 384, 448), (5, 6, 7), _RATIOS),
        _autoformer("base", (14, 15, 16), (528, 576, 624), (9, 10), _RATIOS),
        Space(
            "glit",
            "glit_tiny_patch16_224",
            (12,),
            (192,),
            {
                "attention": tuple((each,) for each in _SPLIT),
                "ratio": _like((2, 4, 6), 12),
                "wider": tuple((0.5, 1, 2) if split else (1,) for split in _SPLIT),
                "inner": tuple((1, 2, 4) if split < 3 else (1,) for split in _SPLIT),
                "kernel": tuple((17, 31, 45) if split < 3 else (31,) for split in _SPLIT),
            },
        ),
    )
}
"""AutoFormer's three, one for a CPU, and what GLiT's second search chose from, around the heads of its first."""


def space_of(name: str) -> Space:
    """A space by its name; UserError for another one.

    >>> space_of("tiny").describe(space_of("tiny").smallest)
    '12 blocks of 192: heads 3 3 3 3 3 3 3 3 3 3 3 3; ratio 3 3 3 3 3 3 3 3 3 3 3 3'
    """
    if name not in SPACES:
        raise UserError(f"no space {name!r}; {did_you_mean(name, list(SPACES))}")
    return SPACES[name]
