"""DINOv2 against the papers' formulas (2304.07193, 1806.03198, 2508.10104) written again in float64, gradients too."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from ssl_vit.methods.dinov2 import DINOv2
from ssl_vit.methods.dinov2_config import Config
from ssl_vit.methods.gram import GramSchedule, gram_loss
from ssl_vit.methods.ibot import IBOT
from ssl_vit.methods.ibot_config import Config as IBOTConfig
from ssl_vit.methods.koleo import koleo
from ssl_vit.methods.method import Progress
from ssl_vit.methods.targets import sinkhorn
from tests.methods.small import REAL, SETTINGS, Patchy, takes_a_step, views

MINE = {"warmup_teacher_patch_temp": 0.02, "teacher_patch_temp": 0.05, "mask_ratio": (0.2, 0.6), "momentum": 0.8}
GRAM = {"gram_weight": 2.0, "gram_from": 0.1, "gram_every": 2.0}  # from step 1 on, and anew at step 3
TOTAL = 10


def make(**changes: object) -> DINOv2:
    torch.manual_seed(0)
    settings = SETTINGS | MINE | {"centering": "sinkhorn"} | changes
    method = DINOv2(Config(**settings), Patchy(), 8).double()  # type: ignore[arg-type]
    with torch.no_grad():  # apart from the start, or the anchor and the student are one
        for weight in method.student.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel())))
    return method


def prototypes(head: nn.Module, x: Tensor) -> Tensor:
    """The head's MLP, unit length, then the cosines with prototypes times their lengths."""
    z = head.mlp(x)
    z = z / z.square().sum(-1, keepdim=True).sqrt()
    v = head.last_layer.weight_v
    return z @ (head.last_layer.weight_g * v / v.square().sum(1, keepdim=True).sqrt()).T


def equal_shares(logits: Tensor, temp: float) -> Tensor:
    """Three rounds of Sinkhorn-Knopp as published: exponentials, columns that share the mass, then rows that do."""
    q = (logits / temp).exp()
    images, count = q.shape
    q = q / q.sum()
    for _ in range(3):
        q = q / q.sum(0, keepdim=True) / count
        q = q / q.sum(1, keepdim=True) / images
    return q * images


def entropy_of_neighbours(x: Tensor) -> Tensor:
    """-1/n Σ log min_j |x_i - x_j|, of unit vectors."""
    x = x / x.square().sum(1, keepdim=True).sqrt()
    terms = []
    for i in range(len(x)):
        apart = torch.stack([(x[i] - x[j]).square().sum().sqrt() for j in range(len(x)) if j != i])
        terms.append(-(apart.min() + 1e-8).log())
    return torch.stack(terms).mean()


def cosines_of_pairs(x: Tensor) -> Tensor:
    """[B, D, H, W] to [B, N, N], one pair after the other."""
    rows = x.flatten(2).mT
    unit = rows / rows.square().sum(-1, keepdim=True).sqrt()
    return torch.stack([torch.stack([(unit * row[:, None]).sum(-1) for row in unit.unbind(1)], 1)])[0]


def expected(
    method: DINOv2, batch: list[Tensor], masks: Tensor, temps: tuple[float, float], anchor: Patchy | None
) -> dict[str, Tensor]:
    """Every term of the loss, from the papers' formulas, with gradient."""
    images = len(batch[0])
    crops = [crop for group in batch for crop in group.split(images)]
    hide = [masks[:images], masks[images:]] + [None] * (len(crops) - 2)
    seen = [method.student.backbone(crop, mask) for crop, mask in zip(crops, hide, strict=True)]
    with torch.no_grad():
        taught = [method.teacher.backbone(crop) for crop in crops[:2]]
        logits = torch.cat([prototypes(method.teacher.head, each.pooled) for each in taught])
        q = equal_shares(logits, temps[0]).split(images)
        hidden = torch.cat([each.patches for each in taught]).movedim(1, -1)[masks]
        q_patch = equal_shares(prototypes(method.teacher.patch_head, hidden), temps[1])
    log_p = [(prototypes(method.student.head, each.pooled) / 0.1).log_softmax(-1) for each in seen]
    pairs = [-(q[t] * log_p[s]).sum(-1).mean() for t in range(2) for s in range(len(crops)) if s != t]
    patches = torch.cat([each.patches for each in seen[:2]])
    log_patch = (prototypes(method.student.patch_head, patches.movedim(1, -1)[masks]) / 0.1).log_softmax(-1)
    of_crop = masks.flatten(1).nonzero()[:, 0]
    terms = -(q_patch * log_patch).sum(-1)
    by_crop = [terms[of_crop == crop].mean() for crop in range(2 * images) if bool((of_crop == crop).any())]
    assert len(by_crop) == images  # the half that is masked
    found = {
        "view_loss": torch.stack(pairs).mean(),
        "patch_loss": torch.stack(by_crop).mean(),
        "koleo_loss": entropy_of_neighbours(seen[0].pooled) + entropy_of_neighbours(seen[1].pooled),
    }
    if anchor is not None:
        with torch.no_grad():
            held = cosines_of_pairs(anchor(torch.cat(crops[:2])).patches)
        found["gram_loss"] = (cosines_of_pairs(patches) - held).square().mean()
    return found


