"""Evolution over the members of a space (AutoFormer, 2107.00651), as a function of a seed and of what was scored."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

from ssl_vit.backbones.spaces import Genes, Space

PARENTS = 10  # AutoFormer's, as the following; crossovers and mutations are half of a generation each
MUTATE, RESHAPE = 0.2, 0.4  # how likely a gene of a block changes, and that of depth or width
TRIES = 200  # for each new member, before one that was scored already is let pass


def evolve(
    space: Space, population: int, generations: int, seed: int, fits: Callable[[Genes], bool]
) -> Iterator[tuple[Genes, Callable[[float], None]]]:
    """Members to score, one after another, each with what takes its score; none comes twice.

    The first generation is the smallest member and random ones, each later one half crossovers and half mutations of
    the best so far. fits: whether a member is under the limit. Fewer come where the space has no more.
    """
    found: dict[Genes, float] = {}
    for generation in range(generations + 1):
        chosen = best(found, PARENTS)
        for number in range(population):
            rng = random.Random(f"{seed}/{generation}/{number}")
            first = space.smallest if generation == number == 0 else None
            genes = first or _new(space, chosen, number < population // 2, rng, lambda g: g not in found and fits(g))
            if genes is not None:

                def note(score: float, genes: Genes = genes) -> None:
                    found[genes] = score

                yield genes, note


def best(found: dict[Genes, float], count: int) -> list[Genes]:
    """The members of the highest scores, of equal ones those that came first."""
    return sorted(found, key=lambda genes: -found[genes])[:count]


def _new(
    space: Space, parents: Sequence[Genes], crossing: bool, rng: random.Random, wanted: Callable[[Genes], bool]
) -> Genes | None:
    """A member that is wanted; None where none turned up."""
    for _ in range(TRIES):
        if not parents:
            genes = space.draw(rng)
        elif crossing:
            genes = crossed(space, rng.choice(parents), rng.choice(parents), rng)
        else:
            genes = mutated(space, rng.choice(parents), rng)
        if wanted(genes):
            return genes
    return None


def crossed(space: Space, one: Genes, other: Genes, rng: random.Random) -> Genes:
    """Each gene is one of the parents'; what a parent has not, the other has, or it is drawn."""
    found = list[float]()
    for first, second, choices in zip(one, other, space.choices, strict=True):
        gene = rng.choice((first, second)) or first or second
        found.append(gene or rng.choice(choices))
    return space.settled(found)


def mutated(space: Space, genes: Genes, rng: random.Random) -> Genes:
    """Some genes are drawn anew, and those of blocks that the member had not."""
    found = list[float]()
    for place, (gene, choices) in enumerate(zip(genes, space.choices, strict=True)):
        changes = rng.random() < (RESHAPE if place < 2 else MUTATE)
        found.append(rng.choice(choices) if changes or not gene else gene)
    return space.settled(found)
