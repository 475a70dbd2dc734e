"""Mixtures of experts (V-MoE, 2106.05974): a router sends each token to a few of several MLPs, with room for so many.

Shapes are static: G groups of S tokens, E experts, K choices a token, room for C tokens of each group in an expert.
In training all tokens of a batch are one group; in evaluation each image is one, so that what is computed of an image
depends on no other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from timm.layers.weight_init import trunc_normal_
from torch import Tensor, nn

from ssl_vit.backbones import penalties
from ssl_vit.backbones.layers import no_autocast


class Routes(NamedTuple):
    """Where tokens go; a place beyond the room is none, and the token goes without that expert."""

    experts: Tensor  # int64 [G, S, K], best first
    weights: Tensor  # [G, S, K], of what the experts answer
    places: Tensor  # int64 [G, S, K], of the token among those of its group that chose the expert


def room(tokens: int, chosen: int, experts: int, capacity: float) -> int:
    """Tokens of a group that an expert takes: `capacity` times its share of all choices, rounded.

    >>> room(tokens=12, chosen=1, experts=3, capacity=1.05)
    4
    """
    return int(capacity * tokens * chosen / experts + 0.5)


def route(gates: Tensor, chosen: int, prioritised: bool) -> Routes:
    """Each token chooses the experts of its largest gates [G, S, E]; first choices find a place before second ones.

    prioritised: among the choices of one rank the token with the largest gate is first, not the first token (batch
    priority routing, section 4.1).
    """
    weights, experts = gates.topk(chosen, dim=-1)
    order = weights[..., 0].argsort(dim=1, descending=True, stable=True)
    turn = order if prioritised else torch.arange(gates.shape[1], device=gates.device).expand_as(order)
    turns = turn[..., None].expand_as(experts)
    queue = experts.gather(1, turns).transpose(1, 2).flatten(1)  # [G, K * S]
    chose = nn.functional.one_hot(queue, gates.shape[-1])
    places = ((chose.cumsum(1) - 1) * chose).sum(-1).reshape(gates.shape[0], chosen, -1).transpose(1, 2)
    return Routes(experts, weights, torch.empty_like(experts).scatter(1, turns, places))


def slots(routes: Routes, experts: int, capacity: int) -> Tensor:
    """The places in one table [E, G, C] of all buffers, int64 [G, S, K]; E * G * C where there is no room."""
    groups = routes.experts.shape[0]  # len() would fix the number when traced
    group = torch.arange(groups, device=routes.experts.device)[:, None, None]
    taken = (routes.experts * groups + group) * capacity + routes.places
    return torch.where(routes.places < capacity, taken, experts * groups * capacity)


def dispatch(x: Tensor, where: Tensor, experts: int, capacity: int) -> Tensor:
    """Tokens [G, S, D] in their slots [G, S, K]: [E, G * C, D]; what no token takes is zero."""
    groups, tokens, dim = x.shape
    numbers = torch.arange(groups * tokens, device=x.device)[:, None].expand(-1, where.shape[2])
    sources = torch.full((experts * groups * capacity + 1,), groups * tokens, device=x.device)
    sources = sources.scatter(0, where.flatten(), numbers.flatten())[:-1]
    padded = torch.cat([x.flatten(0, 1), x.new_zeros(1, dim)])
    return padded[sources].reshape(experts, groups * capacity, dim)


def combine(answers: Tensor, where: Tensor, weights: Tensor) -> Tensor:
    """The weighted sum of what the experts answered, [E, G * C, D], to each token's choices [G, S, K]: [G, S, D]."""
    padded = torch.cat([answers.flatten(0, 1), answers.new_zeros(1, answers.shape[2])])
    return (padded[where] * weights[..., None].to(answers.dtype)).sum(2)


def variation(x: Tensor) -> Tensor:
    """The squared coefficient of variation of [..., E], mean over the rest: 0 where all experts have the same."""
    return (x.var(-1, correction=0) / x.mean(-1).square()).mean()


def importance_loss(gates: Tensor) -> Tensor:
    """How unequally the gates [G, S, E], without noise, are spread over the experts (appendix A.2)."""
    return variation(gates.sum(1))


def load_loss(logits: Tensor, noisy: Tensor, chosen: int, noise: float) -> Tensor:
    """How unequal the chances [G, S, E] of being chosen are, were the noise drawn anew (appendix A.2).

    logits: without noise; noisy: as they were ranked; noise: its standard deviation.
    """
    needed = noisy.topk(chosen, dim=-1).values[..., -1:] - logits
    return variation(torch.special.ndtr(-needed / noise).mean(1))


def balance_loss(gates: Tensor, experts: Tensor) -> Tensor:
    """E times the product, summed over experts, of mean gate and share of all choices [G, S, K]; 1 where balanced.

    Of the Switch Transformer (2101.03961), as WideNet takes it for several choices.
    """
    count = gates.shape[-1]
    share = nn.functional.one_hot(experts, count).to(gates.dtype).mean((1, 2))
    return count * (gates.mean(1) * share).sum(-1).mean()