def steps(method: DINOv2) -> Iterator[tuple[Progress, list[Tensor], Tensor]]:
    """Four steps of descent: where it is, the batch and the masks; in between the caller looks."""
    for step in range(4):
        torch.manual_seed(step)
        masks = method.draw_masks(8, 4, 4)
        torch.manual_seed(step)
        yield Progress(step, TOTAL, per_epoch=1), views(step), masks


@pytest.mark.parametrize("gram", [{}, GRAM], ids=["plain", "gram"])
def test_loss_gradients_and_buffers_equal_the_formulas_step_by_step(gram: dict[str, float]) -> None:
    method = make(**gram)
    optimizer = torch.optim.SGD(method.student.parameters(), lr=0.05)
    trained = dict(method.student.named_parameters())
    anchor, weights = None, {"view_loss": 1.0, "patch_loss": 0.5, "koleo_loss": 0.1, "gram_loss": 2.0}
    for progress, batch, masks in steps(method):
        step = progress.step
        if gram and step in (1, 3):
            anchor = Patchy().double()
            anchor.load_state_dict(method.teacher.backbone.state_dict())
        temps = 0.03 + (0.06 - 0.03) * step / 3, 0.02 + (0.05 - 0.02) * step / 3
        terms = expected(method, batch, masks, temps, anchor)
        loss = sum(weights[name] * value for name, value in terms.items())
        assert isinstance(loss, Tensor)
        gradients = dict(zip(trained, torch.autograd.grad(loss, list(trained.values())), strict=True))
        torch.manual_seed(step)
        out = method(batch, progress)
        for name, value in terms.items():
            assert out.parts[name].item() == pytest.approx(value.item(), abs=1e-10), name
        assert ("gram_loss" in out.parts) == ("gram_loss" in terms) == (anchor is not None)
        assert out.loss.item() == pytest.approx(loss.item(), abs=1e-10)
        optimizer.zero_grad()
        out.loss.backward()
        for name, weight in trained.items():
            torch.testing.assert_close(weight.grad, gradients[name], rtol=1e-8, atol=1e-10, msg=name)
        optimizer.step()
        with torch.no_grad():
            momentum = 1 - (1 - 0.8) * (math.cos(math.pi * step / TOTAL) + 1) / 2
            pairs = zip(method.teacher.parameters(), method.student.parameters(), strict=True)
            teacher = [momentum * mine + (1 - momentum) * its for mine, its in pairs]
            centres = {}
            for name, head, crop in (("center", "head", "pooled"), ("patch_center", "patch_head", "patches")):
                features = [getattr(method.teacher.backbone(each), crop) for each in batch[:2]]
                rows = torch.cat(features).movedim(1, -1).flatten(0, -2)
                mean = prototypes(getattr(method.teacher, head), rows).mean(0, keepdim=True)
                centres[name] = 0.9 * getattr(method, name) + 0.1 * mean
        method.after_step(progress)
        for mine, its in zip(method.teacher.parameters(), teacher, strict=True):
            torch.testing.assert_close(mine, its, rtol=0, atol=1e-12)
        for name, value in centres.items():
            torch.testing.assert_close(getattr(method, name), value, rtol=0, atol=1e-12, msg=name)
    if gram:
        assert anchor is not None
        assert method.anchor is not None
        assert all(map(torch.equal, method.anchor.state_dict().values(), anchor.state_dict().values()))


