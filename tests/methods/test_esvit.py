"""EsViT against the published formulas (2106.09785, section 3.2) written again with plain loops, in float64."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from ssl_vit.methods import dense_loss, heads
from ssl_vit.methods.esvit import EsViT, nearest
from ssl_vit.methods.esvit_config import Config
from ssl_vit.methods.method import Progress
from ssl_vit.methods.targets import sinkhorn
from tests.methods.small import (
    REAL,
    SETTINGS,
    Patchy,
    cross,
    head_numpy,
    seen_by,
    slope,
    softmax,
    takes_a_step,
    teacher_after,
    views,
)

START = Progress(0, total=10, per_epoch=1)


def make(patch_dim: int = 6, **changes) -> EsViT:
    torch.manual_seed(0)
    return EsViT(Config(**(SETTINGS | {"region_from": 0.0} | changes)), Patchy(patch_dim), 8).double()


def reference(method: EsViT, batch: list[torch.Tensor], temp: float) -> tuple[float, float, np.ndarray]:
    """View loss, region loss and the mean of the teacher's region logits: one pair, image and region at a time."""
    images = len(batch[0])
    crops = [crop for group in batch for crop in group.split(images)]
    student, teacher = method.student, method.teacher
    s_seen = [seen_by(student.backbone, crop) for crop in crops]
    t_seen = [seen_by(teacher.backbone, crop) for crop in crops[:2]]
    t_logits = [head_numpy(teacher.patch_head, regions) for _, regions in t_seen]
    if method.config.centering == "sinkhorn":
        flat = torch.from_numpy(np.stack(t_logits)).reshape(-1, t_logits[0].shape[-1])
        t_regions = sinkhorn(flat, temp).reshape(2, images, -1, flat.shape[1]).numpy()
        pooled = torch.from_numpy(np.concatenate([head_numpy(teacher.head, pooled) for pooled, _ in t_seen]))
        t_views = sinkhorn(pooled, temp).reshape(2, images, -1).numpy()
    else:
        t_regions = [softmax((logits - method.patch_center.numpy()) / temp) for logits in t_logits]
        t_views = [softmax((head_numpy(teacher.head, pooled) - method.center.numpy()) / temp) for pooled, _ in t_seen]
    view_terms, region_terms = [], []
    for t in range(2):
        for s, (pooled, regions) in enumerate(s_seen):
            if s == t:
                continue
            view_terms.append(cross(t_views[t], head_numpy(student.head, pooled)).mean())
            logits = head_numpy(student.patch_head, regions)
            for b in range(images):
                for i, region in enumerate(regions[b]):
                    others = t_seen[t][1][b]
                    cosine = others @ region / np.linalg.norm(others, axis=1) / np.linalg.norm(region)
                    loss = cross(t_regions[t][b, cosine.argmax()], logits[b, i])
                    region_terms.append(loss / (images * len(regions[b])))
    pairs = len(view_terms)
    return sum(view_terms) / pairs, sum(region_terms) / pairs, np.stack(t_logits).reshape(-1, 16).mean(0)


