"""Evolution keeps to the space and the limit, finds what is best, and does the same again."""

from __future__ import annotations

import random

import pytest

from ssl_vit.backbones.spaces import SPACES, Genes, Space, space_of
from ssl_vit.compress.evolution import best, crossed, evolve, mutated


def score(genes: Genes) -> float:
    """Known, with a best member: wide and shallow, with few heads."""
    return genes[1] - 10 * genes[0] - sum(genes[2:7])


def run(space: Space, seed: int = 0, generations: int = 12) -> dict[Genes, float]:
    found: dict[Genes, float] = {}
    for genes, note in evolve(space, 20, generations, seed, lambda genes: sum(genes[2:7]) < 12):
        assert genes not in found
        found[genes] = score(genes)
        note(found[genes])
    return found


def test_evolution_is_the_same_again_keeps_the_limit_and_gets_better() -> None:
    space = space_of("micro")
    found = run(space)
    assert list(found) == list(run(space))
    assert list(found) != list(run(space, seed=1))
    assert all(sum(genes[2:7]) < 12 for genes in found)
    first, last = list(found.values())[:20], list(found.values())[-20:]
    assert max(first) < max(found.values()) == score(space.settled((3, 128, 1, 1, 1, 0, 0, *[2] * 5)))
    assert sum(last) > sum(first)


@pytest.mark.parametrize("name", SPACES)
def test_children_are_members(name: str) -> None:
    space, rng = space_of(name), random.Random(0)
    one, other = space.smallest, space.draw(rng)
    for _ in range(20):
        for child in (crossed(space, one, other, rng), mutated(space, other, rng)):
            assert child == space.settled(child)
            depth, deepest = int(child[0]), max(space.depth)
            there = [i < 2 or (i - 2) % deepest < depth for i in range(len(child))]
            assert all(g in c if t else g == 0 for g, c, t in zip(child, space.choices, there, strict=True))
        one, other = other, child


def test_the_best_come_first_and_ties_as_they_came() -> None:
    assert best({(1.0,): 2.0, (2.0,): 5.0, (3.0,): 2.0}, 2) == [(2.0,), (1.0,)]