class ExpertLinear(nn.Module):
    """A linear layer for each expert: [E, N, in] -> [E, N, out]."""

    def __init__(self, experts: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(trunc_normal_(torch.empty(experts, outputs, inputs), std=0.02))
        self.bias = nn.Parameter(torch.zeros(experts, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """[E, N, in] -> [E, N, out].

        The weights come first, so that their gradient has their own order: turned around, it is copied, all experts'.
        """
        return torch.baddbmm(self.bias[:, :, None], self.weight, x.mT.contiguous()).mT


class Losses(NamedTuple):
    """The weights of what keeps the experts in use; each loss is a penalty of the training step."""

    importance: float = 0.0
    load: float = 0.0
    balance: float = 0.0


class Mixture(nn.Module):
    """An MLP of which each token sees the few experts that a router chooses: [B, N, D] -> [B, N, D].

    capacity, eval_capacity: an expert's room over its equal share of all choices, in training and in evaluation. noise:
    of the router's logits in training, over 1 / E. row, blocks: which of the network's mixtures this is, and how all of
    them are called.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        experts: int,
        chosen: int,
        capacity: float,
        eval_capacity: float,
        losses: Losses,
        prioritised: bool = False,
        noise: float = 1.0,
        row: int = 0,
        blocks: Sequence[str] = ("every block",),
        act_layer: type[nn.Module] = nn.GELU,
        drop: float = 0.0,
        **_: Any,
    ) -> None:
        super().__init__()
        self.experts, self.chosen, self.prioritised, self.noise = experts, chosen, prioritised, noise / experts
        self.capacity, self.eval_capacity, self.losses = capacity, eval_capacity, losses
        self.row, self.blocks = row, tuple(blocks)
        self.router = nn.Linear(in_features, experts, bias=False)
        self.fc1 = ExpertLinear(experts, in_features, hidden_features)
        self.act = act_layer()
        self.fc2 = ExpertLinear(experts, hidden_features, in_features)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]; ValueError where the images are so small that an expert has no room."""
        groups = x.flatten(0, 1)[None] if self.training else x
        capacity = self.room(groups.shape[1])
        with no_autocast(x):  # a few logits, whose order decides
            logits = nn.functional.linear(groups.float(), self.router.weight)
            noisy = logits + self.noise * torch.randn_like(logits) if self.training and self.noise else logits
            routes = route(noisy.softmax(-1), self.chosen, self.prioritised)
            if self.training:
                self.penalise(logits, noisy, routes.experts)
                self.count(routes, capacity)
        where = slots(routes, self.experts, capacity)
        hidden = self.drop(self.act(self.fc1(dispatch(groups, where, self.experts, capacity))))
        answers = self.drop(self.fc2(hidden))
        return combine(answers, where, routes.weights).reshape(x.shape)

    def room(self, tokens: int) -> int:
        """Tokens of a group of so many that each expert takes; ValueError for none."""
        key = "capacity" if self.training else "eval_capacity"
        found = room(tokens, self.chosen, self.experts, getattr(self, key))
        if not found:
            raise ValueError(no_room(key, getattr(self, key), tokens, self.chosen, self.experts))
        return found

    def penalise(self, logits: Tensor, noisy: Tensor, experts: Tensor) -> None:
        """Whatever is collected: in a pass that is computed again, the same has to be computed again."""
        gates, weights = noisy.softmax(-1), self.losses
        if weights.importance:
            penalties.penalise("importance", weights.importance * importance_loss(logits.softmax(-1)))
        if weights.load and self.noise:
            penalties.penalise("load", weights.load * load_loss(logits, noisy, self.chosen, self.noise))
        if weights.balance:
            penalties.penalise("balance", weights.balance * balance_loss(gates, experts))

    def count(self, routes: Routes, capacity: int) -> None:
        """Note how many tokens chose each expert, and how many choices found no room."""
        chose = nn.functional.one_hot(routes.experts, self.experts).sum((0, 1, 2))
        counts = torch.zeros(len(self.blocks), self.experts + 1, device=chose.device)
        counts[self.row, :-1] = chose.float()
        counts[self.row, -1] = (routes.places >= capacity).sum().float()
        penalties.note("experts", counts, partial(unevenness, self.blocks))


def unevenness(blocks: Sequence[str], counts: Tensor) -> str:
    """What a check says of the choices [blocks, E + 1], the last of which found no room: the most uneven block.

    >>> unevenness(["block 6"], torch.tensor([[1.0, 46.0, 1.0, 45.0, 2.0, 2.0, 2.0, 1.0, 30.0]]))
    'In block 6, 2 of 8 experts get 91 % of the tokens, and 30.0 % of all choices find no room.'
    """
    chose, lost = counts[:, :-1], counts[:, -1].sum()
    busiest = math.ceil(chose.shape[1] / 4)
    shares = chose.sort(dim=1, descending=True).values[:, :busiest].sum(1) / chose.sum(1).clamp_min(1)
    worst = int(shares.argmax())
    return (
        f"In {blocks[worst]}, {busiest} of {chose.shape[1]} experts get {100 * float(shares[worst]):.0f} % of the "
        f"tokens, and {100 * float(lost / chose.sum().clamp_min(1)):.1f} % of all choices find no room."
    )


def no_room(key: str, capacity: float, tokens: int, chosen: int, experts: int) -> str:
    """A line for a capacity that leaves an expert no room."""
    least = math.ceil(500 * experts / (tokens * chosen)) / 1000
    return f"{key} is {capacity}, no room for one of {tokens} tokens in an expert; it must be {least} or more"


def check_experts(tokens: int, experts: int, chosen: int, capacity: float, eval_capacity: float) -> None:
    """ValueError, a line that says what would do, for what can't work on images of so many tokens."""
    if not 1 <= experts <= tokens:
        raise ValueError(f"experts is {experts}, but an image has {tokens} tokens; experts must be 1 to {tokens}")
    if not 1 <= chosen <= experts:
        raise ValueError(f"chosen is {chosen}, but there are {experts} experts; chosen must be 1 to {experts}")
    for key, value in (("capacity", capacity), ("eval_capacity", eval_capacity)):
        if not room(tokens, chosen, experts, value):
            raise ValueError(no_room(key, value, tokens, chosen, experts))