@pytest.mark.parametrize("cells", [2**24, 16 * 7], ids=["at once", "seven rows at a time"])
def test_loss_centres_and_teacher_equal_the_formulas_for_three_steps(monkeypatch, cells) -> None:
    monkeypatch.setattr(dense_loss, "CELLS", cells)
    monkeypatch.setattr(heads, "TILE", 5)
    method = make()
    optimizer = torch.optim.SGD(method.student.parameters(), lr=0.1)
    for step in range(3):
        progress = Progress(step, total=10, per_epoch=1)
        temp = 0.03 + (0.06 - 0.03) * step / 3
        view, region, seen = reference(method, views(step), temp)
        out = method(views(step), progress)
        assert out.parts["view_loss"].item() == pytest.approx(view, abs=1e-12)
        assert out.parts["region_loss"].item() == pytest.approx(region, abs=1e-12)
        assert out.loss.item() == pytest.approx((view + region) / 2, abs=1e-12)
        centre = 0.9 * method.patch_center.numpy() + 0.1 * seen
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        teacher = teacher_after(method, 1 - (1 - 0.9) * (math.cos(math.pi * step / 10) + 1) / 2)
        method.after_step(progress)
        np.testing.assert_allclose(method.patch_center.numpy(), centre, atol=1e-12)
        for mine, wanted in zip(method.teacher.parameters(), teacher, strict=True):
            torch.testing.assert_close(mine, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("cells", [2**24, 16 * 7], ids=["at once", "seven rows at a time"])
def test_gradient_is_the_derivative_of_the_formula(monkeypatch, cells) -> None:
    monkeypatch.setattr(dense_loss, "CELLS", cells)
    monkeypatch.setattr(heads, "TILE", 5)
    method = make()
    batch = views(0, images=2, local=1)
    method(batch, START).loss.backward()

    def value() -> float:
        view, region, _ = reference(method, batch, 0.03)
        return (view + region) / 2

    head = method.student.patch_head
    places = ((head.last_layer.weight_v, (3, 2)), (head.last_layer.weight_g, (5, 0)), (head.mlp[0].weight, (1, 2)))
    for parameter, place in (*places, (method.student.backbone.linear.bias, (1,))):
        assert parameter.grad[place].item() == pytest.approx(slope(value, parameter, place), abs=1e-8)


def test_whole_crops_alone_at_first() -> None:
    method, batch = make(region_from=0.2), views(0)
    view, _, _ = reference(method, batch, 0.03 + (0.06 - 0.03) / 3)
    head = copy.deepcopy(method.student.patch_head.state_dict())
    optimizer = torch.optim.AdamW(method.student.parameters(), lr=0.1, weight_decay=0.1)
    out = method(batch, Progress(1, total=10, per_epoch=1))
    assert out.loss.item() == pytest.approx(view, abs=1e-12)
    assert "region_loss" not in out.parts
    out.loss.backward()
    assert all(weight.grad is not None for weight in method.student.patch_head.parameters())  # as DDP expects
    method.before_optimizer(Progress(1, total=10, per_epoch=1))
    optimizer.step()
    method.after_step(Progress(1, total=10, per_epoch=1))
    torch.testing.assert_close(method.student.patch_head.state_dict(), head, rtol=0, atol=0)
    assert not method.patch_center.any()
    fresh = make(region_from=0.2)
    _, region, _ = reference(fresh, batch, 0.03 + (0.06 - 0.03) * 2 / 3)
    assert fresh(batch, Progress(2, total=10, per_epoch=1)).parts["region_loss"].item() == pytest.approx(
        region, abs=1e-12
    )


def test_equal_shares_instead_of_a_centre() -> None:
    method = make(centering="sinkhorn")
    view, region, _ = reference(method, views(0), 0.03)
    out = method(views(0), START)
    assert out.parts["view_loss"].item() == pytest.approx(view, abs=1e-10)
    assert out.parts["region_loss"].item() == pytest.approx(region, abs=1e-10)


def test_nearest_is_the_largest_cosine_however_few_images_fit(monkeypatch) -> None:
    g = torch.Generator().manual_seed(0)
    queries, keys = torch.randn(5, 4, 3, generator=g), torch.randn(5, 9, 3, generator=g)
    cosine = torch.nn.functional.cosine_similarity(queries[:, :, None], keys[:, None], dim=-1)
    monkeypatch.setattr("ssl_vit.methods.esvit.CELLS", 2 * 4 * 9)
    assert torch.equal(nearest(queries, keys), cosine.argmax(-1))


def test_uniform_outputs_cost_ln_k_and_health_sees_it() -> None:
    method = make(centering="mean")
    with torch.no_grad():
        for branch in (method.student, method.teacher):
            for head in (branch.head, branch.patch_head):
                head.last_layer.weight_g.zero_()
    out = method(views(0), START)
    for name in ("view_loss", "region_loss", "view_entropy", "region_entropy"):
        assert out.parts[name].item() == pytest.approx(math.log(16))
    assert out.loss.item() == pytest.approx(method.uniform_loss)


def test_both_last_layers_rest() -> None:
    method = make(freeze_last_layer_epochs=1.0)
    method(views(0), START).loss.backward()
    method.before_optimizer(START)
    for head in (method.student.head, method.student.patch_head):
        assert head.last_layer.weight_v.grad is None
        assert head.mlp[0].weight.grad is not None


def test_a_head_of_another_width_for_patches() -> None:
    method = make(patch_dim=4)
    assert (method.student.head.mlp[0].in_features, method.student.patch_head.mlp[0].in_features) == (7, 4)
    assert torch.isfinite(method(views(0), START).loss)


def test_state_is_complete() -> None:
    first = make()
    optimizer = torch.optim.SGD(first.student.parameters(), lr=0.1)
    first(views(0), START).loss.backward()
    optimizer.step()
    first.after_step(START)
    second = make()
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    progress = Progress(1, 10, 1)
    assert torch.equal(first(views(1), progress).loss, second(views(1), progress).loss)


@pytest.mark.parametrize("name", list(REAL))
def test_a_step_on_real_backbones_lowers_the_loss(name) -> None:
    takes_a_step(
        lambda backbone: EsViT(Config(**(SETTINGS | {"local_size": 32, "region_from": 0.0})), backbone, 64), name
    )
