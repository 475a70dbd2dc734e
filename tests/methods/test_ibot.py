"""iBOT against the published formulas (2111.07832, section 3) written again with plain loops, in float64."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from ssl_vit.errors import UserError
from ssl_vit.methods import dense_loss, heads
from ssl_vit.methods.ibot import IBOT
from ssl_vit.methods.ibot_config import Config
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
MINE = {"warmup_teacher_patch_temp": 0.02, "teacher_patch_temp": 0.05, "mask_ratio": (0.2, 0.6)}


def make(patch_dim: int = 6, **changes) -> IBOT:
    torch.manual_seed(0)
    return IBOT(Config(**(SETTINGS | MINE | changes)), Patchy(patch_dim), 8).double()


def reference(
    method: IBOT, batch: list[torch.Tensor], masks: np.ndarray, temp: float, patch_temp: float
) -> tuple[float, float, np.ndarray]:
    """L_CLS, L_MIM averaged over masked crops, and the mean of the teacher's patch logits."""
    images = len(batch[0])
    crops = [crop for group in batch for crop in group.split(images)]
    student, teacher = method.student, method.teacher
    hide = [masks[:images], masks[images:]] + [None] * (len(crops) - 2)
    s_seen = [seen_by(student.backbone, crop, mask) for crop, mask in zip(crops, hide, strict=True)]
    t_seen = [seen_by(teacher.backbone, crop) for crop in crops[:2]]
    t_views = [softmax((head_numpy(teacher.head, pooled) - method.center.numpy()) / temp) for pooled, _ in t_seen]
    t_logits = np.concatenate([head_numpy(teacher.patch_head, patches) for _, patches in t_seen])
    s_logits = np.concatenate([head_numpy(student.patch_head, patches) for _, patches in s_seen[:2]])
    view_terms = [
        cross(t_views[t], head_numpy(student.head, pooled)).mean()
        for t in range(2)
        for s, (pooled, _) in enumerate(s_seen)
        if s != t
    ]
    flat = masks.reshape(2 * images, -1)
    q = softmax((t_logits - method.patch_center.numpy()) / patch_temp)
    if method.config.centering == "sinkhorn":
        q[flat] = sinkhorn(torch.from_numpy(t_logits[flat]), patch_temp).numpy()
    patch_terms = [cross(q[b][flat[b]], s_logits[b][flat[b]]).mean() for b in range(2 * images) if flat[b].any()]
    assert len(patch_terms) == images  # one half of the crops
    return float(np.mean(view_terms)), float(np.mean(patch_terms)), t_logits.reshape(-1, 16).mean(0)


def masks_of(method: IBOT, crops: int, seed: int) -> np.ndarray:
    torch.manual_seed(seed)
    return method.draw_masks(crops, 4, 4).numpy()


@pytest.mark.parametrize("cells", [2**24, 16 * 7], ids=["at once", "seven rows at a time"])
def test_loss_centres_and_teacher_equal_the_formulas_for_three_steps(monkeypatch, cells) -> None:
    monkeypatch.setattr(dense_loss, "CELLS", cells)
    monkeypatch.setattr(heads, "TILE", 5)
    method = make()
    optimizer = torch.optim.SGD(method.student.parameters(), lr=0.1)
    for step in range(3):
        progress = Progress(step, total=10, per_epoch=1)
        temps = 0.03 + (0.06 - 0.03) * step / 3, 0.02 + (0.05 - 0.02) * step / 3
        view, patch, seen = reference(method, views(step), masks_of(method, 8, step), *temps)
        torch.manual_seed(step)
        out = method(views(step), progress)
        assert out.parts["view_loss"].item() == pytest.approx(view, abs=1e-12)
        assert out.parts["patch_loss"].item() == pytest.approx(patch, abs=1e-12)
        assert out.loss.item() == pytest.approx(view + patch / 2, abs=1e-12)  # crops without a mask count as nothing
        centre = 0.9 * method.patch_center.numpy() + 0.1 * seen
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        teacher = teacher_after(method, 1 - (1 - 0.9) * (math.cos(math.pi * step / 10) + 1) / 2)
        method.after_step(progress)
        np.testing.assert_allclose(method.patch_center.numpy(), centre, atol=1e-12)
        for mine, wanted in zip(method.teacher.parameters(), teacher, strict=True):
            torch.testing.assert_close(mine, wanted, rtol=0, atol=1e-12)