def test_two_heads_or_one() -> None:
    two, one = make(), make(separate_heads=False)
    assert two.student.patch_head is not two.student.head
    assert one.student.patch_head is one.student.head
    assert type(two).heads == IBOT.heads
    for each in (two, one):
        torch.manual_seed(0)
        assert torch.isfinite(each(views(0), Progress(0, TOTAL, 1)).loss)


def test_sinkhorn_equals_the_published_rounds() -> None:
    logits = torch.randn(12, 7, generator=torch.Generator().manual_seed(0)).double()
    found = sinkhorn(logits, 0.3)
    torch.testing.assert_close(found, equal_shares(logits, 0.3), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.sum(1), torch.ones(12).double())


def test_koleo_equals_the_formula_and_pushes_a_pair_apart() -> None:
    x = torch.randn(9, 5, generator=torch.Generator().manual_seed(0)).double().requires_grad_(True)
    (mine,) = torch.autograd.grad(koleo(x), x)
    (its,) = torch.autograd.grad(entropy_of_neighbours(x), x)
    assert koleo(x).item() == pytest.approx(entropy_of_neighbours(x).item(), abs=1e-12)
    torch.testing.assert_close(mine, its, rtol=1e-10, atol=1e-12)
    same = torch.ones(4, 3, requires_grad=True)
    collapsed = koleo(same)
    collapsed.backward()
    assert collapsed.item() == pytest.approx(-math.log(1e-8), rel=1e-3)
    assert bool(same.grad.isfinite().all())  # type: ignore[union-attr]  # it has one
    assert koleo(torch.ones(1, 3)).item() == 0


def test_gram_compares_pairs_and_no_single_feature() -> None:
    x = torch.randn(2, 5, 2, 3, generator=torch.Generator().manual_seed(0)).double()
    y = torch.randn(2, 4, 2, 3, generator=torch.Generator().manual_seed(1)).double()
    assert gram_loss(x, y).item() == pytest.approx((cosines_of_pairs(x) - cosines_of_pairs(y)).square().mean().item())
    turned = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(2)).double())[0]
    rotated = torch.einsum("bdhw,de->behw", 3 * x, turned)
    assert gram_loss(x, rotated).item() == pytest.approx(0, abs=1e-20)


def test_the_anchor_is_a_function_of_the_step() -> None:
    schedule = GramSchedule(0.5, 2.0)
    run = [Progress(step, 40, per_epoch=5) for step in range(40)]
    assert [p.step for p in run if schedule.anchored(p)] == list(range(20, 40))
    assert [p.step for p in run if schedule.renewed(p)] == [20, 30]
    first = GramSchedule(0.0, 0.0)
    assert [p.step for p in run if first.renewed(p)] == []
    assert all(first.anchored(p) for p in run)


def test_ibot_takes_an_anchor_too() -> None:
    torch.manual_seed(0)
    settings = SETTINGS | MINE | {"gram_weight": 1.0}
    method = IBOT(IBOTConfig(**settings), Patchy(), 8).double()  # type: ignore[arg-type]
    before = {name: value.clone() for name, value in method.state_dict().items() if name.startswith("anchor.")}
    out = method(views(0), Progress(0, TOTAL, 1))
    assert out.parts["gram_loss"].item() > 0  # some patches are hidden from the student
    assert out.loss.item() == pytest.approx(
        (out.parts["view_loss"] + out.parts["patch_loss"] / 2 + out.parts["gram_loss"]).item()
    )
    assert before
    assert all(torch.equal(method.state_dict()[name], value) for name, value in before.items())


NAMES = REAL | {
    "convnext_atto": {"depths": (1, 1, 1, 1), "dims": (8, 12, 16, 24)},
    "vit_small_patch16_dinov3": {"img_size": 64, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2},
    "vit_small_patch14_reg4_dinov2": {"img_size": 64, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2},
}


@pytest.mark.parametrize("name", list(NAMES))
def test_a_step_on_real_backbones_lowers_the_loss(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REAL, name, NAMES[name])
    settings = SETTINGS | MINE | {"local_size": 32}
    takes_a_step(lambda backbone: DINOv2(Config(**settings), backbone, 64), name, masked=True)
