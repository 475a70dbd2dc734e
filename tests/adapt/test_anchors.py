"""What holds a network to where it began: by hand in float64, beside methods of every kind, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ssl_vit.adapt.anchors import Pull, anchor
from ssl_vit.adapt.lora import adapt, products
from ssl_vit.backbones import create_backbone
from ssl_vit.backbones.penalties import collecting
from ssl_vit.errors import UserError
from ssl_vit.methods.method import Method
from ssl_vit.run.prepare import build_method
from ssl_vit.training.fabric import new_fabric
from ssl_vit.training.step import Learner, ReadyViews, take_step
from tests.adapt.test_lora import ALL, START
from tests.test_families_train import resolved
from tests.training.test_accumulate import RECIPE

PULL = Pull(pooled_cosine=2.0, pooled_squared=3.0, patch_cosine=5.0, patch_squared=7.0, every=3)
NAMES = {f"anchor_{what}_{how}" for what in ("pooled", "patch") for how in ("cosine", "squared")} | {"l2_sp"}
VIT: dict[str, Any] = {"img_size": 16, "patch_size": 4, "embed_dim": 8, "depth": 2, "num_heads": 2}


class OneBackbone(nn.Module):
    """As small as a method can be."""

    def __init__(self, *, lora: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = create_backbone("vit_tiny_patch16_224", model_args=VIT, masked=True, drop_path=0.5).double()
        if lora:
            adapt(self.backbone, 2, ("attention", "mlp"))

    def forward(self, *given: Tensor) -> Any:
        return self.backbone(*given)


def moved(method: OneBackbone) -> OneBackbone:
    """Away from the start, so that there is something to pull."""
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in method.backbone.parameters():
            weight.add_(0.1 * torch.randn_like(weight) * weight.requires_grad)
    return method.eval()


def held(*, l2_sp: float = 0.0, lora: bool = False) -> tuple[OneBackbone, nn.Module]:
    """A method that is held and has moved, and the network that it was."""
    start = OneBackbone().backbone.eval()
    method = OneBackbone(lora=lora)
    anchor(method, PULL, l2_sp)
    return moved(method), start


def noise(images: int = 7) -> Tensor:
    return torch.randn(images, 3, 16, 16, generator=torch.Generator().manual_seed(2)).double()


def by_hand(pooled: Tensor, its_pooled: Tensor, patches: list[Tensor], its: list[Tensor]) -> dict[str, float]:
    """pooled: [B, D]; patches: of each image those that count, [n, D]."""
    pooled, its_pooled = pooled.detach(), its_pooled.detach()
    patches, its = [each.detach() for each in patches], [each.detach() for each in its]

    def cosine(x: Tensor, y: Tensor) -> float:
        return float(1 - (x * y).sum() / (x.square().sum() * y.square().sum()).sqrt())

    def squared(x: Tensor, y: Tensor) -> float:
        return float((x - y).square().sum() / len(x))

    images = [0, 3, 6]
    at = [(x, y) for i in images for x, y in zip(patches[i], its[i], strict=True)]
    return {
        "anchor_pooled_cosine": 2 * sum(cosine(pooled[i], its_pooled[i]) for i in images) / 3,
        "anchor_pooled_squared": 3 * sum(squared(pooled[i], its_pooled[i]) for i in images) / 3,
        "anchor_patch_cosine": 5 * sum(cosine(x, y) for x, y in at) / len(at),
        "anchor_patch_squared": 7 * sum(squared(x, y) for x, y in at) / len(at),
    }


def as_rows(patches: Tensor) -> list[Tensor]:
    return [each.flatten(1).T for each in patches]


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
def test_a_pass_is_pulled_as_the_formulas_say(lora: bool) -> None:
    method, start = held(lora=lora)
    with collecting() as found:
        features = method(noise())
    with torch.no_grad():
        theirs = start(noise())
    expected = by_hand(features.pooled, theirs.pooled, as_rows(features.patches), as_rows(theirs.patches))
    assert {name: value.item() for name, value in found.items()} == pytest.approx(expected, abs=1e-12)
    assert min(expected.values()) > 1e-4
    sum(found.values()).backward()
    felt = [weight for weight in method.backbone.model.parameters() if weight.grad is not None]
    assert felt
    assert all(weight.requires_grad for weight in felt)
    assert all(weight.grad is None for weight in method.start.parameters())


def test_hidden_patches_are_not_pulled() -> None:
    method, start = held()
    mask = torch.rand(7, 4, 4, generator=torch.Generator().manual_seed(3)) < 0.5
    mask[3] = True  # nothing of it is seen
    with collecting() as found:
        features = method(noise(), mask)
    theirs = start(noise())
    shown = [~each.flatten() for each in mask]
    kept = [[each[which] for each, which in zip(as_rows(f.patches), shown, strict=True)] for f in (features, theirs)]
    expected = by_hand(features.pooled, theirs.pooled, *kept)
    assert {name: value.item() for name, value in found.items()} == pytest.approx(expected, abs=1e-12)


def test_a_pass_of_some_patches_is_pulled_at_those() -> None:
    method, start = held()
    kept = torch.rand(7, 16, generator=torch.Generator().manual_seed(4)).argsort(1)[:, :5]
    with collecting() as found:
        visible = method.backbone.visible(noise(), kept)
    theirs = start(noise())
    at = [patches[places] for patches, places in zip(as_rows(theirs.patches), kept, strict=True)]
    expected = by_hand(visible.pooled, theirs.pooled, list(visible.patches), at)
    assert {name: value.item() for name, value in found.items()} == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
def test_weights_are_pulled_by_half_the_squared_distance(lora: bool) -> None:
    method, start = held(l2_sp=0.3, lora=lora)
    with collecting() as found:
        method(noise())
    penalty = found["l2_sp"]
    penalty.backward()
    squares = 0.0
    if lora:
        for _, layer in products(method.backbone.model):
            product = (layer.lora_B @ layer.lora_A).detach()
            squares += float(product.square().sum())
            torch.testing.assert_close(layer.lora_B.grad, 0.3 * product @ layer.lora_A.T, rtol=1e-12, atol=0)
    else:
        before = dict(start.model.named_parameters())
        for name, weight in method.backbone.model.named_parameters():
            apart = (weight - before[name]).detach()
            squares += float(apart.square().sum())
            torch.testing.assert_close(weight.grad, 0.3 * apart, rtol=1e-12, atol=0, msg=name)
    assert penalty.item() == pytest.approx(0.3 / 2 * squares, rel=1e-12)


def test_the_start_stays_as_it_was_without_noise() -> None:
    method = OneBackbone()
    anchor(method, PULL, 1.0)
    method.train()
    assert not any(module.training for module in method.start.modules())
    with collecting() as found:
        method.eval()(noise())
    assert {name: value.item() for name, value in found.items()} == dict.fromkeys(NAMES, pytest.approx(0.0, abs=1e-12))
    with collecting() as nothing, torch.no_grad():
        method(noise())
    assert nothing == {}


def stepped(name: str, family: str, **more: object) -> tuple[dict[str, Tensor], Method]:
    config = resolved(name, family, **RECIPE | START | ALL | more)
    torch.manual_seed(0)
    method = build_method(config)
    learner = Learner(new_fabric(config.train), method, config, per_epoch=4, total=4)
    for step in range(2):
        views = [torch.randn(view.count * 8, 3, view.size, view.size) for view in method.views().views]
        outcome = take_step(learner, ReadyViews(views), step)
    return outcome.penalties, method


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("dino", "resnet"),
        pytest.param("byol", "swin_transformer", marks=pytest.mark.slow),
        ("simmim", "vision_transformer"),
        ("mae", "vision_transformer"),
    ],
)
def test_any_method_is_held_and_says_by_how_much(name: str, family: str) -> None:
    penalties, method = stepped(name, family)
    assert set(penalties) == NAMES
    assert all(float(value) > 0 for value in penalties.values())
    trained = [key for key, weight in method.named_parameters() if weight.requires_grad]
    assert not [key for key in trained if key.startswith("start.")]


def test_what_cannot_be_held_is_refused_in_a_line() -> None:
    for key, value in ALL.items():
        if key != "adapt.anchor_every":
            with pytest.raises(UserError, match=rf"^{key}: it goes on from weights that are there; add --weights FILE"):
                resolved("dino", "vision_transformer", **{key: value})
    with pytest.raises(UserError, match=r"adapt.l2_sp: detreg does not train the backbone"):
        resolved("detreg", "resnet", **START | {"adapt.l2_sp": 1.0})