def test_gradient_is_the_derivative_of_the_formula() -> None:
    method = make()
    batch, masks = views(0, images=2, local=1), masks_of(method, 4, 0)
    torch.manual_seed(0)
    method(batch, START).loss.backward()

    def value() -> float:
        view, patch, _ = reference(method, batch, masks, 0.03, 0.02)
        return view + patch / 2

    layer, backbone = method.student.head.last_layer, method.student.backbone
    places = ((layer.weight_v, (3, 2)), (layer.weight_g, (5, 0)), (backbone.token, (1,)), (backbone.linear.bias, (2,)))
    for parameter, place in places:
        assert parameter.grad[place].item() == pytest.approx(slope(value, parameter, place), abs=1e-8)


def test_equal_shares_over_the_hidden_patches_instead_of_a_centre() -> None:
    method = make(centering="sinkhorn")
    _, patch, _ = reference(method, views(0), masks_of(method, 8, 0), 0.03, 0.02)
    torch.manual_seed(0)
    assert method(views(0), START).parts["patch_loss"].item() == pytest.approx(patch, abs=1e-10)


def test_masks_hide_what_they_should_in_one_half_of_the_crops() -> None:
    method = make()
    torch.manual_seed(0)
    masks = method.draw_masks(200, 14, 14)
    shares = masks.flatten(1).float().mean(1)
    assert int((shares > 0).sum()) == 100
    assert shares.max() <= 0.6
    assert shares[shares > 0].mean() == pytest.approx(0.4, abs=0.03)
    torch.manual_seed(0)
    assert torch.equal(masks, method.draw_masks(200, 14, 14))


def test_one_head_for_both_where_the_widths_allow() -> None:
    same, other = make(), make(patch_dim=4)
    assert same.student.patch_head is same.student.head
    assert same.teacher.patch_head is same.teacher.head
    assert other.student.patch_head.mlp[0].in_features == 4
    assert torch.isfinite(other(views(0), START).loss)


def test_uniform_outputs_cost_what_health_expects() -> None:
    method = make()
    with torch.no_grad():
        for branch in (method.student, method.teacher):
            branch.head.last_layer.weight_g.zero_()
    out = method(views(0), START)
    for name in ("view_loss", "patch_loss", "view_entropy", "patch_entropy"):
        assert out.parts[name].item() == pytest.approx(math.log(16))
    assert out.loss.item() == pytest.approx(method.uniform_loss)
    assert method.heads == ("view", "patch")
    assert math.log(method.prototypes) == pytest.approx(math.log(16))


def test_state_is_complete() -> None:
    first = make()
    optimizer = torch.optim.SGD(first.student.parameters(), lr=0.1)
    first(views(0), START).loss.backward()
    optimizer.step()
    first.after_step(START)
    second = make()
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    losses = []
    for method in (first, second):
        torch.manual_seed(5)
        losses.append(method(views(1), Progress(1, 10, 1)).loss)
    assert torch.equal(*losses)


def test_a_grid_with_nothing_to_hide_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"method.mask_ratio: 0.05 of the patches of patchy, 16 at 8 pixels, is not one"
    ):
        make(mask_ratio=(0.01, 0.05))


@pytest.mark.parametrize("name", list(REAL))
def test_a_step_on_real_backbones_lowers_the_loss(name) -> None:
    settings = SETTINGS | MINE | {"local_size": 32}
    takes_a_step(lambda backbone: IBOT(Config(**settings), backbone, 64), name, masked=True)
