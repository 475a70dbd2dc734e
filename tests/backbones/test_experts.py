"""Routing, drops and losses of a mixture of experts, against the papers' formulas one token at a time."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from ssl_vit.backbones import create_backbone, experts, penalties
from ssl_vit.errors import UserError
from ssl_vit.training.looks.checkup import Checkup
from ssl_vit.training.looks.metrics import Metrics
from tests.backbones.families.compiled import check_compiled
from tests.runs import rows
from tests.training.test_penalties import stepped

TOKENS, EXPERTS = 12, 3
FIRST = [0, 0, 1, 0, 2, 0, 1, 0, 0, 1, 0, 0]  # each token's best expert; eight of twelve choose the first
SECOND = [1, 1, 0, 2, 0, 1, 0, 1, 2, 0, 1, 1]
SURE = [0.50, 0.90, 0.60, 0.55, 0.70, 0.95, 0.65, 0.80, 0.52, 0.58, 0.85, 0.75]  # the gate of the best


def gates() -> Tensor:
    """[1, 12, 3], float64; the second gate has three quarters of what is left."""
    found = torch.zeros(1, TOKENS, EXPERTS, dtype=torch.float64)
    for token, (first, second, sure) in enumerate(zip(FIRST, SECOND, SURE, strict=True)):
        found[0, token] = (1 - sure) / 4
        found[0, token, first], found[0, token, second] = sure, 0.75 * (1 - sure)
    return found


def by_hand(found: Tensor, chosen: int, capacity: int, prioritised: bool) -> dict[tuple[int, int], int | None]:
    """(token, rank of its choice) -> its place, or None: a queue for each expert, as one would do it on paper."""
    ranked = found.argsort(dim=1, descending=True)
    order = sorted(range(len(found)), key=lambda t: -found[t].max().item()) if prioritised else range(len(found))
    queues: dict[int, int] = {}
    places: dict[tuple[int, int], int | None] = {}
    for rank in range(chosen):
        for token in order:
            expert = int(ranked[token, rank])
            place = queues.get(expert, 0)
            queues[expert] = place + 1
            places[token, rank] = place if place < capacity else None
    return places


@pytest.mark.parametrize("prioritised", [False, True])
@pytest.mark.parametrize(("chosen", "capacity"), [(1, 4), (2, 4), (2, 8), (2, 1), (3, 12)])
def test_tokens_find_the_places_that_they_find_by_hand(chosen: int, capacity: int, prioritised: bool) -> None:
    routes = experts.route(gates(), chosen, prioritised)
    expected = by_hand(gates()[0], chosen, capacity, prioritised)
    found = {
        (token, rank): place if (place := int(routes.places[0, token, rank])) < capacity else None
        for token in range(TOKENS)
        for rank in range(chosen)
    }
    assert found == expected
    assert routes.experts[0, :, 0].tolist() == FIRST


def test_batch_priority_drops_the_least_sure() -> None:
    """The first expert has room for four of eight: the first four, or those of 0.95, 0.90, 0.85 and 0.80."""
    for prioritised, kept in ((False, [0, 1, 3, 5]), (True, [1, 5, 7, 10])):
        routes = experts.route(gates(), 1, prioritised)
        chose = routes.experts[0, :, 0] == 0
        assert (chose & (routes.places[0, :, 0] < 4)).nonzero().flatten().tolist() == kept


def mixture(**options: Any) -> experts.Mixture:
    torch.manual_seed(0)
    settings = {"experts": EXPERTS, "chosen": 2, "capacity": 0.5, "eval_capacity": 0.5, "losses": experts.Losses()}
    made = experts.Mixture(8, 16, **settings | options).double()
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    return made


def one_by_one(layer: experts.Mixture, x: Tensor, found: Tensor, capacity: int) -> Tensor:
    """What comes out of tokens [S, D] with gates [S, E], each token through each of its experts by itself."""
    out = torch.zeros_like(x)
    places = by_hand(found, layer.chosen, capacity, layer.prioritised)
    ranked = found.argsort(dim=1, descending=True)
    for (token, rank), place in places.items():
        if place is not None:
            expert = int(ranked[token, rank])
            hidden = nn.functional.gelu(layer.fc1.weight[expert] @ x[token] + layer.fc1.bias[expert])
            answer = layer.fc2.weight[expert] @ hidden + layer.fc2.bias[expert]
            out[token] += found[token, expert] * answer
    return out


@pytest.mark.parametrize("prioritised", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_a_mixture_is_its_experts_one_by_one(training: bool, prioritised: bool) -> None:
    """In training the two images are one group, in evaluation two; some tokens find no room in either."""
    layer = mixture(prioritised=prioritised, noise=0.0).train(training)
    x = torch.randn(2, TOKENS, 8, dtype=torch.float64)
    found = (x.float() @ layer.router.weight.float().T).softmax(-1).double()
    groups = [slice(0, 2)] if training else [slice(0, 1), slice(1, 2)]
    capacity = len(x[groups[0]]) * 4  # half of 12 tokens x 2 choices / 3 experts
    expected = [one_by_one(layer, x[g].flatten(0, 1), found[g].flatten(0, 1), capacity) for g in groups]
    layer.router.float()
    torch.testing.assert_close(layer(x).flatten(0, 1), torch.cat(expected), rtol=1e-6, atol=1e-6)


def test_losses_are_the_papers() -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, TOKENS, EXPERTS, dtype=torch.float64)
    noise = 1 / EXPERTS
    noisy = logits + noise * torch.randn_like(logits)

    def spread(values: list[float]) -> float:
        mean = sum(values) / len(values)
        return sum((v - mean) ** 2 for v in values) / len(values) / mean**2

    plain, drawn = logits[0].softmax(-1), noisy[0].softmax(-1)
    importance = spread([sum(plain[t, e].item() for t in range(TOKENS)) for e in range(EXPERTS)])
    chances, shares = [0.0] * EXPERTS, [0.0] * EXPERTS
    for t in range(TOKENS):
        least = sorted(noisy[0, t].tolist())[-2]  # what it takes to be among two
        for e in range(EXPERTS):
            chances[e] += 0.5 * math.erfc((least - logits[0, t, e].item()) / noise / math.sqrt(2)) / TOKENS
            shares[e] += (noisy[0, t, e].item() >= least) / TOKENS / 2
    balance = EXPERTS * sum(drawn[:, e].mean().item() * shares[e] for e in range(EXPERTS))
    routes = experts.route(noisy.softmax(-1), 2, False)
    assert experts.importance_loss(logits.softmax(-1)).item() == pytest.approx(importance, rel=1e-12)
    assert experts.load_loss(logits, noisy, 2, noise).item() == pytest.approx(spread(chances), rel=1e-12)
    assert experts.balance_loss(noisy.softmax(-1), routes.experts).item() == pytest.approx(balance, rel=1e-12)
    even = torch.full((1, TOKENS, EXPERTS), 1 / EXPERTS, dtype=torch.float64)
    choices = torch.arange(TOKENS)[None, :, None] % EXPERTS
    assert experts.importance_loss(even).item() == 0.0
    assert experts.balance_loss(even, choices).item() == pytest.approx(1.0)


def test_a_training_step_collects_weighted_losses_and_counts() -> None:
    layer = mixture(losses=experts.Losses(0.5, 0.25, 0.125), capacity=0.25, noise=1.0, blocks=["block 7"]).float()
    x = torch.randn(2, TOKENS, 8)
    with penalties.collecting() as found:
        layer(x)
        layer.eval()(x)
    assert set(found) == {"importance", "load", "balance"}
    assert all(value.requires_grad for value in found.values())
    counts, say = found.noted["experts"]
    assert counts[0, :-1].sum() == 2 * 2 * TOKENS  # of one pass
    assert counts[0, -1] >= 2 * 2 * TOKENS - EXPERTS * 4
    assert say(counts).startswith("In block 7, 1 of 3 experts get ")
    assert not penalties.wanted()


SMALL = {"embed_dim": 48, "depth": 2, "num_heads": 3}
VMOE, WIDENET = "vmoe_small_patch32_last2_e8_224", "widenet_base_patch16_224"


@pytest.mark.parametrize(
    ("name", "args", "line"),
    [
        (VMOE, {"layers": (1,), "experts": 6}, "experts is 6, but an image has 5 tokens; experts must be 1 to 5"),
        (VMOE, {"layers": (1,), "experts": 4, "chosen": 5}, "chosen is 5, .* chosen must be 1 to 4"),
        (VMOE, {"layers": (1,), "experts": 4, "capacity": 0.0}, r"capacity is 0.0, .* it must be 0\.2 or more"),
        (VMOE, {"layers": (2,), "experts": 4}, r"layers is \(2,\), but there are blocks 0 to 1"),
        (WIDENET, {"eval_capacity": 0.0}, r"eval_capacity is 0.0, .* it must be 0\.2 or more"),
        (WIDENET, {"experts": 0}, "experts must be 1 to 5"),
    ],
)
def test_what_cannot_work_is_refused_in_a_line(name: str, args: dict[str, Any], line: str) -> None:
    patch = {"patch_size": 16}
    with pytest.raises(UserError, match=line):
        create_backbone(name, image_size=32, model_args=SMALL | patch | args)


def test_the_smallest_capacity_of_the_line_works() -> None:
    args = {"layers": (1,), "experts": 4, "patch_size": 16, "capacity": 0.2, "eval_capacity": 0.2}
    create_backbone(VMOE, image_size=32, model_args=SMALL | args)


def test_an_image_does_not_depend_on_the_others() -> None:
    model = timm.create_model(WIDENET, num_classes=0, img_size=64, eval_capacity=0.6, **SMALL).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    images = torch.randn(3, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(model(images)[1:2], model(images[1:2]), rtol=1e-5, atol=1e-5)


def test_widenet_uses_one_block_again_and_again() -> None:
    one, many = (
        sum(p.numel() for p in timm.create_model(WIDENET, **SMALL | {"depth": d}).parameters()) for d in (1, 9)
    )
    assert many - one == 8 * 4 * 48  # the two layer norms


def test_the_verdict_tells_of_experts(pictures: Path, tmp_path: Path) -> None:
    """Through a step, its line in metrics.jsonl and a check; a network without mixtures has nothing of it."""

    methods: list[Any] = []

    def mixed(method: nn.Module) -> None:
        methods.append(method)
        model = method.get_submodule("backbone.model")
        losses = experts.Losses(importance=0.005, load=0.005)
        model.norm = nn.Sequential(
            model.norm, experts.Mixture(64, 32, 8, 2, 1.05, 4.0, losses, row=0, blocks=["block 1"])
        )

    plain, _ = stepped("simmim", pictures)
    outcome, _ = stepped("simmim", pictures, mixed)
    assert plain.noted == {}
    assert set(outcome.penalties) == {"importance", "load"}
    metrics, advice = Metrics(tmp_path, 0), dict[str, str]()
    metrics.after_step(outcome)
    metrics.end()
    (row,) = rows(tmp_path)
    assert row["noted/experts"] == outcome.noted["experts"].counts.tolist()
    assert row["penalty/load"] > 0
    check = Checkup(None, 1000, advice)
    check._method, check._warmup = methods[-1], 0
    check.after_step(outcome)
    check.after_step(outcome)
    state = check.state()
    check._check(2)
    assert check.verdict is not None
    said = experts.unevenness(["block 1"], 2 * outcome.noted["experts"].counts)
    assert check.verdict.sentence.endswith(said)
    again = Checkup(None, 1000, advice)
    again.restore_state(state)
    torch.testing.assert_close(again._noted["experts"], 2 * outcome.noted["experts"].counts)


@pytest.mark.parametrize("name", [VMOE, WIDENET])
def test_activations_may_be_computed_again(name: str) -> None:
    """Noise, routes, penalties and gradients stay what they are."""
    args = SMALL | {"experts": 4, "patch_size": 16} | ({"layers": (1,)} if name == VMOE else {})
    torch.manual_seed(0)
    model = timm.create_model(name, img_size=32, **args).train()
    images, results = torch.randn(2, 3, 32, 32), []
    for again in (False, True):
        model.set_grad_checkpointing(again)
        model.zero_grad()
        torch.manual_seed(1)
        with penalties.collecting() as found:
            loss = model(images).square().mean()
        sum(found.values(), loss).backward()
        grads = {key: p.grad for key, p in model.named_parameters()}
        results.append((dict(found), found.noted["experts"].counts, grads))
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.slow  # seconds, and a break costs speed alone
@pytest.mark.parametrize("training", [False, True])
def test_compiles_as_one_graph(training: bool) -> None:
    args = SMALL | {"layers": (1,), "experts": 4, "patch_size": 16, "noise": 0.0}
    torch.manual_seed(0)
    check_compiled(timm.create_model(VMOE, img_size=32, **args).train(training), torch.randn(2, 3, 32, 32))
